//! Lets this crate's own tests find libtorch. The host has it loaded before it opens a plugin.
fn main() {
    if let Ok(lib) = std::env::var("DEP_LIGHTBOX_SDK_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
