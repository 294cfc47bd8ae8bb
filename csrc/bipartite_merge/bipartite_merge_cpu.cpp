// ocvtp_native::bipartite_merge.
#include "bipartite_merge/bipartite_merge.h"
#include "common/binding.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> bipartite_merge(Tensor tokens, Tensor keys, Tensor sizes,
                                                   int64_t num_merged, int64_t num_prefix) {
  require("tokens", tokens, {any, any, any}, kernel_dtypes, tokens);
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  require("keys", keys, {batch, num_tokens, any}, tokens.scalar_type(), tokens);
  require("sizes", sizes, {batch, num_tokens}, tokens.scalar_type(), tokens);
  require_range("num_prefix", num_prefix, 0, num_tokens);
  const int64_t odd = num_prefix % 2, first_a = num_prefix + odd, first_b = num_prefix + 1 - odd;
  const int64_t num_a = side_tokens(num_tokens, first_a), num_b = side_tokens(num_tokens, first_b);
  require_range("num_merged", num_merged, 0, num_b > 0 ? num_a : 0);
  tokens = with_unit_stride(tokens);
  keys = with_unit_stride(keys);
  sizes = dense(sizes);
  const int64_t depth = keys.size(2), num_left = num_tokens - num_merged,
                blocks_a = score_blocks(num_a), blocks_b = unit_blocks(num_b);
  const Tensor units = empty(keys, {batch, blocks_b, depth, unit_block});
  const Tensor score = empty(keys, {batch, num_a});
  const Tensor sides = empty(keys, {2, batch, num_a}, ScalarType::Long);
  const Tensor left = empty(keys, {batch, num_left}, ScalarType::Long);
  const Tensor next = empty(keys, {batch, num_tokens}, ScalarType::Long);
  const Tensor merged = empty(tokens, {batch, num_left, width});
  const Tensor merged_sizes = empty(sizes, {batch, num_left});
  const Tensor assignment = empty(tokens, {batch, num_tokens}, ScalarType::Long);
  by_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    const BipartiteMerge<T> arguments{rows<T>(tokens),
                                      rows<T>(keys),
                                      data<T>(sizes),
                                      num_tokens,
                                      width,
                                      depth,
                                      num_merged,
                                      first_a,
                                      first_b,
                                      out<T>(units),
                                      out<T>(score),
                                      out<int64_t>(sides),
                                      out<int64_t>(sides) + batch * num_a,
                                      out<int64_t>(left),
                                      out<int64_t>(next),
                                      out<T>(merged),
                                      out<T>(merged_sizes),
                                      out<int64_t>(assignment)};
    if (num_merged > 0) {
      run(kernels::bipartite_units<T>, arguments, batch * blocks_b, unit_block * depth);
      run(kernels::bipartite_scores<T>, arguments, batch * blocks_a,
          score_block * num_b * std::max<int64_t>(1, depth / 16));
    }
    run(kernels::bipartite_groups<T>, arguments, batch, 8 * num_tokens);
    run(kernels::bipartite_rows<T>, arguments, batch * num_left, width);
  });
  return {merged, merged_sizes, assignment};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // tokens [B,N,C], keys [B,N,D], sizes [B,N] -> merged [B,N-num_merged,C], merged_sizes
  // [B,N-num_merged] and the row that each token went to, int64 [B,N].
  m.def(
      "bipartite_merge(Tensor tokens, Tensor keys, Tensor sizes, int num_merged, int num_prefix)"
      " -> (Tensor merged, Tensor merged_sizes, Tensor owner)");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge));
}

}  // namespace
}  // namespace ocvtp
