// Variance of channels over an image's tokens (ocvtp_kernels/ops/channel_variance), summed in
// double in the order of tokens. Two passes: a small variance needs an exact mean.
#pragma once

#include <algorithm>

#include "common/simd.h"

namespace ocvtp {

// Channels in a block of ChannelVariance: their sums stay in the innermost cache.
inline constexpr int64_t channel_block = 256;
inline int64_t channel_blocks(int64_t width) { return (width + channel_block - 1) / channel_block; }

// Part: blocks of channels of images. Unbiased, NaN of a single token.
template <class T>
struct ChannelVariance {
  Rows<T> tokens;
  int64_t num_tokens, width;
  T* variance;  // [B, width]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void channel_variance(const ChannelVariance<T>& a, int64_t begin, int64_t end) {
  const int64_t blocks = channel_blocks(a.width);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t image = part / blocks, first = part % blocks * channel_block;
    const int64_t count = std::min(channel_block, a.width - first);
    double mean[channel_block] = {}, sum[channel_block] = {};
    for (int64_t n = 0; n < a.num_tokens; ++n) {
      const T* token = a.tokens.at(image, n) + first;
      for (int64_t c = 0; c < count; ++c) mean[c] += double(token[c]);
    }
    for (double& channel : mean) channel /= double(a.num_tokens);
    for (int64_t n = 0; n < a.num_tokens; ++n) {
      const T* token = a.tokens.at(image, n) + first;
      for (int64_t c = 0; c < count; ++c) {
        const double off = double(token[c]) - mean[c];
        sum[c] += off * off;
      }
    }
    for (int64_t c = 0; c < count; ++c)
      a.variance[image * a.width + first + c] = T(sum[c] / double(a.num_tokens - 1));
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(channel_variance, ChannelVariance)
