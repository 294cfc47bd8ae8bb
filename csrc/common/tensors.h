// Tensors of the stable ABI as kernels want them: dense copies, new ones, pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

namespace ocvtp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Of the LayerNorms of slots, as in ocvtp_kernels/ops/slot_attention.
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

// Of a tensor [..., width]: its rows, and one of other rows for each of them.
inline int64_t num_rows(const Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) rows *= tensor.size(dim);
  return rows;
}

inline Tensor empty_rows(const Tensor& rows, int64_t width, ScalarType dtype) {
  std::vector<int64_t> sizes(rows.sizes().begin(), rows.sizes().end());
  sizes.back() = width;
  return torch::stable::new_empty(rows, {sizes.data(), sizes.size()}, dtype);
}

inline int64_t row_stride(const Tensor& tensor) {
  return tensor.dim() > 1 ? tensor.stride(tensor.dim() - 2) : 0;
}

// Whether rows are dense and each starts `row_stride` after the one before.
inline bool has_one_row_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) return false;
  int64_t next = row_stride(tensor);
  for (int64_t dim = last - 1; dim >= 0; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != next) return false;
    next *= tensor.size(dim);
  }
  return true;
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
