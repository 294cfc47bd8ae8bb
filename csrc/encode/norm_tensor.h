// ocvtp_native::layer_norm on the CPU, for the bindings of more than one stage.
#pragma once

#include "common/binding.h"
#include "encode/checks.h"

namespace ocvtp {

inline Tensor layer_norm(Tensor x, double eps) {
  check_layer_norm(x, chain_dtypes);
  const ScalarType dtype = x.scalar_type();
  x = computed(x);
  const int64_t width = x.size(x.dim() - 1);
  Tensor normed = torch::stable::empty_like(x);
  by_dtype(x, [&](auto kind) {
    using T = decltype(kind);
    const LayerNorm<T> arguments{data<T>(x), width, width, T(eps), out<T>(normed)};
    run(kernels<T>().layer_norm, arguments, width ? x.numel() / width : 0, width);
  });
  return in_dtype(normed, dtype);
}

}  // namespace ocvtp
