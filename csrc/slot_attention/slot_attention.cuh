// The competition: softmax over slots and weighted mean over tokens, the matrix of attention never
// stored unless asked for. Locatello et al. 2020, as in ocvtp_kernels/slots/reference.py.
//
// A block takes one image, one block of slots, one chunk of v's channels and one group of tokens,
// or all groups in order. Groups depend on N alone, a group's sum starts at zero and groups add up
// in order, so that an image alone has the same bits as in a batch.
#pragma once

#include "slot_attention/slot_mean.cuh"

namespace ocvtp {

template <class T, int SLOTS>
struct CompeteShape : LogitsShape<T, SLOTS> {
  using Logits = LogitsShape<T, SLOTS>;
  static constexpr int kChunk = 32768 / SLOTS / static_cast<int>(sizeof(T));  // channels of v
  static constexpr int kSharesRow = kTokens + Logits::kPack;
  static constexpr int kShares = SLOTS * kSharesRow;
  static constexpr int kValuesRow = kChunk + Logits::kPack;
  static constexpr int kPacksPerValue = kChunk / Logits::kPack;
  static constexpr int kValuePacks = kTokens * kPacksPerValue / kThreads;
  // A warp's part of the sums: 32 slots by kColumns tiles.
  static constexpr int kColumns = kChunk / kTile / (kWarps / (SLOTS / 32));
  // Shares and values take the place of the steps of q and k.
  static constexpr int kBytes = (kShares + kTokens * kValuesRow) * static_cast<int>(sizeof(T));
  static constexpr int kSharedBytes =
      Logits::kSharedBytes + (SLOTS + 8) * 4 +
      (kBytes > Logits::kStageBytes ? kBytes - Logits::kStageBytes : 0);
  static_assert(kSharedBytes <= 48 * 1024, "more needs an attribute of the kernel");
  // At the end each warp's sums pass through its own tile in their place, a padded one.
  static constexpr int kMeanRow = kTile + 4;
  static_assert(kWarps * kTile * kMeanRow * 4 <= Logits::kStageBytes);
};

// v's rows of the tile's tokens, kChunk channels from first_channel.
template <class T, int SLOTS>
__device__ __forceinline__ void load_values(const Rows<T>& v, int image, int first_token,
                                            int num_tokens, int first_channel, int width,
                                            T* values) {
  using Shape = CompeteShape<T, SLOTS>;
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

// The sums of several numbers over a warp, each as `warp_sum` has it, side by side.
template <int COUNT>
__device__ __forceinline__ void warp_sums(float (&x)[COUNT]) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] += __shfl_xor_sync(kFullWarp, x[i], step);
}

// From the logits of the thread's slots their shares, attention times share_scale, and each slot's
// sum over the tile, which begins the slot's mass where this is the `first` tile. To be followed by
// a barrier.
template <class T, int SLOTS>
__device__ __forceinline__ void make_shares(const float* logits, const Standing& stand,
                                            bool live_token, bool first, float* mass, T* shares) {
  using Shape = CompeteShape<T, SLOTS>;
  constexpr int kAtOnce = 4;
  const int warp = thread_index() / kWarpSize;
  const int lane = thread_index() % kWarpSize;
  const float shift = shift_of(stand.top);
  const float weight = 1.0f / (1.0f + stand.others);
  // Counted, not up to SLOTS: the compiler sees that all lanes stay together.
#pragma unroll 1
  for (int i = 0; i < SLOTS / kWarps; i += kAtOnce) {
    const int row = warp + i * kWarps;
    float a[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int here = row + j * kWarps;
      a[j] = expf(logits[here * kLogitsRow + lane] - shift) * weight;
      a[j] = live_token ? a[j] : 0.0f;
      shares[here * Shape::kSharesRow + lane] = from_float<T>(a[j] * share_scale<T>());
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

// The tile's shares as attention [B, K, N].
template <class T, int SLOTS>
__device__ __forceinline__ void put_attention(const Competition<T>& c, int image, int first_slot,
                                              int first_token, const T* shares, T* attention) {
  const int lane = thread_index() % kWarpSize;
  if (first_token + lane >= c.num_tokens) return;
  const int last_row = min(SLOTS, c.num_slots - first_slot);
  const int64 first_row = static_cast<int64>(image) * c.num_slots + first_slot;
  for (int row = thread_index() / kWarpSize; row < last_row; row += kWarps)
    attention[(first_row + row) * c.num_tokens + first_token + lane] =
        from_float<T>(to_float(shares[row * CompeteShape<T, SLOTS>::kSharesRow + lane]) *
                      (1.0f / share_scale<T>()));
}

// sum += shares values: the warp's 32 slots by kColumns tiles.
template <class T, int SLOTS>
__device__ __forceinline__ void add_weighted(
    const T* shares, const T* values,
    typename WarpTile<T>::Sum (&sum)[2][CompeteShape<T, SLOTS>::kColumns]) {
  using Shape = CompeteShape<T, SLOTS>;
  using Tile = WarpTile<T>;
  const int warp = thread_index() / kWarpSize;
  shares += warp % (SLOTS / 32) * 2 * kTile * Shape::kSharesRow;
  values += warp / (SLOTS / 32) * Shape::kColumns * kTile;
#pragma unroll 1
  for (int depth = 0; depth < kTokens; depth += kTile) {
    typename Tile::Left left[2];
    left[0].load(shares + depth, Shape::kSharesRow);
    left[1].load(shares + kTile * Shape::kSharesRow + depth, Shape::kSharesRow);
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j) {
      typename Tile::template Right<false> right;
      right.load(values + depth * Shape::kValuesRow + j * kTile, Shape::kValuesRow);
      Tile::multiply(sum[0][j], left[0], right);
      Tile::multiply(sum[1][j], left[1], right);
    }
  }
}

// What compete_kernel writes. Blocks that take one group of tokens leave its sums to mean_kernel:
// A v and sum_n A, [parts, groups, SLOTS, kChunk] and [.., SLOTS], parts being images, blocks of
// slots and chunks. Blocks that take all groups write what mean_kernel would, to the bit.
template <class T>
struct CompeteOutputs {
  float* partial;
  float* partial_mass;
  T* updates;    // [B, K, E]
  float* mass;   // [B, K]
  T* attention;  // [B, K, N] or null
  float eps;
};

// Stores a group's sums.
template <class T, int SLOTS>
__device__ __forceinline__ void put_sums(
    const typename WarpTile<T>::Sum (&sum)[2][CompeteShape<T, SLOTS>::kColumns], float* to) {
  using Shape = CompeteShape<T, SLOTS>;
  const int warp = thread_index() / kWarpSize;
  to += warp % (SLOTS / 32) * 2 * kTile * Shape::kChunk;
  to += warp / (SLOTS / 32) * Shape::kColumns * kTile;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j)
      sum[i][j].store(to + i * kTile * Shape::kChunk + j * kTile, Shape::kChunk);
}

// Divides the sums of all groups by the mass, by way of the warp's tile in `stage`.
template <class T, int SLOTS>
__device__ __forceinline__ void put_means(
    const typename WarpTile<T>::Sum (&sum)[2][CompeteShape<T, SLOTS>::kColumns], const float* mass,
    int64 first_row, int last_slot, int first_channel, int width, const CompeteOutputs<T>& out,
    float* stage) {
  using Shape = CompeteShape<T, SLOTS>;
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

// STANDINGS: the slots are more than a tile, and `standings` has been filled. WHOLE: a block takes
// all groups, the sums of one and of all before it in registers.
template <class T, int SLOTS, bool STANDINGS, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 1)
    compete_kernel(const Competition<T> c, const Rows<T> v, const int width, const Cut cut,
                   const Standing* standings, const CompeteOutputs<T> out) {
  using Shape = CompeteShape<T, SLOTS>;
  using Tile = WarpTile<T>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  float* const mass = bias + Shape::kBias;
  volatile int* const place = reinterpret_cast<int*>(mass + SLOTS);
  T* const stage = reinterpret_cast<T*>(mass + SLOTS + 8);
  T* const shares = stage;
  T* const values = stage + Shape::kShares;

  const int share = static_cast<int>(blockIdx.x % cut.shares());
  const unsigned part = blockIdx.x / cut.shares();
  const int block_chunk = static_cast<int>(part % cut.chunks);
  const int block_slot = static_cast<int>(part / cut.chunks % cut.slot_blocks) * SLOTS;
  const int block_image = static_cast<int>(part / cut.chunks / cut.slot_blocks);
  const int tiles = ceil_div(c.num_tokens, kTokens);

  const int last_group = WHOLE ? cut.groups : share + 1;
  load_bias<T, SLOTS>(c, block_image, block_slot, bias);
  // In shared memory, out of the registers' way.
  if (threadIdx.x == 0) {
    place[0] = block_image;
    place[1] = block_slot;
    place[2] = block_chunk;
  }
  typename Tile::Sum total[2][Shape::kColumns];
#pragma unroll
  for (int i = 0; i < 2 * Shape::kColumns; ++i)
    total[i / Shape::kColumns][i % Shape::kColumns].zero();
  float total_mass = 0.0f;  // of the thread's slot
  __syncthreads();
  for (int group = share; group < last_group; ++group) {
    typename Tile::Sum sum[2][Shape::kColumns];
#pragma unroll
    for (int i = 0; i < 2 * Shape::kColumns; ++i)
      sum[i / Shape::kColumns][i % Shape::kColumns].zero();
    const int first_tile = group * cut.tiles_per_group;
    const int last_tile = min(first_tile + cut.tiles_per_group, tiles);
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const int first_token = tile * kTokens;
      const int image = place[0], first_slot = place[1], chunk = place[2];
      dot_products<T, SLOTS>(c, image, first_slot, first_token, logits, stage);
      load_values<T, SLOTS>(v, image, first_token, c.num_tokens, chunk * Shape::kChunk, width,
                            values);
      make_logits<SLOTS>(bias, c.scale, logits);
      const int lane = thread_index() % kWarpSize;
      const int token = first_token + lane;
      const bool live_token = token < c.num_tokens;
      Standing stand = {0.0f, 0.0f};
      if (!STANDINGS)
        stand = standing<SLOTS>(logits, reinterpret_cast<float*>(shares), scratch);
      else if (live_token)
        stand = standings[static_cast<int64>(image) * c.num_tokens + token];
      make_shares<T, SLOTS>(logits, stand, live_token, tile == first_tile, mass, shares);
      __syncthreads();
      if (out.attention != nullptr && chunk == 0)
        put_attention<T, SLOTS>(c, image, first_slot, first_token, shares, out.attention);
      add_weighted<T, SLOTS>(shares, values, sum);
    }
    if (!WHOLE) {
      const int64 first_row = static_cast<int64>(computed_anew(blockIdx.x)) * SLOTS;
      put_sums<T, SLOTS>(sum, out.partial + first_row * Shape::kChunk);
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
  const int image = place[0], first_slot = place[1], chunk = place[2];
  const int64 first_row = static_cast<int64>(image) * c.num_slots + first_slot;
  const int last_slot = min(SLOTS, c.num_slots - first_slot);
  if (chunk == 0 && static_cast<int>(threadIdx.x) < last_slot)
    out.mass[first_row + threadIdx.x] = total_mass;
  put_means<T, SLOTS>(total, mass, first_row, last_slot, chunk * Shape::kChunk, width, out,
                      reinterpret_cast<float*>(stage));
}

}  // namespace ocvtp
