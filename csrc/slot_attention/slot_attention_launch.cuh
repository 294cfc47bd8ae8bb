// The launches of slot_attention, for whatever can launch a kernel: the chip or the emulator.
// Host code; `launch(kernel, blocks, threads, shared_bytes, arguments...)`.
#pragma once

#include <type_traits>

#include "common/softmax_stats_launch.cuh"
#include "slot_attention/slot_attention.cuh"

namespace ocvtp {

// All pointers are to device memory; outputs are contiguous.
template <class T>
struct SlotAttentionJob {
  Competition<T> competition;
  Rows<T> v;  // [B, N, E]
  int64 batch;
  int width;
  float eps;
  T* updates;    // [B, K, E]
  float* mass;   // [B, K]
  T* attention;  // [B, K, N] or null
};

// The launches' own memory, in floats; `standings` in pairs of them.
struct Workspace {
  int64 partial;
  int64 mass;
  int64 standings;
};

// The tile sizes for `num_slots` slots.
struct TileSizes {
  int slots;
  int chunk;
};

template <class T>
TileSizes tile_sizes(int num_slots) {
  return tile_slots(num_slots) == 64 ? TileSizes{64, CompeteShape<T, 64>::kChunk}
                                     : TileSizes{kOneTile, CompeteShape<T, kOneTile>::kChunk};
}

// Whether blocks take all groups, or one each: whose waves of blocks, one on a multiprocessor at a
// time, end first, in tiles. The sums of a group go to memory and back, which costs about two more.
inline bool takes_whole(const Cut& cut, int tiles, int64 parts, int multiprocessors) {
  const int64 whole = ceil_div<int64>(parts, multiprocessors) * tiles;
  const int64 split = ceil_div<int64>(parts * cut.groups, multiprocessors);
  return whole < split * (cut.tiles_per_group + 2);
}

template <class T>
Cut cut_of(const SlotAttentionJob<T>& job, int multiprocessors) {
  const TileSizes sizes = tile_sizes<T>(job.competition.num_slots);
  Cut cut;
  cut.slot_blocks = ceil_div(job.competition.num_slots, sizes.slots);
  cut.chunks = ceil_div(job.width, sizes.chunk);
  const int tiles = ceil_div(job.competition.num_tokens, kTokens);
  cut.tiles_per_group = ceil_div(tiles, kMostGroups);
  cut.groups = ceil_div(tiles, cut.tiles_per_group);
  cut.whole = takes_whole(cut, tiles, job.batch * cut.slot_blocks * cut.chunks, multiprocessors);
  return cut;
}

template <class T>
Workspace workspace_of(const SlotAttentionJob<T>& job, const Cut& cut) {
  const TileSizes sizes = tile_sizes<T>(job.competition.num_slots);
  const int64 rows =
      cut.whole ? 0 : job.batch * cut.slot_blocks * cut.chunks * cut.groups * sizes.slots;
  const bool standings = job.competition.num_slots > kOneTile;
  return {rows * sizes.chunk, rows, standings ? job.batch * job.competition.num_tokens : 0};
}

template <class T, int SLOTS, bool STANDINGS, bool WHOLE, class Launch>
void launch_compete(const Launch& launch, const SlotAttentionJob<T>& job, const Cut& cut,
                    const Standing* standings, const CompeteOutputs<T>& outputs) {
  launch(compete_kernel<T, SLOTS, STANDINGS, WHOLE>,
         job.batch * cut.slot_blocks * cut.chunks * cut.shares(), kThreads,
         CompeteShape<T, SLOTS>::kSharedBytes, job.competition, job.v, job.width, cut, standings,
         outputs);
}

// The competition: one launch, another before it for more slots than a tile holds, and another
// behind it where blocks take one group. The workspace has the sizes of `workspace_of`.
template <class T, class Launch>
void launch_slot_attention(const Launch& launch, const SlotAttentionJob<T>& job, const Cut& cut,
                           float* partial, float* partial_mass, Standing* standings) {
  const Competition<T>& c = job.competition;
  const TileSizes sizes = tile_sizes<T>(c.num_slots);
  const CompeteOutputs<T> outputs{partial,  partial_mass,  job.updates,
                                  job.mass, job.attention, job.eps};
  const auto compete = [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    if (c.num_slots > kOneTile)
      launch_compete<T, kOneTile, true, kWhole>(launch, job, cut, standings, outputs);
    else if (sizes.slots == kOneTile)
      launch_compete<T, kOneTile, false, kWhole>(launch, job, cut, standings, outputs);
    else
      launch_compete<T, 64, false, kWhole>(launch, job, cut, standings, outputs);
  };
  if (c.num_slots > kOneTile) launch_standings(launch, c, job.batch, standings);
  if (cut.whole) return compete(std::true_type{});
  compete(std::false_type{});
  launch(mean_kernel<T>, job.batch * c.num_slots, kMeanThreads, 0,
         static_cast<const float*>(partial), static_cast<const float*>(partial_mass), cut,
         c.num_slots, sizes.slots, job.width, sizes.chunk, job.eps, job.updates, job.mass);
}

}  // namespace ocvtp
