// Rows of a tensor [..., width] as the row kernels take them.
#pragma once

#include "common/cuda_binding.cuh"
#include "common/row_norm.cuh"

namespace ocvtp {

struct Rows2 {
  Tensor tensor;  // the one asked for, or a dense copy where its strides fall into no two levels
  RowLayout layout;
  int64 count;
  int width;
  bool copied;

  // Whether all rows can be read in words of `elements`.
  bool in_packs_of(int elements, int64 element_bytes) const {
    return divides(elements, {width, layout.outer_stride, layout.inner_stride}) &&
           divides(elements * element_bytes, {address(tensor)});
  }
};

// `levels` 1 or 2: how many strides the kernel can follow; with 1 it is `inner_stride`.
inline Rows2 rows_of(const Tensor& x, int levels) {
  const int64 last = x.dim() - 1;
  const int width = int_size(x, last);
  const int64 count = width ? x.numel() / width : 0;
  std::vector<std::array<int64, 2>> dims;  // {size, stride}, innermost first
  for (int64 dim = last - 1; dim >= 0; --dim) {
    if (x.size(dim) == 1) continue;
    if (!dims.empty() && x.stride(dim) == dims.back()[0] * dims.back()[1])
      dims.back()[0] *= x.size(dim);
    else
      dims.push_back({x.size(dim), x.stride(dim)});
  }
  const bool unit = width <= 1 || x.stride(last) == 1;
  if (count > 0 && (!unit || dims.size() > static_cast<std::size_t>(levels)))
    return {torch::stable::contiguous(x), {count, 0, width}, count, width, true};
  RowLayout layout{std::max<int64>(count, 1), 0, 0};
  if (!dims.empty()) layout = {std::max<int64>(dims[0][0], 1), 0, dims[0][1]};
  if (dims.size() == 2) layout.outer_stride = dims[1][1];
  return {x, layout, count, width, false};
}

// Channels of a row that a norm keeps in shared memory: within what is granted without a request.
constexpr int kMaxNormWidth = 8192;

inline void check_width(int width) {
  STD_TORCH_CHECK(width <= kMaxNormWidth, "ocvtp_native: slots of ", width,
                  " channels, the most is ", kMaxNormWidth);
}

}  // namespace ocvtp
