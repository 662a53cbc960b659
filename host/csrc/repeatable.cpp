// What tch lacks: the switches that make CUDA give the same numbers every time. False if one of them did not take.
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <cstring>

extern "C" bool lightbox_repeatable() {
  auto &context = at::globalContext();
  context.setDeterministicCuDNN(true);
  // Where an operation has no repeatable form, libtorch warns and goes on: an explainer may need one. With warnings only,
  // the fused attention's gradient stays as it is; our models do not take it.
  context.setDeterministicAlgorithms(true, /*warn_only=*/true);
  // Fresh memory need not be filled for that.
  context.setDeterministicFillUninitializedMemory(false);
  return context.deterministicCuDNN() && context.deterministicAlgorithms();
}

// Whether CUDA may compute products of matrices and convolutions of float32 values in TF32, which has 10 bits of fraction.
// libtorch's own default is no for the first and yes for the second. False if it did not take.
extern "C" bool lightbox_tf32(bool on) {
  auto &context = at::globalContext();
  context.setAllowTF32CuBLAS(on);
  context.setAllowTF32CuDNN(on);
  return context.allowTF32CuBLAS() == on && context.allowTF32CuDNN() == on;
}

// The instruction set that ATen's kernels were chosen for: DEFAULT, AVX2, AVX512, ...
extern "C" void lightbox_cpu_capability(char *text, size_t length) {
  std::strncpy(text, at::get_cpu_capability().c_str(), length - 1);
}
