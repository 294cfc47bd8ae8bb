// Each slot's best token: logits, softmax over slots and argmax over tokens in one pass, attention
// never stored. The score is the log-attention of ocvtp_kernels/slots/reference.py.
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

// The best pick of each slot among a tile of tokens, [B, token tiles, K], and each token's highest
// score over slots, evidence [B, N], unless null. Only picks beneath `below` [B, K] count, if it is
// not null: the next best. STANDINGS: the slots are more than a tile, and `standings` has been
// filled. A block takes one image, one block of slots and one tile of tokens.
template <class T, int SLOTS, bool STANDINGS>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    argmax_kernel(const Competition<T> c, const Standing* standings, const uint64* below,
                  uint64* picks, float* evidence) {
  using Shape = LogitsShape<T, SLOTS>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  T* const stage = reinterpret_cast<T*>(bias + Shape::kBias);
  const int tiles = ceil_div(c.num_tokens, kTokens);
  const int slot_blocks = ceil_div(c.num_slots, SLOTS);
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int first_slot = static_cast<int>(blockIdx.x / tiles % slot_blocks) * SLOTS;
  const int image = static_cast<int>(blockIdx.x / tiles / slot_blocks);

  load_bias<T, SLOTS>(c, image, first_slot, bias);
  dot_products<T, SLOTS>(c, image, first_slot, tile * kTokens, logits, stage);
  make_logits<SLOTS>(bias, c.scale, logits);
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const int token = tile * kTokens + lane;
  const bool live_token = token < c.num_tokens;
  Standing stand = {0.0f, 0.0f};
  if (!STANDINGS)
    stand = standing<SLOTS>(logits, reinterpret_cast<float*>(stage), scratch);
  else if (live_token)
    stand = standings[static_cast<int64>(image) * c.num_tokens + token];
  const float rivals = log1pf(stand.others);
  // top - top is 0, and NaN where the leading logit is infinite, as the leader's score is then.
  if (evidence != nullptr && first_slot == 0 && warp == 0 && live_token)
    evidence[static_cast<int64>(image) * c.num_tokens + token] = stand.top - stand.top - rivals;
  constexpr int kAtOnce = 4;
  // Counted, not up to SLOTS: the compiler sees that all lanes stay together.
#pragma unroll 1
  for (int i = 0; i < SLOTS / kWarps; i += kAtOnce) {
    const int row = warp + i * kWarps;
    uint64 pick[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int slot = first_slot + row + j * kWarps;
      const float score = logits[(row + j * kWarps) * kLogitsRow + lane] - stand.top - rivals;
      pick[j] = live_token ? pack_pick(score, token) : 0;
      if (below != nullptr && slot < c.num_slots) {
        const uint64 limit = below[static_cast<int64>(image) * c.num_slots + slot];
        pick[j] = pick[j] < limit ? pick[j] : 0;
      }
    }
    warp_best(pick);
    if (lane == 0)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int slot = first_slot + row + j * kWarps;
        if (slot < c.num_slots)
          picks[(static_cast<int64>(image) * tiles + tile) * c.num_slots + slot] = pick[j];
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
