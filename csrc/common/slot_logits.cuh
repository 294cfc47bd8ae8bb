// The first step of every slot kernel: a tile of logits, all slots of a block by 32 tokens, and the
// softmax statistics of each token over them. A block is 16 warps; in the softmax the thread
// (warp, lane) has the slots warp, warp + 16, ... of the token `lane`.
#pragma once

#include "common/mma.cuh"

namespace ocvtp {

constexpr int kTokens = 32;  // of a tile, one a lane
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kLogitsRow = kTokens + 4;
// Blocks on a multiprocessor of kernels that hold logits only: as many as do not spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
template <class T>
constexpr int kBlocks = 1;
#else
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 2 : 1;
#endif

// Returns x, opaque to the compiler, which would else keep all that follows from it in registers
// from one tile to the next, and spill.
__device__ __forceinline__ int computed_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ int thread_index() {
  return computed_anew(static_cast<int>(threadIdx.x));
}

// Rows [B, count, width] with unit stride that start at multiples of 16 bytes; where the width is
// no multiple of 16 bytes they are padded with zeros to one.
template <class T>
struct Rows {
  const T* data;
  int64 image_stride;
  int64 row_stride;

  __device__ __forceinline__ const T* row(int image, int index) const {
    return data + image * image_stride + index * row_stride;
  }
};

// Elements [B, K], of any strides.
struct PerSlot {
  const float* data;
  int64 image_stride;
  int64 slot_stride;

  __device__ __forceinline__ float of(int image, int slot) const {
    return data[image * image_stride + slot * slot_stride];
  }
};

// The operands of the logits, the softmax over slots included.
template <class T>
struct SlotLogitsArgs {
  Rows<T> q;              // [B, K, D]
  Rows<T> k;              // [B, N, D]
  PerSlot constant;       // [B, K], added to a slot's logits; may have no data
  const bool* slot_mask;  // [B, K], false leaves the slot out; may be null
  int num_slots;
  int num_tokens;
  int depth;
  float scale;
};

// The largest logit m of a token and the sum of exp(x - m) over the other slots. The softmax over
// slots is exp(x - m) / (1 + rest_sum), its logarithm (x - m) - log1p(rest_sum): without the 1 in
// the sum an attention close to 1 keeps its precision.
struct alignas(8) SoftmaxStats {
  float row_max;
  float rest_sum;
};

// Sizes of a tile of SLOTS by kTokens.
template <class T, int SLOTS>
struct LogitsShape {
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kDepth = 8192 / SLOTS / static_cast<int>(sizeof(T));  // of a step
  static constexpr int kRow = kDepth + kPack;  // padded: rows start at different banks
  static constexpr int kRows = SLOTS + kTokens;
  static constexpr int kStep = kRows * kRow;
  static constexpr int kPacksPerRow = kDepth / kPack;
  static constexpr int kPacks = ceil_div(kRows * kPacksPerRow, kThreads);  // of a thread
  // Shared memory: logits, sums of `tile_stats`, bias, two stages of q and k, later its maxima.
  static constexpr int kLogits = SLOTS * kLogitsRow;
  static constexpr int kScratch = kWarps * kTokens;
  static constexpr int kBias = SLOTS;
  static constexpr int kStageBytes = 2 * kStep * static_cast<int>(sizeof(T));
  static constexpr int kSharedBytes = (kLogits + kScratch + kBias) * 4 + kStageBytes;
  static_assert(kSharedBytes <= 48 * 1024, "more needs an attribute of the kernel");
};

struct alignas(16) Pack {
  unsigned word[4];
};

// 16 bytes of a row, zero past its end; a null row is all zero.
template <class T>
__device__ __forceinline__ Pack load_pack(const T* row, int column, int width) {
  Pack pack = {{0u, 0u, 0u, 0u}};
  if (row != nullptr && column < width) pack = *reinterpret_cast<const Pack*>(row + column);
  return pack;
}

// q k^T of SLOTS slots and kTokens tokens into `logits`, rows of kLogitsRow. Begins and ends with a
// barrier. Two steps of loads are in flight.
template <class T, int SLOTS>
__device__ __forceinline__ void dot_products(const SlotLogitsArgs<T>& args, int image,
                                             int first_slot, int first_token, float* logits,
                                             T* stage) {
  using Shape = LogitsShape<T, SLOTS>;
  using Tile = WarpTile<T>;
  constexpr int kTiles = SLOTS / kTile * (kTokens / kTile);
  constexpr int kSums = ceil_div(kTiles, kWarps);  // tiles of a warp, all of the same slots
  constexpr int kRowsAtOnce = kThreads / Shape::kPacksPerRow;
  constexpr int kAhead = 2;
  const int warp = thread_index() / kWarpSize;
  const bool multiplies = kTiles >= kWarps || warp < kTiles;
  const int slot_tile = warp * kSums / 2;
  const int token_tile = warp * kSums % 2;

  Pack next[kAhead][Shape::kPacks];
  const auto fetch = [&](int step, Pack(&into)[Shape::kPacks]) {
    const int thread = thread_index();
#pragma unroll
    for (int i = 0; i < Shape::kPacks; ++i) {
      const int row = (thread + i * kThreads) / Shape::kPacksPerRow;
      const int column = (thread + i * kThreads) % Shape::kPacksPerRow * Shape::kPack;
      // Known at compile time, unless a pass has rows of both.
      const bool of_q = (i + 1) * kRowsAtOnce <= SLOTS || (i * kRowsAtOnce < SLOTS && row < SLOTS);
      const Rows<T>& rows = of_q ? args.q : args.k;
      const int index = of_q ? first_slot + row : first_token + row - SLOTS;
      const int count = of_q ? args.num_slots : row < Shape::kRows ? args.num_tokens : 0;
      into[i] = load_pack(index < count ? rows.row(image, index) : nullptr,
                          step * Shape::kDepth + column, args.depth);
    }
  };
  const auto put = [&](int step, const Pack(&from)[Shape::kPacks]) {
    T* const to = stage + (step & 1) * Shape::kStep;
    const int thread = thread_index();
#pragma unroll
    for (int i = 0; i < Shape::kPacks; ++i) {
      const int row = (thread + i * kThreads) / Shape::kPacksPerRow;
      const int column = (thread + i * kThreads) % Shape::kPacksPerRow * Shape::kPack;
      if (row < Shape::kRows) *reinterpret_cast<Pack*>(to + row * Shape::kRow + column) = from[i];
    }
  };

  typename Tile::Sum sum[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i].zero();
  const int steps = ceil_div(args.depth, Shape::kDepth);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i, next[i]);
  __syncthreads();
  put(0, next[0]);
  __syncthreads();
  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i;
      if (step >= steps) break;
      if (step + kAhead < steps) fetch(step + kAhead, next[i]);
      const T* const here = stage + (step & 1) * Shape::kStep;
      const T* const q = here + slot_tile * kTile * Shape::kRow;
      const T* const k = here + (SLOTS + token_tile * kTile) * Shape::kRow;
      if (multiplies)
#pragma unroll 1
        for (int depth = 0; depth < Shape::kDepth; depth += kTile) {
          typename Tile::Left left;
          left.load(q + depth, Shape::kRow);
#pragma unroll
          for (int j = 0; j < kSums; ++j) {
            typename Tile::template Right<true> right;
            right.load(k + j * kTile * Shape::kRow + depth, Shape::kRow);
            Tile::multiply(sum[j], left, right);
          }
        }
      if (step + 1 < steps) put(step + 1, next[(i + 1) % kAhead]);
      __syncthreads();
    }
  }
  if (multiplies)
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      sum[i].store(logits + slot_tile * kTile * kLogitsRow + (token_tile + i) * kTile, kLogitsRow);
  __syncthreads();
}

// What is added to the slots' logits: the constant, or -inf for slots that are padding or masked,
// which the softmax leaves out. A barrier must follow.
template <class T, int SLOTS>
__device__ __forceinline__ void load_bias(const SlotLogitsArgs<T>& args, int image, int first_slot,
                                          float* bias) {
  const int slot = first_slot + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= SLOTS) return;
  const bool takes_part =
      slot < args.num_slots && (args.slot_mask == nullptr ||
                                args.slot_mask[static_cast<int64>(image) * args.num_slots + slot]);
  bias[threadIdx.x] = !takes_part                     ? -infinity()
                      : args.constant.data == nullptr ? 0.0f
                                                      : args.constant.of(image, slot);
}

// What is subtracted from the logits: their maximum, or 0 if all are -inf.
__device__ __forceinline__ float shift_of(float top) { return top == -infinity() ? 0.0f : top; }

// Turns the dot products of the thread's slots into logits, in place. No other thread reads them,
// so no barrier is needed.
template <int SLOTS>
__device__ __forceinline__ void make_logits(const float* bias, float scale, float* logits) {
  const int warp = thread_index() / kWarpSize;
  float* const mine = logits + warp * kLogitsRow + thread_index() % kWarpSize;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float added = bias[warp + i * kWarps];
    float* const here = mine + i * kWarps * kLogitsRow;
    // A masked slot is left out even if its query is NaN.
    *here = added == -infinity() ? added : fmaf(*here, scale, added);
  }
}

// The statistics of the thread's token over the slots of the tile, summed in a fixed order: first
// those of a warp. `tops` and `sums`, kWarps * kTokens floats each, are free after a barrier.
template <int SLOTS>
__device__ __forceinline__ SoftmaxStats tile_stats(const float* logits, float* tops, float* sums) {
  constexpr int kStride = kWarps * kLogitsRow;
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const float* const mine = logits + warp * kLogitsRow + lane;
  // NaN is excluded from the maximum and kept in the sum.
  float top = -infinity();
  int argmax = -1;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float x = mine[i * kStride];
    argmax = x > top ? i : argmax;
    top = x > top ? x : top;
  }
  tops[warp * kTokens + lane] = top;
  __syncthreads();
  top = -infinity();
  int argmax_warp = -1;
#pragma unroll 8
  for (int w = 0; w < kWarps; ++w) {
    const float other = tops[w * kTokens + lane];
    argmax_warp = other > top ? w : argmax_warp;
    top = other > top ? other : top;
  }
  if (argmax_warp != warp) argmax = -1;
  const float shift = shift_of(top);
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float term = expf(mine[i * kStride] - shift);
    sum += i == argmax ? 0.0f : term;
  }
  sums[warp * kTokens + lane] = sum;
  __syncthreads();
  float rest_sum = 0.0f;
#pragma unroll 8
  for (int w = 0; w < kWarps; ++w) rest_sum += sums[w * kTokens + lane];
  return {top, rest_sum};
}

// The statistics over the slots of both: the lower maximum is added to the sum.
__device__ __forceinline__ SoftmaxStats combine(const SoftmaxStats& a, const SoftmaxStats& b) {
  const bool b_leads = b.row_max > a.row_max;
  const SoftmaxStats high = b_leads ? b : a;
  const SoftmaxStats low = b_leads ? a : b;
  const float low_scale = low.row_max == -infinity() ? 0.0f : expf(low.row_max - high.row_max);
  return {high.row_max, fmaf(low_scale, 1.0f + low.rest_sum, high.rest_sum)};
}

}  // namespace ocvtp
