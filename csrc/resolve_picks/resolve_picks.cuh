// From picks to exactly `budget` ascending ids and their rows, in one launch: every block of an
// image resolves by itself, in shared memory, and copies its part of the rows. The rule is that
// of ocvtp_kernels/ops/argmax_gather::resolve_picks, in integers, so nothing rounds.
#pragma once

#include "resolve_picks/radix_select.cuh"

namespace ocvtp {

constexpr int kResolveTokens = 16384;  // two 16-bit counts share an int below
constexpr int kResolvePicks = 65535;   // a pick's index has 16 bits, the last value is kUnpicked

constexpr int kPackedSlots = 2048;  // more would not fit beside kResolveTokens

struct ResolveArguments {
  const int64* picks;    // [B,K,top_k], a slot's best first
  Scores peak;           // [B,K]
  const uint64* packed;  // [B,tiles,K] with PACKED, in place of both: a slot's best of each tile
  Scores importance;     // [B,N], or no data
  int64* ids;            // [B,budget]
  int tiles;
  int num_slots, top_k, num_tokens, budget;
  int parts;  // blocks an image
  // For the gather alone, in bytes; `unit` divides every one of them.
  const unsigned char* final;  // [B,N,row_bytes]
  unsigned char* tokens;       // [B,budget,row_bytes]
  int64 final_image_stride, final_row_stride, row_bytes;
  int unit;
};

__host__ __device__ constexpr int rows_per_part(int budget, int parts) {
  return ceil_div(budget, parts);
}

// Shared memory: packed picks, the best pick of each token, and the rows that the block copies.
__host__ __device__ constexpr int resolve_shared_bytes(int num_tokens, int rows,
                                                       int packed_slots = 0) {
  return packed_slots * 8 + ceil_div(num_tokens * 2, 4) * 4 + rows * 4;
}

// Each slot's best pick over the tiles of tokens. To be followed by a barrier.
__device__ __forceinline__ void find_slot_picks(const ResolveArguments& a, int64 image,
                                                uint64* slot_picks) {
  constexpr int kAtOnce = 6;  // loads in flight
  for (int slot = threadIdx.x; slot < a.num_slots; slot += kResolveThreads) {
    const uint64* const from = a.packed + image * a.tiles * a.num_slots + slot;
    uint64 best = 0;
    for (int tile = 0; tile < a.tiles; tile += kAtOnce) {
      uint64 pick[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        pick[i] = tile + i < a.tiles ? from[static_cast<int64>(tile + i) * a.num_slots] : 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) best = pick[i] > best ? pick[i] : best;
    }
    slot_picks[slot] = best;
  }
}

// best[token] = its first pick by peak, then rank within the slot.
template <bool PACKED>
__device__ __forceinline__ void find_best_picks(const ResolveArguments& a, int64 image,
                                                uint64* slot_picks, unsigned short* best) {
  if (PACKED) find_slot_picks(a, image, slot_picks);
  for (int token = threadIdx.x; token < a.num_tokens; token += kResolveThreads)
    best[token] = kUnpicked;
  __syncthreads();
  const int num_picks = a.num_slots * a.top_k;
  const int64* picks = a.picks + image * num_picks;
  const auto order = [&](int pick) -> uint64 {
    return PACKED ? pick_order(slot_picks[pick]) : a.peak.order(image, pick / a.top_k);
  };
  for (int pick = threadIdx.x; pick < num_picks; pick += kResolveThreads) {
    const int64 token = PACKED ? pick_token(slot_picks[pick]) : picks[pick];
    const uint64 mine = order(pick);
    if (token < 0 || token >= a.num_tokens) continue;
    // Not read first, which would race: the first exchange returns what is held.
    unsigned short held = kUnpicked;
    // The order is strict, equal picks by index, so the result does not depend on timing.
    while (true) {
      if (held != kUnpicked) {
        const uint64 other = order(held);
        if (other > mine) break;
        const int rank = pick % a.top_k, other_rank = held % a.top_k;
        if (other == mine && (other_rank < rank || (other_rank == rank && held < pick))) break;
      }
      const unsigned short seen = atomicCAS(&best[token], held, static_cast<unsigned short>(pick));
      if (seen == held) break;
      held = seen;
    }
  }
  __syncthreads();
}

// Copies rows kept[0..rows) to consecutive rows at `to`, units spread over the block.
template <class Unit>
__device__ __forceinline__ void copy_rows(const unsigned char* from, unsigned char* to,
                                          const int* kept, int rows, int64 row_stride,
                                          int64 row_bytes) {
  const int units = static_cast<int>(row_bytes / static_cast<int64>(sizeof(Unit)));
  const int lane = threadIdx.x % kWarpSize;
  // A warp takes runs of 128 units, so that short rows and few rows both fill the block.
  constexpr int kRun = 4 * kWarpSize;
  const int runs = ceil_div(units, kRun);
  for (int run = threadIdx.x / kWarpSize; run < rows * runs; run += kResolveThreads / kWarpSize) {
    const int row = run / runs, first = run % runs * kRun + lane;
    const Unit* source = reinterpret_cast<const Unit*>(from + kept[row] * row_stride);
    Unit* target = reinterpret_cast<Unit*>(to + row * row_bytes);
    Unit held[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i * kWarpSize < units) held[i] = source[first + i * kWarpSize];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i * kWarpSize < units) target[first + i * kWarpSize] = held[i];
  }
}

// Ids [B,budget] ascending and, with GATHER, the rows of `final` that they name.
// Grid B * parts, block kResolveThreads, `resolve_shared_bytes` of dynamic shared memory.
// 1 <= budget <= N <= kResolveTokens, K * top_k <= kResolvePicks; with PACKED top_k is 1 and K at
// most kPackedSlots.
template <bool GATHER, bool PACKED = false>
__global__ void __launch_bounds__(kResolveThreads, 2) resolve_kernel(ResolveArguments a) {
  __shared__ RadixState shared;
  OCVTP_SHARED(uint64, slot_picks);
  unsigned short* best = reinterpret_cast<unsigned short*>(slot_picks + (PACKED ? a.num_slots : 0));
  const int64 image = blockIdx.x / a.parts;
  const int part = blockIdx.x % a.parts;
  const int first_row = part * rows_per_part(a.budget, a.parts);
  const int last_row = min(first_row + rows_per_part(a.budget, a.parts), a.budget);
  int* kept = reinterpret_cast<int*>(best + ceil_div(a.num_tokens, 2) * 2);
  find_best_picks<PACKED>(a, image, slot_picks, best);

  const int per_thread = ceil_div(a.num_tokens, kResolveThreads);
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  const int last = min(first + per_thread, a.num_tokens);
  int picked = 0, distinct;
  for (int token = first; token < last; ++token) picked += best[token] != kUnpicked;
  exclusive_scan(picked, shared, distinct);

  const bool too_many = distinct >= a.budget;
  const Candidates candidates = {
      best,    PACKED ? slot_picks : nullptr, too_many ? a.peak : a.importance, image, a.top_k,
      too_many};
  const Threshold threshold =
      find_threshold(candidates, a.num_tokens, too_many ? a.budget : a.budget - distinct, shared);

  // 0 out, 1 a tie at the threshold, 2 in.
  const auto state_of = [&](int token) {
    if (!candidates.contains(token)) return too_many ? 0 : 2;
    const uint64 major = candidates.major(token);
    const unsigned minor = candidates.minor(token);
    if (major != threshold.major) return major > threshold.major ? 2 : 0;
    return minor == threshold.minor ? 1 : minor > threshold.minor ? 2 : 0;
  };
  int counts = 0, total;
  for (int token = first; token < last; ++token) {
    const int state = state_of(token);
    counts += state == 2 ? 1 << 16 : state;
  }
  counts = exclusive_scan(counts, shared, total);
  int in = counts >> 16, ties = counts & 0xffff;
  for (int token = first; token < last; ++token) {
    const int state = state_of(token);
    const bool chosen = state == 2 || (state == 1 && ties < threshold.ties);
    const int row = in + min(ties, threshold.ties);
    in += state == 2;
    ties += state == 1;
    if (!chosen) continue;
    if (part == 0) a.ids[image * a.budget + row] = token;
    if (GATHER && row >= first_row && row < last_row) kept[row - first_row] = token;
  }
  if (!GATHER) return;
  __syncthreads();
  const int rows = last_row - first_row;
  const unsigned char* from = a.final + image * a.final_image_stride;
  unsigned char* to = a.tokens + (image * a.budget + first_row) * a.row_bytes;
  switch (a.unit) {
    case 16:
      return copy_rows<uint4>(from, to, kept, rows, a.final_row_stride, a.row_bytes);
    case 8:
      return copy_rows<uint2>(from, to, kept, rows, a.final_row_stride, a.row_bytes);
    case 4:
      return copy_rows<unsigned>(from, to, kept, rows, a.final_row_stride, a.row_bytes);
    case 2:
      return copy_rows<unsigned short>(from, to, kept, rows, a.final_row_stride, a.row_bytes);
    default:
      return copy_rows<unsigned char>(from, to, kept, rows, a.final_row_stride, a.row_bytes);
  }
}

}  // namespace ocvtp
