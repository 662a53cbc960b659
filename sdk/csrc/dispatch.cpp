// libtorch's dispatcher: an operator by its name, what its schema says of its arguments, and a boxed call. tch has no way to
// call an operator that is known at run time only.
#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <cstring>
#include <sstream>

namespace {
// As `Raw` in src/dispatch.rs.
enum Tag : int32_t { Default, None, Tensor, Int, Double, Bool, Str, Ints, Doubles, Bools, Tensors, Device };
struct Raw {
  int32_t tag;
  int32_t len;      // of what `data` points to; of Device its index
  int64_t integer;  // Int, Bool; of Device its type
  double number;
  const void *data; // Tensor: at::Tensor*; Str: bytes; Ints, Doubles, Bools: numbers; Tensors: at::Tensor*, null for none
};

c10::TypePtr inner(c10::TypePtr type) {
  while (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type;
}

// What was given, as the schema's type wants it.
c10::IValue value(const Raw &raw, const c10::Argument &argument) {
  auto type = inner(argument.type());
  auto list = type->cast<c10::ListType>();
  bool wrap = type->kind() == c10::TypeKind::TensorType;
  // A number where a tensor is expected (`x * 0.5`) promotes types as a number does.
  auto wrapped = [](const c10::Scalar &n) { return at::native::wrapped_scalar_tensor(n); };
  auto tensor = [](const void *p) { return p ? *static_cast<const at::Tensor *>(p) : at::Tensor(); };
  switch (raw.tag) {
  case Default:
    TORCH_CHECK(argument.default_value(), "argument ", argument.name(), " is missing");
    return *argument.default_value();
  case None:
    return {};
  case Tensor:
    return tensor(raw.data);
  case Int:
    if (wrap) return wrapped(raw.integer);
    if (type->kind() == c10::TypeKind::FloatType) return static_cast<double>(raw.integer);
    if (type->kind() == c10::TypeKind::BoolType) return raw.integer != 0;
    if (list) return c10::List<int64_t>(std::vector<int64_t>(argument.N().value_or(1), raw.integer));
    return raw.integer;
  case Double:
    if (wrap) return wrapped(raw.number);
    if (list) return c10::List<double>(std::vector<double>(argument.N().value_or(1), raw.number));
    return raw.number;
  case Bool:
    if (wrap) return wrapped(raw.integer != 0);
    return raw.integer != 0;
  case Str:
    return std::string(static_cast<const char *>(raw.data), raw.len);
  case Ints: {
    auto p = static_cast<const int64_t *>(raw.data);
    if (list && list->getElementType()->kind() == c10::TypeKind::FloatType)
      return c10::List<double>(std::vector<double>(p, p + raw.len));
    return c10::List<int64_t>(std::vector<int64_t>(p, p + raw.len));
  }
  case Doubles: {
    auto p = static_cast<const double *>(raw.data);
    return c10::List<double>(std::vector<double>(p, p + raw.len));
  }
  case Bools: {
    c10::List<bool> made;
    for (int i = 0; i < raw.len; i++) made.push_back(static_cast<const int64_t *>(raw.data)[i] != 0);
    return made;
  }
  case Tensors: {
    auto p = static_cast<const void *const *>(raw.data);
    if (list && list->getElementType()->kind() == c10::TypeKind::OptionalType) {
      c10::List<std::optional<at::Tensor>> made;
      for (int i = 0; i < raw.len; i++)
        made.push_back(p[i] ? std::optional<at::Tensor>(tensor(p[i])) : std::nullopt);
      return made;
    }
    c10::List<at::Tensor> made;
    for (int i = 0; i < raw.len; i++) made.push_back(tensor(p[i]));
    return made;
  }
  case Device:
    return c10::Device(static_cast<c10::DeviceType>(raw.integer), static_cast<c10::DeviceIndex>(raw.len));
  }
  TORCH_CHECK(false, "an argument of tag ", raw.tag);
}

// Results, one after the other: a list is Tensors with its length, then its tensors.
void give(const c10::IValue &v, std::vector<Raw> &out) {
  auto tensor = [&](const at::Tensor &t) {
    out.push_back({Tensor, 0, 0, 0, t.defined() ? new at::Tensor(t) : nullptr});
  };
  if (v.isTensor()) tensor(v.toTensor());
  else if (v.isInt()) out.push_back({Int, 0, v.toInt(), 0, nullptr});
  else if (v.isSymInt()) out.push_back({Int, 0, v.toSymInt().guard_int(__FILE__, __LINE__), 0, nullptr});
  else if (v.isDouble()) out.push_back({Double, 0, 0, v.toDouble(), nullptr});
  else if (v.isBool()) out.push_back({Bool, 0, v.toBool(), 0, nullptr});
  else if (v.isNone()) out.push_back({None, 0, 0, 0, nullptr});
  else if (v.isTensorList()) {
    auto list = v.toTensorList();
    out.push_back({Tensors, static_cast<int32_t>(list.size()), 0, 0, nullptr});
    for (const at::Tensor &t : list) tensor(t);
  } else TORCH_CHECK(false, "a result of type ", v.tagKind());
}

template <class F> int64_t caught(char *error, size_t len, F f) {
  try {
    return f();
  } catch (const c10::Error &e) {
    std::strncpy(error, e.what_without_backtrace(), len - 1);
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), len - 1);
  } catch (...) {
    std::strncpy(error, "unknown C++ exception", len - 1);
  }
  return -1;
}
} // namespace

// 1 and a handle, or 0 where libtorch has no such operator. `text` becomes its arguments, a line each: `NAME ALIAS`, ALIAS `-`
// for none, `r` for what the result is a view of, `w` for what is written to.
extern "C" int64_t lightbox_operator_find(const char *name, const char *overload, void **op, char *text, size_t text_len,
                                          char *error, size_t len) {
  return caught(error, len, [&]() -> int64_t {
    auto found = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!found) return 0;
    std::ostringstream s;
    for (auto &a : found->schema().arguments()) {
      auto alias = a.alias_info();
      s << a.name() << ' ' << (!alias ? '-' : alias->isWrite() ? 'w' : 'r') << '\n';
    }
    auto lines = s.str();
    TORCH_CHECK(lines.size() < text_len, "the schema is too long");
    std::strcpy(text, lines.c_str());
    *op = new c10::OperatorHandle(*found);
    return 1;
  });
}

extern "C" void lightbox_operator_free(void *op) { delete static_cast<c10::OperatorHandle *>(op); }

// The number of results in `out`, whose tensors the caller owns; negative for an error.
extern "C" int64_t lightbox_operator_call(const void *op, const Raw *args, size_t n, Raw *out, size_t out_len, char *error,
                                          size_t len) {
  return caught(error, len, [&]() -> int64_t {
    auto &handle = *static_cast<const c10::OperatorHandle *>(op);
    auto &arguments = handle.schema().arguments();
    TORCH_CHECK(arguments.size() == n, n, " arguments for ", handle.schema());
    torch::jit::Stack stack;
    stack.reserve(n);
    for (size_t i = 0; i < n; i++) stack.push_back(value(args[i], arguments[i]));
    handle.callBoxed(&stack);
    size_t count = 0;
    for (auto &v : stack) count += v.isTensorList() ? v.toTensorList().size() + 1 : 1;
    TORCH_CHECK(count <= out_len, count, " results are too many");
    std::vector<Raw> made;
    made.reserve(count);
    for (auto &v : stack) give(v, made);
    std::copy(made.begin(), made.end(), out);
    return static_cast<int64_t>(made.size());
  });
}
