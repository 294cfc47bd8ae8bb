// The launches of slot_attention, for whatever can launch a kernel: the chip or the emulator.
// Host code; `launch(kernel, blocks, threads, shared_bytes, arguments...)`.
#pragma once

#include "slot_attention.cuh"

namespace ocvtp {

constexpr int kOneTile = 128;  // most slots that a tile holds

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

inline int tile_slots(int num_slots) { return num_slots <= 64 ? 64 : kOneTile; }

template <class T>
TileSizes tile_sizes(int num_slots) {
  return tile_slots(num_slots) == 64 ? TileSizes{64, CompeteShape<T, 64>::kChunk}
                                     : TileSizes{kOneTile, CompeteShape<T, kOneTile>::kChunk};
}

// Blocks take all groups of tokens where images, slots and channels alone fill the chip: the sums
// are the same, and the workspace is not multiplied by the groups.
template <class T>
Cut cut_of(const SlotAttentionJob<T>& job, int multiprocessors) {
  const TileSizes sizes = tile_sizes<T>(job.competition.num_slots);
  Cut cut;
  cut.slot_blocks = ceil_div(job.competition.num_slots, sizes.slots);
  cut.chunks = ceil_div(job.width, sizes.chunk);
  const int tiles = ceil_div(job.competition.num_tokens, kTokens);
  cut.tiles_per_group = ceil_div(tiles, kMostGroups);
  cut.groups = ceil_div(tiles, cut.tiles_per_group);
  const bool fills = job.batch * cut.slot_blocks * cut.chunks >= multiprocessors;
  cut.groups_per_block = fills ? cut.groups : 1;
  return cut;
}

template <class T>
Workspace workspace_of(const SlotAttentionJob<T>& job, const Cut& cut) {
  const TileSizes sizes = tile_sizes<T>(job.competition.num_slots);
  const int64 blocks = job.batch * cut.slot_blocks * cut.chunks * cut.shares();
  const bool standings = job.competition.num_slots > kOneTile;
  return {blocks * sizes.slots * sizes.chunk, blocks * sizes.slots,
          standings ? job.batch * job.competition.num_tokens : 0};
}

// Each token's standing [B, N], for more slots than a tile holds.
template <class T, class Launch>
void launch_standings(const Launch& launch, const Competition<T>& competition, int64 batch,
                      Standing* standings) {
  launch(standings_kernel<T, kOneTile>, batch * ceil_div(competition.num_tokens, kTokens), kThreads,
         LogitsShape<T, kOneTile>::kSharedBytes, competition, standings);
}

// The competition in two launches, or three. The workspace has the sizes of `workspace_of`.
template <class T, class Launch>
void launch_slot_attention(const Launch& launch, const SlotAttentionJob<T>& job, const Cut& cut,
                           float* partial, float* partial_mass, Standing* standings) {
  const Competition<T>& c = job.competition;
  const TileSizes sizes = tile_sizes<T>(c.num_slots);
  const int64 blocks = job.batch * cut.slot_blocks * cut.chunks * cut.shares();
  const auto compete = [&](auto kernel, int shared_bytes) {
    launch(kernel, blocks, kThreads, shared_bytes, c, job.v, job.width, cut,
           static_cast<const Standing*>(standings), partial, partial_mass, job.attention);
  };
  if (c.num_slots > kOneTile) {
    launch_standings(launch, c, job.batch, standings);
    compete(compete_kernel<T, kOneTile, true>, CompeteShape<T, kOneTile>::kSharedBytes);
  } else if (sizes.slots == kOneTile) {
    compete(compete_kernel<T, kOneTile, false>, CompeteShape<T, kOneTile>::kSharedBytes);
  } else {
    compete(compete_kernel<T, 64, false>, CompeteShape<T, 64>::kSharedBytes);
  }
  launch(mean_kernel<T>, job.batch * c.num_slots, kMeanThreads, 0,
         static_cast<const float*>(partial), static_cast<const float*>(partial_mass), cut,
         c.num_slots, sizes.slots, job.width, sizes.chunk, job.eps, job.updates, job.mass);
}

}  // namespace ocvtp
