// What the CPU bindings share: dense inputs, threads of torch's own pool, float or double.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "common/kernels.h"

namespace ocvtp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// LayerNorm's, in the slot chain; ocvtp_kernels/slots/reference.py names it too.
inline constexpr double layer_norm_eps = 1e-5;

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(dense(*tensor)) : std::nullopt;
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                    std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* out(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Runs body<float>() or body<double>() by the tensor's dtype.
template <class Body>
auto by_dtype(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::Float) return body(float{});
  if (tensor.scalar_type() == ScalarType::Double) return body(double{});
  throw std::invalid_argument("ocvtp_native on the CPU takes float32 and float64");
}

// Elements that are worth waking a thread for.
inline constexpr int64_t grain_elements = 16384;

// Divides `count` parts of about `elements` elements each among the threads.
template <class Kernel, class Arguments>
void run(const Kernel& kernel, const Arguments& arguments, int64_t count, int64_t elements) {
  if (count == 0) return;
  const int64_t grain = std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

// [B, n, m] x [B, m, l] -> [B, n, l], dense.
inline Tensor product(const Tensor& left, const Tensor& right) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left),
                                    torch::stable::detail::from(right)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::bmm", "", stack.data(), TORCH_ABI_VERSION));
  return dense(torch::stable::detail::to<Tensor>(stack[0]));
}

inline Tensor transposed(const Tensor& tensor) { return torch::stable::transpose(tensor, 1, 2); }

}  // namespace ocvtp
