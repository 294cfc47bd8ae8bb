// The launches of slot_argmax, for whatever can launch a kernel: the chip or the emulator. Host
// code; `launch` is as in ../slots/slot_attention_launch.cuh.
#pragma once

#include "common/softmax_stats_launch.cuh"
#include "slot_argmax/slot_argmax.cuh"

namespace ocvtp {

constexpr int kBestThreads = 128;

// All pointers are to device memory; outputs and workspace are contiguous.
template <class T>
struct SlotArgmaxJob {
  Competition<T> competition;
  int64 batch;
  int top_k;
  int64* ids;           // [B, K, top_k]; null leaves it at the best pick of each tile, in `picks`
  float* peak;          // [B, K]
  float* evidence;      // [B, N] or null
  uint64* picks;        // workspace [B, token tiles, K]
  uint64* best;         // workspace [B, K]
  Standing* standings;  // workspace [B, N], for more slots than a tile holds
};

// Two launches for each of the top_k ranks, or one for picks by tile, and one before them for many
// slots.
template <class T, class Launch>
void launch_slot_argmax(const Launch& launch, const SlotArgmaxJob<T>& job) {
  const Competition<T>& c = job.competition;
  const int slots = tile_slots(c.num_slots);
  const int tiles = ceil_div(c.num_tokens, kTokens);
  const int64 rows = job.batch * c.num_slots;
  const int64 blocks = job.batch * ceil_div(c.num_slots, slots) * tiles;
  const bool many = c.num_slots > kOneTile;
  if (many) launch_standings(launch, c, job.batch, job.standings);
  for (int rank = 0; rank < job.top_k; ++rank) {
    const auto argmax = [&](auto kernel, int shared_bytes) {
      launch(kernel, blocks, kThreads, shared_bytes, c, static_cast<const Standing*>(job.standings),
             static_cast<const uint64*>(rank == 0 ? nullptr : job.best), job.picks,
             rank == 0 ? job.evidence : nullptr);
    };
    if (many)
      argmax(argmax_kernel<T, kOneTile, true>, LogitsShape<T, kOneTile>::kSharedBytes);
    else if (slots == kOneTile)
      argmax(argmax_kernel<T, kOneTile, false>, LogitsShape<T, kOneTile>::kSharedBytes);
    else
      argmax(argmax_kernel<T, 64, false>, LogitsShape<T, 64>::kSharedBytes);
    if (job.ids == nullptr) return;
    launch(best_kernel<kBestThreads>, ceil_div<int64>(rows, kBestThreads), kBestThreads, 0,
           static_cast<const uint64*>(job.picks), rows, c.num_slots, tiles, rank, job.top_k,
           job.best, job.ids, job.peak);
  }
}

}  // namespace ocvtp
