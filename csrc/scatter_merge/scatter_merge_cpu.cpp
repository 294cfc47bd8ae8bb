// ocvtp_native::scatter_merge.
#include "scatter_merge/weighted_sums.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor> scatter_merge(Tensor tokens, Tensor owner, Tensor weight,
                                         int64_t num_owners) {
  require("tokens", tokens, {any, any, any}, kernel_dtypes, tokens);
  require("owner", owner, {tokens.size(0), tokens.size(1)}, ScalarType::Long, tokens);
  require("weight", weight, {tokens.size(0), tokens.size(1)}, tokens.scalar_type(), tokens);
  require_at_least("num_owners", num_owners, 0);
  return weighted_sums(with_unit_stride(tokens), dense(owner), dense(weight), num_owners);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // tokens [B,N,C], owner int64 [B,N] from -1, weight [B,N] -> sums [B,num_owners,C] and mass
  // [B,num_owners].
  m.def(
      "scatter_merge(Tensor tokens, Tensor owner, Tensor weight, int num_owners)"
      " -> (Tensor sums, Tensor mass)");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("scatter_merge", TORCH_BOX(&scatter_merge));
}

}  // namespace
}  // namespace ocvtp
