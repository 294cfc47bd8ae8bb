// The launches of slot_argmax: host code, for a GPU or the emulator; `launch` is as in
// common/softmax_stats_launch.cuh.
#pragma once

#include "common/softmax_stats_launch.cuh"
#include "slot_argmax/slot_argmax.cuh"

namespace ocvtp {

constexpr int kBestThreads = 128;

// All pointers are to device memory; outputs and workspace are contiguous.
template <class T>
struct SlotArgmaxJob {
  SlotLogitsArgs<T> logits;
  int64 batch;
  int top_k;
  int64* ids;           // [B, K, top_k]; null if the best pick of each tile, in `picks`, is enough
  float* peak;          // [B, K]
  float* token_score;   // [B, N] or null
  uint64* picks;        // workspace [B, token tiles, K]
  uint64* best;         // workspace [B, K]
  SoftmaxStats* stats;  // workspace [B, N], for more slots than a tile holds
};

// Two launches for each of the top_k ranks, or one for picks by tile; one more before them for more
// slots than a tile holds.
template <class T, class Launch>
void launch_slot_argmax(const Launch& launch, const SlotArgmaxJob<T>& job) {
  const SlotLogitsArgs<T>& args = job.logits;
  const int slots = tile_slots(args.num_slots);
  const int tiles = ceil_div(args.num_tokens, kTokens);
  const int64 rows = job.batch * args.num_slots;
  const int64 blocks = job.batch * ceil_div(args.num_slots, slots) * tiles;
  const bool many = args.num_slots > kMaxTileSlots;
  if (many) launch_softmax_stats(launch, args, job.batch, job.stats);
  for (int rank = 0; rank < job.top_k; ++rank) {
    const auto argmax = [&](auto kernel, int shared_bytes) {
      launch(kernel, blocks, kThreads, shared_bytes, args,
             static_cast<const SoftmaxStats*>(job.stats),
             static_cast<const uint64*>(rank == 0 ? nullptr : job.best), job.picks,
             rank == 0 ? job.token_score : nullptr);
    };
    if (many)
      argmax(argmax_kernel<T, kMaxTileSlots, true>, LogitsShape<T, kMaxTileSlots>::kSharedBytes);
    else if (slots == kMaxTileSlots)
      argmax(argmax_kernel<T, kMaxTileSlots, false>, LogitsShape<T, kMaxTileSlots>::kSharedBytes);
    else
      argmax(argmax_kernel<T, 64, false>, LogitsShape<T, 64>::kSharedBytes);
    if (job.ids == nullptr) return;
    launch(best_kernel<kBestThreads>, ceil_div<int64>(rows, kBestThreads), kBestThreads, 0,
           static_cast<const uint64*>(job.picks), rows, args.num_slots, tiles, rank, job.top_k,
           job.best, job.ids, job.peak);
  }
}

}  // namespace ocvtp
