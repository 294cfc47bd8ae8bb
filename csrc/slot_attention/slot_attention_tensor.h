// Parts of slot_attention on tensors, for the bindings of slot_attention and of merge.
#pragma once

#include <vector>

#include "common/binding.h"
#include "slot_attention/slot_attention.h"

namespace ocvtp {

// The attention [B, K, N], its product included.
inline Tensor attention_of(const Tensor& q, const Tensor& k, const std::optional<Tensor>& constant,
                           const std::optional<Tensor>& slot_mask, double scale) {
  Tensor attention = product(q, transposed(k));
  const int64_t slots = attention.size(1), tokens = attention.size(2);
  by_pipeline_dtype(attention, [&](auto kind) {
    using E = decltype(kind);
    using T = Acc<E>;
    const SlotSoftmax<E> arguments{out<E>(attention),
                                   data<T>(constant),
                                   data<bool>(slot_mask),
                                   slots,
                                   tokens,
                                   T(scale),
                                   nullptr};
    const auto kernel = [&](const SlotSoftmax<E>& shared, int64_t begin, int64_t end) {
      std::vector<T> scratch(static_cast<size_t>(softmax_scratch<E>(slots)));
      SlotSoftmax<E> own = shared;
      own.scratch = scratch.data();
      kernels::slot_softmax<E>(own, begin, end);
    };
    run(kernel, arguments, q.size(0) * token_blocks(tokens), 4 * slots * token_block);
  });
  return attention;
}

// x / (mass + eps) into `to`, and the rows' dot products with y, where both are given.
inline void per_mass(const Tensor& x, const Tensor* y, const Tensor& mass, double eps,
                     const Tensor& to, const Tensor* dot) {
  const int64_t width = x.size(2);
  by_pipeline_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    using T = Acc<E>;
    const PerMass<E> arguments{
        data<E>(x), y ? data<E>(*y) : nullptr,   data<T>(mass), width, T(eps),
        out<E>(to), dot ? out<T>(*dot) : nullptr};
    run(kernels::per_mass<E>, arguments, x.size(0) * x.size(1), width);
  });
}

}  // namespace ocvtp
