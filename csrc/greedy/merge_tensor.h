// Weighted sums of tokens by owner on the CPU, for the bindings of more than one stage.
#pragma once

#include "common/binding.h"

namespace ocvtp {

template <class T>
Rows<T> rows(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// The sums [B, num_owners, C] and their mass, of tokens with unit stride, dense weight and owner.
inline std::tuple<Tensor, Tensor> sums_of_owners(const Tensor& tokens, const Tensor& weight,
                                                 const Tensor& owner, int64_t num_owners) {
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const Tensor starts = empty(owner, {batch, num_owners + 1});
  const Tensor members = empty(owner, {batch, num_tokens});
  const Tensor sums = empty(tokens, {batch, num_owners, width});
  const Tensor mass = empty(tokens, {batch, num_owners});
  by_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    const ScatterMerge<T> arguments{
        rows<T>(tokens), data<T>(weight),      data<int64_t>(owner),  num_tokens,   width,
        num_owners,      out<int64_t>(starts), out<int64_t>(members), out<T>(sums), out<T>(mass)};
    run(kernels<T>().merge_lists, arguments, batch, 2 * num_tokens);
    run(kernels<T>().merge_sums, arguments, batch * num_owners,
        num_tokens * width / std::max<int64_t>(1, num_owners));
  });
  return {sums, mass};
}

}  // namespace ocvtp
