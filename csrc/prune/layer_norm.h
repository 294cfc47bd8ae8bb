// Un-affined LayerNorm of rows (Ba et al. 2016).
#pragma once

#include "common/row_norm.h"

namespace ocvtp {

// Part: rows. out = (x - mean) / sqrt(variance + eps).
template <class E>
struct LayerNorm {
  const E* x;  // [rows, width], rows `stride` apart
  int64_t stride, width;
  Acc<E> eps;
  E* out;  // [rows, width]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class E>
void layer_norm(const LayerNorm<E>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    normalize_row(a.x + row * a.stride, a.width, a.eps, a.out + row * a.width);
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(layer_norm, LayerNorm)
OCVTP_KERNEL_OF_BFLOAT16(layer_norm, LayerNorm)
