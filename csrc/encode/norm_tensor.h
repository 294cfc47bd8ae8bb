// ocvtp_native::layer_norm on the CPU, for the bindings of more than one stage.
#pragma once

#include "common/binding.h"
#include "encode/checks.h"

namespace ocvtp {

inline Tensor layer_norm(Tensor x, double eps) {
  check_layer_norm(x, chain_dtypes);
  x = dense(x);
  const int64_t width = x.size(x.dim() - 1);
  Tensor normed = torch::stable::empty_like(x);
  by_chain_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const LayerNorm<E> arguments{data<E>(x), width, width, Wide<E>(eps), out<E>(normed)};
    run(kernels<E>().layer_norm, arguments, width ? x.numel() / width : 0, width);
  });
  return normed;
}

}  // namespace ocvtp
