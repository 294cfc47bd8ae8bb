// Tensors as the slot kernels on CUDA take them.
#pragma once

#include "common/cuda_binding.cuh"
#include "slots/logits.cuh"

namespace ocvtp {

// Checks q [B,K,D] and k [B,N,D] of a dtype that the chip multiplies.
inline void check_competition(const Launcher& launch, const Tensor& q, const Tensor& k) {
  check_dtype(k, q.scalar_type(), "k");
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && q.size(0) == k.size(0) && q.size(2) == k.size(2),
                  "ocvtp_native: q is not [B, K, D] or k not [B, N, D]");
  STD_TORCH_CHECK(q.size(1) > 0 && k.size(1) > 0 && q.size(2) > 0,
                  "ocvtp_native: no slots, tokens or channels");
  STD_TORCH_CHECK(q.scalar_type() != ScalarType::BFloat16 ||
                      launch.attribute(cudaDevAttrComputeCapabilityMajor) >= 8,
                  "ocvtp_native: bfloat16 matrix products need compute capability 8.0");
}

// x [B,count,width] itself, or, where rows do not start at multiples of 16 bytes or are not as
// wide, a copy whose rows do, with zeros behind them.
inline Tensor packed(const Tensor& x) {
  const int64 bytes = static_cast<int64>(x.element_size());
  const int64 pack = 16 / bytes;
  const int64 width = x.size(2);
  const bool whole = width % pack == 0;
  const auto aligned = [&](int64 dim) { return x.size(dim) == 1 || x.stride(dim) % pack == 0; };
  if (whole && x.stride(2) == 1 && aligned(0) && aligned(1) && address(x) % 16 == 0) return x;
  const std::array<int64_t, 3> sizes{x.size(0), x.size(1), ceil_div(width, pack) * pack};
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.data(), sizes.size());
  Tensor wide = whole ? torch::stable::new_empty(x, shape) : torch::stable::new_zeros(x, shape);
  Tensor here = torch::stable::narrow(wide, 2, 0, width);
  torch::stable::copy_(here, x);
  return wide;
}

// Of a `packed` tensor.
template <class T>
Rows<T> rows(const Tensor& x) {
  return {data<T>(x), x.stride(0), x.stride(1)};
}

// Of a tensor [B,K].
inline PerSlot strided(const std::optional<Tensor>& x) {
  return x ? PerSlot{data<float>(*x), x->stride(0), x->stride(1)} : PerSlot{};
}

// The tensors stay with the caller: `packed` q and k, a constant of any strides, a dense mask.
template <class T>
Competition<T> competition_of(const Tensor& q, const Tensor& k, int depth,
                              const std::optional<Tensor>& constant,
                              const std::optional<Tensor>& slot_mask, double scale) {
  return {
      rows<T>(q),     rows<T>(k), strided(constant),        data<bool>(slot_mask), int_size(q, 1),
      int_size(k, 1), depth,      static_cast<float>(scale)};
}

// The constant or mask itself, checked: [B,K].
inline std::optional<Tensor> per_slot(const std::optional<Tensor>& tensor, const Tensor& q,
                                      ScalarType dtype, const char* name) {
  if (!tensor) return std::nullopt;
  check_dtype(*tensor, dtype, name);
  STD_TORCH_CHECK(
      tensor->dim() == 2 && tensor->size(0) == q.size(0) && tensor->size(1) == q.size(1),
      "ocvtp_native: ", name, " is not [B, K]");
  return tensor;
}

}  // namespace ocvtp
