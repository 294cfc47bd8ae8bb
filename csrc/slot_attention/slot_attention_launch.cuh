// The launches of slot_attention: host code, for a GPU or the emulator;
// `launch(kernel, blocks, threads, shared_bytes, arguments...)`.
#pragma once

#include <type_traits>

#include "common/softmax_stats_launch.cuh"
#include "slot_attention/slot_attention.cuh"

namespace ocvtp {

// All pointers are to device memory; outputs are contiguous.
template <class T>
struct SlotAttentionJob {
  SlotLogitsArgs<T> logits;
  Rows<T> v;  // [B, N, E]
  int64 batch;
  int width;
  float eps;
  T* updates;    // [B, K, E]
  float* mass;   // [B, K]
  T* attention;  // [B, K, N] or null
};

// Elements of the workspace: floats, and pairs of them for `stats`.
struct Workspace {
  int64 partial_acc;
  int64 mass;
  int64 stats;
};

// The tile sizes for `num_slots` slots.
struct TileSizes {
  int slots;
  int chunk;
};

template <class T>
TileSizes tile_sizes(int num_slots) {
  return tile_slots(num_slots) == 64
             ? TileSizes{64, SlotAttentionShape<T, 64>::kChunk}
             : TileSizes{kMaxTileSlots, SlotAttentionShape<T, kMaxTileSlots>::kChunk};
}

// Whether blocks take all splits or one each: which has fewer tiles in its waves of blocks, one
// block on a multiprocessor at a time. The sums of a split go through memory, at the cost of two
// tiles.
inline bool prefers_single_block(const SplitPlan& plan, int tiles, int64 parts,
                                 int multiprocessors) {
  const int64 whole = ceil_div<int64>(parts, multiprocessors) * tiles;
  const int64 split = ceil_div<int64>(parts * plan.num_splits, multiprocessors);
  return whole < split * (plan.tiles_per_split + 2);
}

template <class T>
SplitPlan split_plan(const SlotAttentionJob<T>& job, int multiprocessors) {
  const TileSizes sizes = tile_sizes<T>(job.logits.num_slots);
  SplitPlan plan;
  plan.slot_blocks = ceil_div(job.logits.num_slots, sizes.slots);
  plan.chunks = ceil_div(job.width, sizes.chunk);
  const int tiles = ceil_div(job.logits.num_tokens, kTokens);
  plan.tiles_per_split = ceil_div(tiles, kMaxSplits);
  plan.num_splits = ceil_div(tiles, plan.tiles_per_split);
  plan.single_block = prefers_single_block(plan, tiles, job.batch * plan.slot_blocks * plan.chunks,
                                           multiprocessors);
  return plan;
}

template <class T>
Workspace workspace_of(const SlotAttentionJob<T>& job, const SplitPlan& plan) {
  const TileSizes sizes = tile_sizes<T>(job.logits.num_slots);
  const int64 rows = plan.single_block ? 0
                                       : job.batch * plan.slot_blocks * plan.chunks *
                                             plan.num_splits * sizes.slots;
  const bool stats = job.logits.num_slots > kMaxTileSlots;
  return {rows * sizes.chunk, rows, stats ? job.batch * job.logits.num_tokens : 0};
}

template <class T, int SLOTS, bool GIVEN_STATS, bool SINGLE_BLOCK, class Launch>
void launch_tiles(const Launch& launch, const SlotAttentionJob<T>& job, const SplitPlan& plan,
                  const SoftmaxStats* stats, const SlotAttentionOutputs<T>& outputs) {
  launch(slot_attention_kernel<T, SLOTS, GIVEN_STATS, SINGLE_BLOCK>,
         job.batch * plan.slot_blocks * plan.chunks * plan.split_blocks(), kThreads,
         SlotAttentionShape<T, SLOTS>::kSharedBytes, job.logits, job.v, job.width, plan, stats,
         outputs);
}

// One launch, one more before it for more slots than a tile holds, and one more after it where
// blocks take one split. The workspace has the sizes of `workspace_of`.
template <class T, class Launch>
void launch_slot_attention(const Launch& launch, const SlotAttentionJob<T>& job,
                           const SplitPlan& plan, float* partial_acc, float* partial_mass,
                           SoftmaxStats* stats) {
  const SlotLogitsArgs<T>& args = job.logits;
  const TileSizes sizes = tile_sizes<T>(args.num_slots);
  const SlotAttentionOutputs<T> outputs{partial_acc, partial_mass,  job.updates,
                                        job.mass,    job.attention, job.eps};
  const auto attention = [&](auto whole) {
    constexpr bool kSingleBlock = decltype(whole)::value;
    if (args.num_slots > kMaxTileSlots)
      launch_tiles<T, kMaxTileSlots, true, kSingleBlock>(launch, job, plan, stats, outputs);
    else if (sizes.slots == kMaxTileSlots)
      launch_tiles<T, kMaxTileSlots, false, kSingleBlock>(launch, job, plan, stats, outputs);
    else
      launch_tiles<T, 64, false, kSingleBlock>(launch, job, plan, stats, outputs);
  };
  if (args.num_slots > kMaxTileSlots) launch_softmax_stats(launch, args, job.batch, stats);
  if (plan.single_block) return attention(std::true_type{});
  attention(std::false_type{});
  launch(mean_kernel<T>, job.batch * args.num_slots, kMeanThreads, 0,
         static_cast<const float*>(partial_acc), static_cast<const float*>(partial_mass), plan,
         args.num_slots, sizes.slots, job.width, sizes.chunk, job.eps, job.updates, job.mass);
}

}  // namespace ocvtp
