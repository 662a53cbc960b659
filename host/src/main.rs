use std::io::Write;

fn main() {
    // First of all: libtorch asks for its CUDA part once.
    lightbox::device::open_cuda();
    lightbox::device::keep_memory();
    let code = lightbox::cli::main();
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process, whose files are written, without the destructors of libtorch and of plugins: they take a tenth
    // of a second, and free what ends with the process.
    unsafe { libc::_exit(i32::from(code)) }
}
