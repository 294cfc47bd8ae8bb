// Tensors as the CUDA kernels of slot_logits.cuh take them.
#pragma once

#include "common/cuda_binding.cuh"
#include "common/slot_logits.cuh"

namespace ocvtp {

// Rows of images that the kernels read: one and one channel at least.
inline void require_nonempty(const char* name, const Tensor& x) {
  if (x.size(1) < 1 || x.size(2) < 1)
    refuse(name, "at least one row and channel", text_of(x.sizes()));
}

// Checks what only these kernels ask of q and k.
inline void check_slot_logits(const Launcher& launch, const Tensor& q, const Tensor& k) {
  require_nonempty("q", q);
  require_nonempty("k", k);
  STD_TORCH_CHECK(q.scalar_type() != ScalarType::BFloat16 ||
                      launch.attribute(cudaDevAttrComputeCapabilityMajor) >= 8,
                  "ocvtp_native: bfloat16 matrix products need compute capability 8.0");
}

// x [B,count,width] itself, or, where rows do not start at multiples of 16 bytes or are not a
// multiple of them long, a copy whose rows do, with zeros behind them.
inline Tensor packed(const Tensor& x) {
  const int64 bytes = static_cast<int64>(x.element_size());
  const int64 pack = 16 / bytes;
  const int64 width = x.size(2);
  const bool whole = width % pack == 0;
  const auto aligned = [&](int64 dim) { return x.size(dim) == 1 || x.stride(dim) % pack == 0; };
  if (whole && x.stride(2) == 1 && aligned(0) && aligned(1) && address(x) % 16 == 0) return x;
  const std::array<int64_t, 3> sizes{x.size(0), x.size(1), ceil_div(width, pack) * pack};
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.data(), sizes.size());
  Tensor padded = whole ? torch::stable::new_empty(x, shape) : torch::stable::new_zeros(x, shape);
  Tensor here = torch::stable::narrow(padded, 2, 0, width);
  torch::stable::copy_(here, x);
  return padded;
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
SlotLogitsArgs<T> slot_logits_args(const Tensor& q, const Tensor& k, int depth,
                                   const std::optional<Tensor>& constant,
                                   const std::optional<Tensor>& slot_mask, double scale) {
  return {
      rows<T>(q),     rows<T>(k), strided(constant),        data<bool>(slot_mask), int_size(q, 1),
      int_size(k, 1), depth,      static_cast<float>(scale)};
}

}  // namespace ocvtp
