// The attention that tokens receive, averaged over heads and queries, without the matrix of queries
// by keys: a block goes over all keys twice with a tile of queries, for the denominators of the
// softmax and for the sums over its queries, which a second kernel adds up in a fixed order.
#pragma once

#include "common/mma.cuh"

namespace ocvtp {

constexpr int kReceivedThreads = 128;
constexpr int kReceivedWarps = kReceivedThreads / kWarpSize;
constexpr int kReceivedTile = 64;   // queries, and keys, of a tile
constexpr int kReceivedDepth = 64;  // channels in shared memory at a time
constexpr int kSumThreads = 256;

// Rows in shared memory, padded to start at different banks, still 16-byte aligned.
template <class T>
constexpr int kDepthStride = kReceivedDepth + 16 / static_cast<int>(sizeof(T));
constexpr int kLogitStride = kReceivedTile + 4;

template <class T>
__host__ __device__ constexpr int tile_bytes() {
  return kReceivedTile * kDepthStride<T> * static_cast<int>(sizeof(T));
}

// A tile of queries, and one of keys, which the logits then overwrite.
template <class T>
__host__ __device__ constexpr int received_shared_bytes() {
  constexpr int logits = kReceivedTile * kLogitStride * 4;
  return tile_bytes<T>() + (tile_bytes<T>() > logits ? tile_bytes<T>() : logits);
}
// What every architecture grants without a request.
static_assert(received_shared_bytes<float>() <= 48 * 1024);

// A [B,H,n,d] tensor with unit stride along d.
template <class T>
struct HeadRows {
  const T* data;
  int64 image_stride, head_stride, row_stride;
  int rows;
  bool wide_loads;  // all starts of rows and d are multiples of 16 bytes

  __device__ __forceinline__ const T* head(int64 image, int head) const {
    return data + image * image_stride + head * head_stride;
  }
};

// Channels [depth, depth + 64) of rows [first, first + 64), zeros where there are none.
template <class T>
__device__ __forceinline__ void load_tile(T* tile, const T* rows, const HeadRows<T>& layout,
                                          int first, int depth, int width) {
  if (layout.wide_loads) {
    constexpr int kPack = 16 / static_cast<int>(sizeof(T)), kPacks = kReceivedDepth / kPack;
    for (int i = threadIdx.x; i < kReceivedTile * kPacks; i += kReceivedThreads) {
      const int row = i / kPacks, column = i % kPacks * kPack;
      uint4 word = make_uint4(0, 0, 0, 0);
      if (first + row < layout.rows && depth + column < width)
        word = *reinterpret_cast<const uint4*>(rows + (first + row) * layout.row_stride + depth +
                                               column);
      *reinterpret_cast<uint4*>(tile + row * kDepthStride<T> + column) = word;
    }
    return;
  }
  for (int i = threadIdx.x; i < kReceivedTile * kReceivedDepth; i += kReceivedThreads) {
    const int row = i / kReceivedDepth, column = i % kReceivedDepth;
    T value = from_float<T>(0.0f);
    if (first + row < layout.rows && depth + column < width)
      value = rows[(first + row) * layout.row_stride + depth + column];
    tile[row * kDepthStride<T> + column] = value;
  }
}

template <class T>
struct ReceivedArguments {
  HeadRows<T> q, k;  // [B,H,M,d], [B,H,N,d]
  float* partial;    // [B,H,tiles,N], tiles of queries
  int heads, tiles, width;
  float scale;
};

// The warp's 16 rows by 64 columns of logits: lane l has columns l and l + 32 of each row, -inf
// past the last key.
struct Strip {
  float x[kTile][2];
};

template <class T>
__device__ __forceinline__ void compute_strip(Strip& strip, const ReceivedArguments<T>& a,
                                              const T* q_head, const T* k_head, int first_query,
                                              int first_key, T* q_tile, T* k_tile) {
  using Tile = WarpTile<T>;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  typename Tile::Sum sums[kReceivedTile / kTile];
#pragma unroll
  for (int j = 0; j < kReceivedTile / kTile; ++j) sums[j].zero();
  for (int depth = 0; depth < a.width; depth += kReceivedDepth) {
    // Nothing reads the tiles of the last step or the logits of the last tile any more.
    __syncthreads();
    load_tile(q_tile, q_head, a.q, first_query, depth, a.width);
    load_tile(k_tile, k_head, a.k, first_key, depth, a.width);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kReceivedDepth; step += kTile) {
      typename Tile::Left left;
      left.load(q_tile + warp * kTile * kDepthStride<T> + step, kDepthStride<T>);
#pragma unroll
      for (int j = 0; j < kReceivedTile / kTile; ++j) {
        typename Tile::template Right<true> right;
        right.load(k_tile + j * kTile * kDepthStride<T> + step, kDepthStride<T>);
        Tile::multiply(sums[j], left, right);
      }
    }
  }
  __syncthreads();
  float* logits = reinterpret_cast<float*>(k_tile) + warp * kTile * kLogitStride;
#pragma unroll
  for (int j = 0; j < kReceivedTile / kTile; ++j) sums[j].store(logits + j * kTile, kLogitStride);
  __syncwarp();
#pragma unroll
  for (int row = 0; row < kTile; ++row)
#pragma unroll
    for (int half_row = 0; half_row < 2; ++half_row) {
      const int column = lane + half_row * kWarpSize;
      strip.x[row][half_row] = first_key + column < a.k.rows
                                   ? logits[row * kLogitStride + column] * a.scale
                                   : -infinity();
    }
}

// exp(x - top), 0 where x is -inf even if top is too; NaN stays.
__device__ __forceinline__ float exp_below(float x, float top) {
  return x == -infinity() ? 0.0f : expf(x - top);
}

// partial[b,h,tile,n] = the sum over the tile's queries of softmax over keys (scale q k^T).
// Grid B * H * tiles, block kReceivedThreads, `received_shared_bytes` of dynamic shared memory.
template <class T>
__global__ void __launch_bounds__(kReceivedThreads, 3)
    attention_received_kernel(ReceivedArguments<T> a) {
  __shared__ float columns[kReceivedWarps][kReceivedTile];
  OCVTP_SHARED(unsigned char, bytes);
  T* q_tile = reinterpret_cast<T*>(bytes);
  T* k_tile = reinterpret_cast<T*>(bytes + tile_bytes<T>());
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int tile = blockIdx.x % a.tiles, head = blockIdx.x / a.tiles % a.heads;
  const int64 image = blockIdx.x / a.tiles / a.heads;
  const int first_query = tile * kReceivedTile;
  const T* q_head = a.q.head(image, head);
  const T* k_head = a.k.head(image, head);
  const int num_keys = a.k.rows;

  float top[kTile], sum[kTile];
#pragma unroll
  for (int row = 0; row < kTile; ++row) {
    top[row] = -infinity();
    sum[row] = 0.0f;
  }
  Strip strip;
  for (int key = 0; key < num_keys; key += kReceivedTile) {
    compute_strip(strip, a, q_head, k_head, first_query, key, q_tile, k_tile);
#pragma unroll
    for (int row = 0; row < kTile; ++row) {
      const float x = strip.x[row][0], y = strip.x[row][1];
      const float next = fmaxf(top[row], fmaxf(x, y));
      sum[row] = sum[row] * exp_below(top[row], next) + exp_below(x, next) + exp_below(y, next);
      top[row] = next;
    }
  }
#pragma unroll
  for (int row = 0; row < kTile; ++row) {
    const float own = top[row];
    top[row] = warp_max(own);
    sum[row] = warp_sum(sum[row] * exp_below(own, top[row]));
    // From here on the weight of the row, 0 past the last query.
    sum[row] = first_query + warp * kTile + row < a.q.rows ? 1.0f / sum[row] : 0.0f;
  }

  float* out = a.partial + static_cast<int64>(blockIdx.x) * num_keys;
  for (int key = 0; key < num_keys; key += kReceivedTile) {
    compute_strip(strip, a, q_head, k_head, first_query, key, q_tile, k_tile);
    float received[2] = {0.0f, 0.0f};
#pragma unroll
    for (int row = 0; row < kTile; ++row)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        received[i] = fmaf(exp_below(strip.x[row][i], top[row]), sum[row], received[i]);
    columns[warp][lane] = received[0];
    columns[warp][lane + kWarpSize] = received[1];
    __syncthreads();
    if (threadIdx.x < kReceivedTile && key + static_cast<int>(threadIdx.x) < num_keys) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kReceivedWarps; ++i) total += columns[i][threadIdx.x];
      out[key + threadIdx.x] = total;
    }
  }
}

// partial[b,h,n] = softmax over keys (scale q k^T) of one query: `q` points at its row.
// Grid B * H, block kSumThreads. Logits are kept in `partial`, so N has no limit.
template <class T>
__global__ void __launch_bounds__(kSumThreads) attention_row_kernel(ReceivedArguments<T> a) {
  __shared__ float scratch[kSumThreads / kWarpSize];
  constexpr int kLanes = 8;  // per row of a key
  const int head = blockIdx.x % a.heads;
  const int64 image = blockIdx.x / a.heads;
  const T* q = a.q.head(image, head);
  const T* k = a.k.head(image, head);
  float* out = a.partial + static_cast<int64>(blockIdx.x) * a.k.rows;
  const int lane_of_key = threadIdx.x % kLanes, key_in_block = threadIdx.x / kLanes;
  for (int first = 0; first < a.k.rows; first += kSumThreads / kLanes) {
    const int key = first + key_in_block;
    float dot = 0.0f;
    if (key < a.k.rows)
      for (int i = lane_of_key; i < a.width; i += kLanes)
        dot = fmaf(to_float(q[i]), to_float(k[key * a.k.row_stride + i]), dot);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kFullWarp, dot, step);
    if (lane_of_key == 0 && key < a.k.rows) out[key] = dot * a.scale;
  }
  __syncthreads();
  float top = -infinity();
  for (int key = threadIdx.x; key < a.k.rows; key += kSumThreads) top = fmaxf(top, out[key]);
  top = warp_max(top);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = top;
  __syncthreads();
  for (int i = 0; i < kSumThreads / kWarpSize; ++i) top = fmaxf(top, scratch[i]);
  __syncthreads();
  float sum = 0.0f;
  for (int key = threadIdx.x; key < a.k.rows; key += kSumThreads) sum += exp_below(out[key], top);
  sum = 1.0f / block_sum(sum, scratch);
  for (int key = threadIdx.x; key < a.k.rows; key += kSumThreads)
    out[key] = exp_below(out[key], top) * sum;
}

// received[b,n] = scale * sum over `parts` of partial[b,part,n], in the order of the parts.
// Grid B * ceil(N / 32), block kSumThreads: eight warps take every eighth part.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const float* __restrict__ partial, T* __restrict__ received, int parts,
                     int num_keys, float scale) {
  constexpr int kWarps = kSumThreads / kWarpSize;
  __shared__ float columns[kWarps][kWarpSize];
  const int column_blocks = ceil_div(num_keys, kWarpSize);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64 image = blockIdx.x / column_blocks;
  const int key = blockIdx.x % column_blocks * kWarpSize + lane;
  float sum = 0.0f;
  if (key < num_keys)
#pragma unroll 4
    for (int part = warp; part < parts; part += kWarps)
      sum += partial[(image * parts + part) * num_keys + key];
  columns[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || key >= num_keys) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += columns[i][lane];
  received[image * num_keys + key] = from_float<T>(total * scale);
}

}  // namespace ocvtp
