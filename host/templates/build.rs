//! For `cargo test`: where libtorch is. The host has it loaded already.

fn main() {
    if let Ok(lib) = std::env::var("DEP_LIGHTBOX_SDK_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
