// Each slot's best token: logits, softmax over slots and argmax over tokens in one pass, attention
// never stored. The score is the log-attention of ocvtp_kernels/ops/slot_attention/reference.py.
#pragma once

#include "common/packed_picks.cuh"
#include "common/slot_logits.cuh"

namespace ocvtp {

// The best of each pick over a warp, in every lane.
template <int COUNT>
__device__ __forceinline__ void warp_best(uint64 (&pick)[COUNT]) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const uint64 other = __shfl_xor_sync(kFullWarp, pick[i], step);
      pick[i] = other > pick[i] ? other : pick[i];
    }
}

// The best pick of each slot in a tile of tokens, [B, token tiles, K], and the highest score of
// each token over slots, token_score [B, N], unless null. With `below` [B, K] only picks lower than
// that count. GIVEN_STATS: there are more slots than a tile holds, and `given_stats` is filled. A
// block takes one image, one block of slots and one tile of tokens.
template <class T, int SLOTS, bool GIVEN_STATS>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    argmax_kernel(const SlotLogitsArgs<T> args, const SoftmaxStats* given_stats,
                  const uint64* below, uint64* picks, float* token_score) {
  using Shape = LogitsShape<T, SLOTS>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  T* const stage = reinterpret_cast<T*>(bias + Shape::kBias);
  const int tiles = ceil_div(args.num_tokens, kTokens);
  const int slot_blocks = ceil_div(args.num_slots, SLOTS);
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int first_slot = static_cast<int>(blockIdx.x / tiles % slot_blocks) * SLOTS;
  const int image = static_cast<int>(blockIdx.x / tiles / slot_blocks);

  load_bias<T, SLOTS>(args, image, first_slot, bias);
  dot_products<T, SLOTS>(args, image, first_slot, tile * kTokens, logits, stage);
  make_logits<SLOTS>(bias, args.scale, logits);
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const int token = tile * kTokens + lane;
  const bool mask_token = token < args.num_tokens;
  SoftmaxStats stats = {0.0f, 0.0f};
  if (!GIVEN_STATS)
    stats = tile_stats<SLOTS>(logits, reinterpret_cast<float*>(stage), scratch);
  else if (mask_token)
    stats = given_stats[static_cast<int64>(image) * args.num_tokens + token];
  const float log_rest = log1pf(stats.rest_sum);
  // row_max - row_max is 0, or NaN where it is infinite, as the score of its slot is then.
  if (token_score != nullptr && first_slot == 0 && warp == 0 && mask_token)
    token_score[static_cast<int64>(image) * args.num_tokens + token] =
        stats.row_max - stats.row_max - log_rest;
  constexpr int kAtOnce = 4;
  // A loop counter that is the same in all lanes: the compiler sees no divergence.
#pragma unroll 1
  for (int i = 0; i < SLOTS / kWarps; i += kAtOnce) {
    const int row = warp + i * kWarps;
    uint64 pick[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int slot = first_slot + row + j * kWarps;
      const float score = logits[(row + j * kWarps) * kLogitsRow + lane] - stats.row_max - log_rest;
      pick[j] = mask_token ? pack_pick(score, token) : 0;
      if (below != nullptr && slot < args.num_slots) {
        const uint64 limit = below[static_cast<int64>(image) * args.num_slots + slot];
        pick[j] = pick[j] < limit ? pick[j] : 0;
      }
    }
    warp_best(pick);
    if (lane == 0)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int slot = first_slot + row + j * kWarps;
        if (slot < args.num_slots)
          picks[(static_cast<int64>(image) * tiles + tile) * args.num_slots + slot] = pick[j];
      }
  }
}

// The best over the tiles of tokens: one thread a slot of an image. Writes `best` [B, K], which is
// the next launch's `below`, the id in column `rank` of ids [B, K, ranks], and, for rank 0, the
// score as peak [B, K].
template <int THREADS>
__global__ void __launch_bounds__(THREADS)
    best_kernel(const uint64* picks, const int64 num_rows, const int num_slots, const int tiles,
                const int rank, const int ranks, uint64* best, int64* ids, float* peak) {
  const int64 row = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
  if (row >= num_rows) return;
  const uint64* const from = picks + row / num_slots * tiles * num_slots + row % num_slots;
  uint64 pick = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const uint64 other = from[static_cast<int64>(tile) * num_slots];
    pick = other > pick ? other : pick;
  }
  best[row] = pick;
  ids[row * ranks + rank] = pick_token(pick);
  if (rank == 0) peak[row] = pick_score(pick);
}

}  // namespace ocvtp
