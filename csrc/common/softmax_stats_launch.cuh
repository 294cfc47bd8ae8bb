// Host code of the slot kernels: the size of their tile, and the launch of softmax_stats.
// `launch(kernel, blocks, threads, shared_bytes, arguments...)`, on a GPU or in the emulator.
#pragma once

#include "common/softmax_stats.cuh"

namespace ocvtp {

constexpr int kMaxTileSlots = 128;

inline int tile_slots(int num_slots) { return num_slots <= 64 ? 64 : kMaxTileSlots; }

// The softmax statistics of each token [B, N], for more slots than a tile holds.
template <class T, class Launch>
void launch_softmax_stats(const Launch& launch, const SlotLogitsArgs<T>& logits, int64 batch,
                          SoftmaxStats* stats) {
  launch(softmax_stats_kernel<T, kMaxTileSlots>, batch * ceil_div(logits.num_tokens, kTokens),
         kThreads, LogitsShape<T, kMaxTileSlots>::kSharedBytes, logits, stats);
}

}  // namespace ocvtp
