// Host code of the slot kernels: which tile they take, and the launch of their first pass.
// `launch(kernel, blocks, threads, shared_bytes, arguments...)`, on a GPU or in the emulator.
#pragma once

#include "common/softmax_stats.cuh"

namespace ocvtp {

constexpr int kOneTile = 128;  // most slots that a tile holds

inline int tile_slots(int num_slots) { return num_slots <= 64 ? 64 : kOneTile; }

// Each token's standing [B, N], for more slots than a tile holds.
template <class T, class Launch>
void launch_standings(const Launch& launch, const Competition<T>& competition, int64 batch,
                      Standing* standings) {
  launch(standings_kernel<T, kOneTile>, batch * ceil_div(competition.num_tokens, kTokens), kThreads,
         LogitsShape<T, kOneTile>::kSharedBytes, competition, standings);
}

}  // namespace ocvtp
