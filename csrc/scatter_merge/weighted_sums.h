// scatter_merge of tensors, for the bindings of scatter_merge and of merge.
#pragma once

#include "common/binding.h"
#include "scatter_merge/scatter_merge.h"

namespace ocvtp {

// The sums [B, num_owners, C] and their mass [B, num_owners], of tokens with unit stride and dense
// assignment and weight.
inline std::tuple<Tensor, Tensor> weighted_sums(const Tensor& tokens, const Tensor& assignment,
                                                const Tensor& weight, int64_t num_owners) {
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const Tensor starts = empty(assignment, {batch, num_owners + 1});
  const Tensor members = empty(assignment, {batch, num_tokens});
  const Tensor sums = empty(tokens, {batch, num_owners, width});
  const Tensor mass = empty(tokens, {batch, num_owners});
  by_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    const ScatterMerge<T> arguments{
        rows<T>(tokens), data<T>(weight), data<int64_t>(assignment), num_tokens,
        width,           num_owners,      out<int64_t>(starts),      out<int64_t>(members),
        out<T>(sums),    out<T>(mass)};
    run(kernels::merge_lists<T>, arguments, batch, 2 * num_tokens);
    run(kernels::merge_sums<T>, arguments, batch * num_owners,
        num_tokens * width / std::max<int64_t>(1, num_owners));
  });
  return {sums, mass};
}

}  // namespace ocvtp
