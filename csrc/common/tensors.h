// Tensors of the stable ABI as kernels want them: dense copies, new ones, pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>

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

// The same tensor if its last dimension has unit stride, else a dense copy.
inline Tensor with_unit_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : dense(tensor);
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

}  // namespace ocvtp
