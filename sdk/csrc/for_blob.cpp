// A tensor over foreign memory that calls `release(context)` when its storage dies.
// tch's `from_blob` has no such call-back, so a view of its result can outlive the memory.
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/TensorOptions.h>
#include <cstring>

extern "C" void *lightbox_for_blob(void *data, const int64_t *sizes, const int64_t *strides, size_t dims,
                                   int scalar_type, int device_type, int device_index, void *context,
                                   void (*release)(void *), char *error, size_t error_len) {
  // After `.context()` libtorch owns `context` and releases it, on an exception too; before it, we do.
  bool owned = false;
  try {
    auto device = c10::Device(static_cast<c10::DeviceType>(device_type),
                              static_cast<c10::DeviceIndex>(device_type == 0 ? -1 : device_index));
    auto options = at::TensorOptions().device(device).dtype(static_cast<c10::ScalarType>(scalar_type));
    auto maker = at::for_blob(data, c10::IntArrayRef(sizes, dims));
    maker.strides(c10::IntArrayRef(strides, dims));
    maker.context(context, release);
    owned = true;
    return new at::Tensor(maker.target_device(device).options(options).make_tensor());
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), error_len - 1);
  } catch (...) {
    std::strncpy(error, "unknown C++ exception", error_len - 1);
  }
  if (!owned) release(context);
  return nullptr;
}
