// A ReLU whose gradient follows another rule. libtorch's own cannot be told so, and tch has no hooks.
//   0  guided backpropagation (Springenberg et al., arXiv:1412.6806): positive gradients where the input was positive
//   1  deconvolution (Zeiler and Fergus, arXiv:1311.2901): positive gradients
#include <ATen/core/Tensor.h>
#include <ATen/ATen.h>
#include <cstring>
#include <torch/csrc/autograd/custom_function.h>

namespace {
struct Relu : torch::autograd::Function<Relu> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, int64_t rule) {
    context->save_for_backward({x});
    context->saved_data["rule"] = rule;
    return x.relu();
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext *context,
                                               torch::autograd::tensor_list grads) {
    auto grad = grads[0].clamp_min(0);
    if (context->saved_data["rule"].toInt() == 0) grad = grad * context->get_saved_variables()[0].gt(0);
    return {grad, at::Tensor()};
  }
};
} // namespace

extern "C" void *lightbox_relu(const void *x, int64_t rule, char *error, size_t error_len) {
  try {
    return new at::Tensor(Relu::apply(*static_cast<const at::Tensor *>(x), rule));
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), error_len - 1);
  } catch (...) {
    std::strncpy(error, "unknown C++ exception", error_len - 1);
  }
  return nullptr;
}
