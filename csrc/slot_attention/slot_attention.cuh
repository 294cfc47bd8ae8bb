// Slot attention: softmax over slots and weighted mean over tokens; the attention is only stored if
// asked for. Locatello et al. 2020, as in ocvtp_kernels/ops/slot_attention.
//
// A block takes one image, one block of slots, one chunk of v's channels and one split of tokens,
// or all splits in order. The splits depend on N alone, each is summed from zero and they add up in
// order, so the result is batch-invariant.
#pragma once

#include "slot_attention/slot_mean.cuh"

namespace ocvtp {

template <class T, int SLOTS>
struct SlotAttentionShape : LogitsShape<T, SLOTS> {
  using Logits = LogitsShape<T, SLOTS>;
  static constexpr int kChunk = 32768 / SLOTS / static_cast<int>(sizeof(T));  // channels of v
  static constexpr int kWeightsRow = kTokens + Logits::kPack;
  static constexpr int kWeights = SLOTS * kWeightsRow;
  static constexpr int kValuesRow = kChunk + Logits::kPack;
  static constexpr int kPacksPerValue = kChunk / Logits::kPack;
  static constexpr int kValuePacks = kTokens * kPacksPerValue / kThreads;
  // The sums of a warp: 32 slots by kColumns tiles.
  static constexpr int kColumns = kChunk / kTile / (kWarps / (SLOTS / 32));
  // Weights and values overwrite the stages of q and k.
  static constexpr int kBytes = (kWeights + kTokens * kValuesRow) * static_cast<int>(sizeof(T));
  static constexpr int kSharedBytes =
      Logits::kSharedBytes + (SLOTS + 8) * 4 +
      (kBytes > Logits::kStageBytes ? kBytes - Logits::kStageBytes : 0);
  static_assert(kSharedBytes <= 48 * 1024, "more needs an attribute of the kernel");
  // At the end these are overwritten by a padded tile of each warp, through which its sums pass.
  static constexpr int kMeanRow = kTile + 4;
  static_assert(kWarps * kTile * kMeanRow * 4 <= Logits::kStageBytes);
};

// v's rows of the tile's tokens, kChunk channels from first_channel.
template <class T, int SLOTS>
__device__ __forceinline__ void load_values(const Rows<T>& v, int image, int first_token,
                                            int num_tokens, int first_channel, int width,
                                            T* values) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  const int thread = thread_index();
#pragma unroll
  for (int i = 0; i < Shape::kValuePacks; ++i) {
    const int row = (thread + i * kThreads) / Shape::kPacksPerValue;
    const int column = (thread + i * kThreads) % Shape::kPacksPerValue * Shape::kPack;
    const int token = first_token + row;
    *reinterpret_cast<Pack*>(values + row * Shape::kValuesRow + column) = load_pack(
        token < num_tokens ? v.row(image, token) : nullptr, first_channel + column, width);
  }
}

// Several `warp_sum`s at once.
template <int COUNT>
__device__ __forceinline__ void warp_sums(float (&x)[COUNT]) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] += __shfl_xor_sync(kFullWarp, x[i], step);
}

// From the logits of the thread's slots their weights, attention times weight_scale, and the sum of
// each slot over the tile, which starts its mass on the `first` tile. A barrier must follow.
template <class T, int SLOTS>
__device__ __forceinline__ void make_weights(const float* logits, const SoftmaxStats& stats,
                                             bool mask_token, bool first, float* mass, T* weights) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  constexpr int kAtOnce = 4;
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const float shift = shift_of(stats.row_max);
  const float inverse_sum = 1.0f / (1.0f + stats.rest_sum);
  // A loop counter that is the same in all lanes: the compiler sees no divergence.
#pragma unroll 1
  for (int i = 0; i < SLOTS / kWarps; i += kAtOnce) {
    const int row = warp + i * kWarps;
    float a[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int here = row + j * kWarps;
      a[j] = expf(logits[here * kLogitsRow + lane] - shift) * inverse_sum;
      a[j] = mask_token ? a[j] : 0.0f;
      weights[here * Shape::kWeightsRow + lane] = from_float<T>(a[j] * weight_scale<T>());
    }
    warp_sums(a);
    if (lane == 0)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        float* const slot_mass = mass + row + j * kWarps;
        *slot_mass = first ? a[j] : *slot_mass + a[j];
      }
  }
}

// The weights of the tile as attention [B, K, N].
template <class T, int SLOTS>
__device__ __forceinline__ void put_attention(const SlotLogitsArgs<T>& args, int image,
                                              int first_slot, int first_token, const T* weights,
                                              T* attention) {
  const int lane = thread_index() % kWarpSize;
  if (first_token + lane >= args.num_tokens) return;
  const int last_row = min(SLOTS, args.num_slots - first_slot);
  const int64 first_row = static_cast<int64>(image) * args.num_slots + first_slot;
  for (int row = thread_index() / kWarpSize; row < last_row; row += kWarps)
    attention[(first_row + row) * args.num_tokens + first_token + lane] =
        from_float<T>(to_float(weights[row * SlotAttentionShape<T, SLOTS>::kWeightsRow + lane]) *
                      (1.0f / weight_scale<T>()));
}

// sum += weights values: the warp's 32 slots by kColumns tiles.
template <class T, int SLOTS>
__device__ __forceinline__ void add_weighted(
    const T* weights, const T* values,
    typename WarpTile<T>::Sum (&sum)[2][SlotAttentionShape<T, SLOTS>::kColumns]) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  using Tile = WarpTile<T>;
  const int warp = thread_index() / kWarpSize;
  weights += warp % (SLOTS / 32) * 2 * kTile * Shape::kWeightsRow;
  values += warp / (SLOTS / 32) * Shape::kColumns * kTile;
#pragma unroll 1
  for (int depth = 0; depth < kTokens; depth += kTile) {
    typename Tile::Left left[2];
    left[0].load(weights + depth, Shape::kWeightsRow);
    left[1].load(weights + kTile * Shape::kWeightsRow + depth, Shape::kWeightsRow);
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j) {
      typename Tile::template Right<false> right;
      right.load(values + depth * Shape::kValuesRow + j * kTile, Shape::kValuesRow);
      Tile::multiply(sum[0][j], left[0], right);
      Tile::multiply(sum[1][j], left[1], right);
    }
  }
}

// What slot_attention_kernel writes. Blocks that take one split leave their sums to mean_kernel:
// A v and sum_n A, [images, slot blocks, chunks, splits, SLOTS, kChunk] and [.., SLOTS]. Blocks
// that take all splits write the result, the same to the bit.
template <class T>
struct SlotAttentionOutputs {
  float* partial_acc;
  float* partial_mass;
  T* updates;    // [B, K, E]
  float* mass;   // [B, K]
  T* attention;  // [B, K, N] or null
  float eps;
};

// Stores the sums of a split.
template <class T, int SLOTS>
__device__ __forceinline__ void put_sums(
    const typename WarpTile<T>::Sum (&sum)[2][SlotAttentionShape<T, SLOTS>::kColumns], float* to) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  const int warp = thread_index() / kWarpSize;
  to += warp % (SLOTS / 32) * 2 * kTile * Shape::kChunk;
  to += warp / (SLOTS / 32) * Shape::kColumns * kTile;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j)
      sum[i][j].store(to + i * kTile * Shape::kChunk + j * kTile, Shape::kChunk);
}

// Divides the sums of all splits by the mass, by way of the warp's tile in `stage`.
template <class T, int SLOTS>
__device__ __forceinline__ void put_means(
    const typename WarpTile<T>::Sum (&sum)[2][SlotAttentionShape<T, SLOTS>::kColumns],
    const float* mass, int64 first_row, int last_slot, int first_channel, int width,
    const SlotAttentionOutputs<T>& out, float* stage) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  float* const tile = stage + warp * kTile * Shape::kMeanRow;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j) {
      sum[i][j].store(tile, Shape::kMeanRow);
      __syncwarp();
      const int channel =
          first_channel + (warp / (SLOTS / 32) * Shape::kColumns + j) * kTile + lane % kTile;
#pragma unroll 1
      for (int row = lane / kTile; row < kTile; row += kWarpSize / kTile) {
        const int slot = (warp % (SLOTS / 32) * 2 + i) * kTile + row;
        if (slot < last_slot && channel < width)
          out.updates[(first_row + slot) * width + channel] = from_float<T>(
              mean_of<T>(tile[row * Shape::kMeanRow + lane % kTile], mass[slot], out.eps));
      }
      __syncwarp();
    }
}

// GIVEN_STATS: there are more slots than a tile holds, and `given_stats` is filled. SINGLE_BLOCK: a
// block takes all splits; the sums of one and of all before it are in registers.
template <class T, int SLOTS, bool GIVEN_STATS, bool SINGLE_BLOCK>
__global__ void __launch_bounds__(kThreads, 1)
    slot_attention_kernel(const SlotLogitsArgs<T> args, const Rows<T> v, const int width,
                          const SplitPlan plan, const SoftmaxStats* given_stats,
                          const SlotAttentionOutputs<T> out) {
  using Shape = SlotAttentionShape<T, SLOTS>;
  using Tile = WarpTile<T>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  float* const mass = bias + Shape::kBias;
  volatile int* const block_index = reinterpret_cast<int*>(mass + SLOTS);
  T* const stage = reinterpret_cast<T*>(mass + SLOTS + 8);
  T* const weights = stage;
  T* const values = stage + Shape::kWeights;

  const int split_id = static_cast<int>(blockIdx.x % plan.split_blocks());
  const unsigned out_block = blockIdx.x / plan.split_blocks();
  const int block_chunk = static_cast<int>(out_block % plan.chunks);
  const int block_slot = static_cast<int>(out_block / plan.chunks % plan.slot_blocks) * SLOTS;
  const int block_image = static_cast<int>(out_block / plan.chunks / plan.slot_blocks);
  const int tiles = ceil_div(args.num_tokens, kTokens);

  const int last_split = SINGLE_BLOCK ? plan.num_splits : split_id + 1;
  load_bias<T, SLOTS>(args, block_image, block_slot, bias);
  // In shared memory, to save registers.
  if (threadIdx.x == 0) {
    block_index[0] = block_image;
    block_index[1] = block_slot;
    block_index[2] = block_chunk;
  }
  typename Tile::Sum total[2][Shape::kColumns];
#pragma unroll
  for (int i = 0; i < 2 * Shape::kColumns; ++i)
    total[i / Shape::kColumns][i % Shape::kColumns].zero();
  float total_mass = 0.0f;  // of the thread's slot
  __syncthreads();
  for (int split = split_id; split < last_split; ++split) {
    typename Tile::Sum sum[2][Shape::kColumns];
#pragma unroll
    for (int i = 0; i < 2 * Shape::kColumns; ++i)
      sum[i / Shape::kColumns][i % Shape::kColumns].zero();
    const int first_tile = split * plan.tiles_per_split;
    const int last_tile = min(first_tile + plan.tiles_per_split, tiles);
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const int first_token = tile * kTokens;
      const int image = block_index[0], first_slot = block_index[1], chunk = block_index[2];
      dot_products<T, SLOTS>(args, image, first_slot, first_token, logits, stage);
      load_values<T, SLOTS>(v, image, first_token, args.num_tokens, chunk * Shape::kChunk, width,
                            values);
      make_logits<SLOTS>(bias, args.scale, logits);
      const int lane = thread_index() % kWarpSize;
      const int token = first_token + lane;
      const bool mask_token = token < args.num_tokens;
      SoftmaxStats stats = {0.0f, 0.0f};
      if (!GIVEN_STATS)
        stats = tile_stats<SLOTS>(logits, reinterpret_cast<float*>(weights), scratch);
      else if (mask_token)
        stats = given_stats[static_cast<int64>(image) * args.num_tokens + token];
      make_weights<T, SLOTS>(logits, stats, mask_token, tile == first_tile, mass, weights);
      __syncthreads();
      if (out.attention != nullptr && chunk == 0)
        put_attention<T, SLOTS>(args, image, first_slot, first_token, weights, out.attention);
      add_weighted<T, SLOTS>(weights, values, sum);
    }
    if (!SINGLE_BLOCK) {
      const int64 first_row = static_cast<int64>(computed_anew(blockIdx.x)) * SLOTS;
      put_sums<T, SLOTS>(sum, out.partial_acc + first_row * Shape::kChunk);
      if (threadIdx.x < SLOTS) out.partial_mass[first_row + threadIdx.x] = mass[threadIdx.x];
      return;
    }
#pragma unroll
    for (int i = 0; i < 2 * Shape::kColumns; ++i)
      total[i / Shape::kColumns][i % Shape::kColumns].add(
          sum[i / Shape::kColumns][i % Shape::kColumns]);
    if (threadIdx.x < SLOTS) total_mass += mass[threadIdx.x];
  }
  if (threadIdx.x < SLOTS) mass[threadIdx.x] = total_mass;
  __syncthreads();
  const int image = block_index[0], first_slot = block_index[1], chunk = block_index[2];
  const int64 first_row = static_cast<int64>(image) * args.num_slots + first_slot;
  const int last_slot = min(SLOTS, args.num_slots - first_slot);
  if (chunk == 0 && static_cast<int>(threadIdx.x) < last_slot)
    out.mass[first_row + threadIdx.x] = total_mass;
  put_means<T, SLOTS>(total, mass, first_row, last_slot, chunk * Shape::kChunk, width, out,
                      reinterpret_cast<float*>(stage));
}

}  // namespace ocvtp
