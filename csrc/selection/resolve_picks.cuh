// From picks to exactly `budget` ascending ids and their rows, in one launch: every block of an
// image resolves by itself, in shared memory, and copies its share of the rows. The rule is that
// of ocvtp_kernels/selection/reference.py::resolve_picks, in integers: nothing here rounds.
#pragma once

#include "ordered_scores.cuh"

namespace ocvtp {

constexpr int kResolveThreads = 512;
constexpr int kResolveTokens = 16384;  // two 16-bit counts share an int below
constexpr int kResolvePicks = 65535;   // a pick's index has 16 bits, the last value is kUnpicked
constexpr unsigned short kUnpicked = 0xffff;

struct ResolveArguments {
  const int64* picks;  // [B,K,top_k], a slot's best first
  Scores peak;         // [B,K]
  Scores importance;   // [B,N], or no data
  int64* ids;          // [B,budget]
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

// Shared memory: the best pick of each token, and the rows that the block copies.
__host__ __device__ constexpr int resolve_shared_bytes(int num_tokens, int rows) {
  return ceil_div(num_tokens * 2, 4) * 4 + rows * 4;
}

// The order of tokens that compete for the last places: `major` first, then `minor`, then the id.
struct Contest {
  const unsigned short* best;
  Scores scores;
  int64 image;
  int top_k;
  bool among_picked;  // else among the unpicked

  __device__ __forceinline__ bool joins(int token) const {
    return (best[token] != kUnpicked) == among_picked;
  }
  __device__ __forceinline__ uint64 major(int token) const {
    return scores.data ? scores.order(image, among_picked ? best[token] / top_k : token) : 0;
  }
  // A slot's weaker picks go first; among the unpicked all are alike.
  __device__ __forceinline__ unsigned minor(int token) const {
    return among_picked ? static_cast<unsigned>(top_k - 1 - best[token] % top_k) : 0u;
  }
  __device__ __forceinline__ int major_digits() const { return scores.data ? scores.bytes : 0; }
  __device__ __forceinline__ int minor_digits() const { return among_picked && top_k > 1 ? 2 : 0; }
};

// The last place: those above it are in, and the first `ties` of its equals.
struct Threshold {
  uint64 major;
  unsigned minor;
  int ties;
};

struct Selector {
  int histogram[256];
  int digit, left;
  int warp_total[kResolveThreads / kWarpSize];
};

// The sum over lower threads, and over all of them in `total`, of two 16-bit counts at once.
__device__ __forceinline__ int exclusive_scan(int value, Selector& shared, int& total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int upto = value;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == kWarpSize - 1) shared.warp_total[warp] = upto;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int i = 0; i < kResolveThreads / kWarpSize; ++i) {
    if (i < warp) before += shared.warp_total[i];
    total += shared.warp_total[i];
  }
  __syncthreads();
  return before + upto - value;
}

// Finds, in the histogram of one digit, the digit at which `wanted` is reached from the top, and
// how many of it are wanted. By one warp: a lane has eight digits, lane 0 the largest.
__device__ __forceinline__ void find_digit(Selector& shared, int wanted) {
  const int lane = threadIdx.x;
  int mine = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) mine += shared.histogram[255 - 8 * lane - i];
  int upto = mine;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  int left = wanted - (upto - mine);
  if (left <= 0 || left > mine) return;
  for (int i = 0; i < 8; ++i) {
    const int digit = 255 - 8 * lane - i;
    if (left <= shared.histogram[digit]) {
      shared.digit = digit;
      shared.left = left;
      return;
    }
    left -= shared.histogram[digit];
  }
}

// The threshold that lets `wanted` >= 1 tokens in: a radix selection from the highest byte down.
__device__ __forceinline__ Threshold find_threshold(const Contest& contest, int num_tokens,
                                                    int wanted, Selector& shared) {
  Threshold threshold = {0, 0, wanted};
  uint64 major_known = 0;
  unsigned minor_known = 0;
  const int majors = contest.major_digits(), digits = majors + contest.minor_digits();
  for (int step = 0; step < digits; ++step) {
    const bool in_major = step < majors;
    const int shift = 8 * ((in_major ? majors : digits) - 1 - step);
    for (int i = threadIdx.x; i < 256; i += kResolveThreads) shared.histogram[i] = 0;
    __syncthreads();
    for (int token = threadIdx.x; token < num_tokens; token += kResolveThreads) {
      if (!contest.joins(token)) continue;
      const uint64 major = contest.major(token);
      const unsigned minor = contest.minor(token);
      if ((major ^ threshold.major) & major_known) continue;
      if ((minor ^ threshold.minor) & minor_known) continue;
      const unsigned digit = in_major ? static_cast<unsigned>(major >> shift) : minor >> shift;
      atomicAdd(&shared.histogram[digit & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) find_digit(shared, threshold.ties);
    __syncthreads();
    if (in_major) {
      threshold.major |= static_cast<uint64>(shared.digit) << shift;
      major_known |= static_cast<uint64>(255) << shift;
    } else {
      threshold.minor |= static_cast<unsigned>(shared.digit) << shift;
      minor_known |= 255u << shift;
    }
    threshold.ties = shared.left;
  }
  return threshold;
}

// best[token] = the pick of it that stands first: by peak, then rank within the slot.
__device__ __forceinline__ void find_best_picks(const ResolveArguments& a, int64 image,
                                                unsigned short* best) {
  for (int token = threadIdx.x; token < a.num_tokens; token += kResolveThreads)
    best[token] = kUnpicked;
  __syncthreads();
  const int num_picks = a.num_slots * a.top_k;
  const int64* picks = a.picks + image * num_picks;
  for (int pick = threadIdx.x; pick < num_picks; pick += kResolveThreads) {
    const int64 token = picks[pick];
    if (token < 0 || token >= a.num_tokens) continue;
    const uint64 mine = a.peak.order(image, pick / a.top_k);
    // A guess: the first exchange tells, where a plain read would race with those of others.
    unsigned short held = kUnpicked;
    // The order is strict (equal picks by index), so the winner does not depend on who is first.
    while (true) {
      if (held != kUnpicked) {
        const uint64 other = a.peak.order(image, held / a.top_k);
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
// 1 <= budget <= N <= kResolveTokens, K * top_k <= kResolvePicks.
template <bool GATHER>
__global__ void __launch_bounds__(kResolveThreads, 2) resolve_kernel(ResolveArguments a) {
  __shared__ Selector shared;
  OCVTP_SHARED(unsigned short, best);
  const int64 image = blockIdx.x / a.parts;
  const int part = blockIdx.x % a.parts;
  const int first_row = part * rows_per_part(a.budget, a.parts);
  const int last_row = min(first_row + rows_per_part(a.budget, a.parts), a.budget);
  int* kept = reinterpret_cast<int*>(best + ceil_div(a.num_tokens, 2) * 2);
  find_best_picks(a, image, best);

  const int per_thread = ceil_div(a.num_tokens, kResolveThreads);
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  const int last = min(first + per_thread, a.num_tokens);
  int picked = 0, distinct;
  for (int token = first; token < last; ++token) picked += best[token] != kUnpicked;
  exclusive_scan(picked, shared, distinct);

  const bool too_many = distinct >= a.budget;
  const Contest contest = {best, too_many ? a.peak : a.importance, image, a.top_k, too_many};
  const Threshold threshold =
      find_threshold(contest, a.num_tokens, too_many ? a.budget : a.budget - distinct, shared);

  // 0 out, 1 a tie at the threshold, 2 in.
  const auto verdict = [&](int token) {
    if (!contest.joins(token)) return too_many ? 0 : 2;
    const uint64 major = contest.major(token);
    const unsigned minor = contest.minor(token);
    if (major != threshold.major) return major > threshold.major ? 2 : 0;
    return minor == threshold.minor ? 1 : minor > threshold.minor ? 2 : 0;
  };
  int counts = 0, total;
  for (int token = first; token < last; ++token) {
    const int verdict_here = verdict(token);
    counts += verdict_here == 2 ? 1 << 16 : verdict_here;
  }
  counts = exclusive_scan(counts, shared, total);
  int in = counts >> 16, ties = counts & 0xffff;
  for (int token = first; token < last; ++token) {
    const int verdict_here = verdict(token);
    const bool chosen = verdict_here == 2 || (verdict_here == 1 && ties < threshold.ties);
    const int row = in + min(ties, threshold.ties);
    in += verdict_here == 2;
    ties += verdict_here == 1;
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
