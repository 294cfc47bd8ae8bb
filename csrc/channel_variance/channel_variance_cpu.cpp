// ocvtp_native::channel_variance.
#include "channel_variance/channel_variance.h"
#include "common/binding.h"

namespace ocvtp {
namespace {

Tensor channel_variance(Tensor tokens) {
  require("tokens", tokens, {any, any, any}, kernel_dtypes, tokens);
  tokens = with_unit_stride(tokens);
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const Tensor variance = empty(tokens, {batch, width});
  by_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    run(kernels::channel_variance<T>,
        ChannelVariance<T>{rows<T>(tokens), num_tokens, width, out<T>(variance)},
        batch * channel_blocks(width), 2 * num_tokens * channel_block);
  });
  return variance;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // tokens [B,N,C] -> [B,C].
  m.def("channel_variance(Tensor tokens) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("channel_variance", TORCH_BOX(&channel_variance));
}

}  // namespace
}  // namespace ocvtp
