// Where every slot kernel begins: a tile of logits, all slots of a block by 32 tokens, and each
// token's standing in the competition among slots. A block is 16 warps; in the softmax the thread
// (warp, lane) has the slots warp, warp + 16, ... of the token `lane`.
#pragma once

#include "common/mma.cuh"

namespace ocvtp {

constexpr int kTokens = 32;  // of a tile, one a lane
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kLogitsRow = kTokens + 4;
// Blocks on a multiprocessor of kernels that hold no more than logits, as many as do not spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
template <class T>
constexpr int kBlocks = 1;
#else
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 2 : 1;
#endif

// The number itself, opaque to the compiler: it would keep all that follows from it in registers
// from one tile to the next, and spill.
__device__ __forceinline__ int computed_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ int thread_index() {
  return computed_anew(static_cast<int>(threadIdx.x));
}

// Rows [B, count, width]; neighbours in a row are adjacent. Rows start at multiples of 16 bytes,
// and where the width is no multiple of 16 bytes zeros fill up to one: they change no product.
template <class T>
struct Rows {
  const T* data;
  int64 image_stride;
  int64 row_stride;

  __device__ __forceinline__ const T* row(int image, int index) const {
    return data + image * image_stride + index * row_stride;
  }
};

// Numbers [B, K], of any strides.
struct PerSlot {
  const float* data;
  int64 image_stride;
  int64 slot_stride;

  __device__ __forceinline__ float of(int image, int slot) const {
    return data[image * image_stride + slot * slot_stride];
  }
};

// Slots and the tokens that they compete for.
template <class T>
struct Competition {
  Rows<T> q;              // [B, K, D]
  Rows<T> k;              // [B, N, D]
  PerSlot constant;       // [B, K], added to a slot's logits; may have no data
  const bool* slot_mask;  // [B, K], false leaves the slot out; may be null
  int num_slots;
  int num_tokens;
  int depth;
  float scale;
};

// A token's largest logit m and the sum of exp(x - m) over the other slots. The softmax over slots
// is exp(x - m) / (1 + others), its logarithm (x - m) - log1p(others): kept apart, the two resolve
// an attention of almost 1.
struct alignas(8) Standing {
  float top;
  float others;
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
  // Shared memory: logits, sums of `standing`, bias, two steps of q and k, later its tops.
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
// barrier. Two steps are on their way from memory.
template <class T, int SLOTS>
__device__ __forceinline__ void dot_products(const Competition<T>& c, int image, int first_slot,
                                             int first_token, float* logits, T* stage) {
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
      // Known without the thread, but where a pass has rows of both.
      const bool of_q = (i + 1) * kRowsAtOnce <= SLOTS || (i * kRowsAtOnce < SLOTS && row < SLOTS);
      const Rows<T>& rows = of_q ? c.q : c.k;
      const int index = of_q ? first_slot + row : first_token + row - SLOTS;
      const int count = of_q ? c.num_slots : row < Shape::kRows ? c.num_tokens : 0;
      into[i] = load_pack(index < count ? rows.row(image, index) : nullptr,
                          step * Shape::kDepth + column, c.depth);
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
  const int steps = ceil_div(c.depth, Shape::kDepth);
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
// so that they take no part in the softmax. To be followed by a barrier.
template <class T, int SLOTS>
__device__ __forceinline__ void load_bias(const Competition<T>& c, int image, int first_slot,
                                          float* bias) {
  const int slot = first_slot + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= SLOTS) return;
  const bool takes_part =
      slot < c.num_slots &&
      (c.slot_mask == nullptr || c.slot_mask[static_cast<int64>(image) * c.num_slots + slot]);
  bias[threadIdx.x] = !takes_part                  ? -infinity()
                      : c.constant.data == nullptr ? 0.0f
                                                   : c.constant.of(image, slot);
}

// What to take off the logits: the top, unless no slot is live.
__device__ __forceinline__ float shift_of(float top) { return top == -infinity() ? 0.0f : top; }

// Turns the dot products of the thread's slots into logits, in their place. No other thread reads
// them, so no barrier follows.
template <int SLOTS>
__device__ __forceinline__ void make_logits(const float* bias, float scale, float* logits) {
  const int warp = thread_index() / kWarpSize;
  float* const mine = logits + warp * kLogitsRow + thread_index() % kWarpSize;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float added = bias[warp + i * kWarps];
    float* const here = mine + i * kWarps * kLogitsRow;
    // A masked slot stays out whatever its query.
    *here = added == -infinity() ? added : fmaf(*here, scale, added);
  }
}

// The standing of the thread's token among the tile's slots, summed in a fixed order: first those
// of a warp. `tops` and `sums`, kWarps * kTokens floats each, may be used again after a barrier.
template <int SLOTS>
__device__ __forceinline__ Standing standing(const float* logits, float* tops, float* sums) {
  constexpr int kStride = kWarps * kLogitsRow;
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const float* const mine = logits + warp * kLogitsRow + lane;
  // A NaN leads nothing, but stays in the sum.
  float top = -infinity();
  int leader = -1;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float x = mine[i * kStride];
    leader = x > top ? i : leader;
    top = x > top ? x : top;
  }
  tops[warp * kTokens + lane] = top;
  __syncthreads();
  top = -infinity();
  int leading_warp = -1;
#pragma unroll 8
  for (int w = 0; w < kWarps; ++w) {
    const float other = tops[w * kTokens + lane];
    leading_warp = other > top ? w : leading_warp;
    top = other > top ? other : top;
  }
  if (leading_warp != warp) leader = -1;
  const float shift = shift_of(top);
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < SLOTS / kWarps; ++i) {
    const float rival = expf(mine[i * kStride] - shift);
    sum += i == leader ? 0.0f : rival;
  }
  sums[warp * kTokens + lane] = sum;
  __syncthreads();
  float others = 0.0f;
#pragma unroll 8
  for (int w = 0; w < kWarps; ++w) others += sums[w * kTokens + lane];
  return {top, others};
}

// The standing among the slots of both; the beaten top is one of the others now.
__device__ __forceinline__ Standing join(const Standing& a, const Standing& b) {
  const bool b_leads = b.top > a.top;
  const Standing high = b_leads ? b : a;
  const Standing low = b_leads ? a : b;
  const float beaten = low.top == -infinity() ? 0.0f : expf(low.top - high.top);
  return {high.top, fmaf(beaten, 1.0f + low.others, high.others)};
}

}  // namespace ocvtp
