fn main() -> std::process::ExitCode {
    // First of all: libtorch asks for its CUDA part once.
    lightbox::device::open_cuda();
    lightbox::device::keep_memory();
    lightbox::cli::main()
}
