// The attention that keys receive, averaged over heads and rows of queries, without the matrix of
// queries by keys: a block goes over the keys twice with a tile of queries, for the denominators of
// the softmax and for the sums over its queries, which a second kernel adds up in a fixed order. Of
// a few queries a block takes one, and keeps its logits in memory.
#pragma once

#include "common/mma.cuh"

namespace ocvtp {

constexpr int kReceivedThreads = 128;
constexpr int kReceivedWarps = kReceivedThreads / kWarpSize;
constexpr int kReceivedTile = 64;   // queries, and keys, of a tile
constexpr int kReceivedDepth = 64;  // channels in shared memory at a time
constexpr int kSumThreads = 256;
constexpr int kFewQueries = 8;  // a block takes one of so many

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

// Which keys a row attends to: valid ones up to its last. `last` is -1 in a row that sees none.
struct SeenKeys {
  const int64* last;  // [B,M]; null: every row sees every valid key
  const bool* valid;  // [B,N]; null: all are

  __device__ __forceinline__ bool is_valid(int64 image, int key, int keys) const {
    return valid == nullptr || valid[image * keys + key];
  }

  // The number of keys up to the last one of a row.
  __device__ __forceinline__ int up_to_last(int64 row, int keys) const {
    if (last == nullptr) return keys;
    const int64 key = last[row];
    return key < 0 ? 0 : key < keys ? static_cast<int>(key) + 1 : keys;
  }
};

template <class T>
struct ReceivedArguments {
  HeadRows<T> q, k;  // [B,H,M,d], [B,H,N,d]
  SeenKeys seen;
  float* partial;  // [B,H,tiles,N], tiles of queries
  int heads, tiles, width;
  float scale;
};

// The warp's 16 rows by 64 columns of logits: lane l has columns l and l + 32 of each row, -inf
// where a row does not see the key. Where MASKED, `ends` holds each row's keys up to its last.
struct Strip {
  float x[kTile][2];
};

template <bool MASKED, class T>
__device__ __forceinline__ void compute_strip(Strip& strip, const ReceivedArguments<T>& a,
                                              const T* q_head, const T* k_head, int first_query,
                                              int first_key, const int* ends, int64 image,
                                              T* q_tile, T* k_tile) {
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
  for (int half_row = 0; half_row < 2; ++half_row) {
    const int column = lane + half_row * kWarpSize, key = first_key + column;
    const bool exists = key < a.k.rows && (!MASKED || a.seen.is_valid(image, key, a.k.rows));
#pragma unroll
    for (int row = 0; row < kTile; ++row) {
      const bool sees = exists && (!MASKED || key < ends[warp * kTile + row]);
      strip.x[row][half_row] = sees ? logits[row * kLogitStride + column] * a.scale : -infinity();
    }
  }
}

// exp(x - top), 0 where x is -inf even if top is too; NaN stays.
__device__ __forceinline__ float exp_below(float x, float top) {
  return x == -infinity() ? 0.0f : expf(x - top);
}

// partial[b,h,tile,n] = the sum over the tile's queries of softmax over keys (scale q k^T).
// Grid B * H * tiles, block kReceivedThreads, `received_shared_bytes` of dynamic shared memory.
template <bool MASKED, class T>
__global__ void __launch_bounds__(kReceivedThreads, 3)
    attention_from_rows_kernel(ReceivedArguments<T> a) {
  __shared__ float columns[kReceivedWarps][kReceivedTile];
  __shared__ int ends[MASKED ? kReceivedTile : 1];
  OCVTP_SHARED(unsigned char, bytes);
  T* q_tile = reinterpret_cast<T*>(bytes);
  T* k_tile = reinterpret_cast<T*>(bytes + tile_bytes<T>());
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int tile = blockIdx.x % a.tiles, head = blockIdx.x / a.tiles % a.heads;
  const int64 image = blockIdx.x / a.tiles / a.heads;
  const int first_query = tile * kReceivedTile;
  const T* q_head = a.q.head(image, head);
  const T* k_head = a.k.head(image, head);
  int num_seen = a.k.rows;  // of the row that sees most
  if constexpr (MASKED) {
    if (threadIdx.x < kReceivedTile) {
      const int query = first_query + static_cast<int>(threadIdx.x);
      ends[threadIdx.x] =
          query < a.q.rows ? a.seen.up_to_last(image * a.q.rows + query, a.k.rows) : 0;
    }
    __syncthreads();
    num_seen = 0;
    for (int row = 0; row < kReceivedTile; ++row) num_seen = max(num_seen, ends[row]);
  }

  float top[kTile], sum[kTile];
#pragma unroll
  for (int row = 0; row < kTile; ++row) {
    top[row] = -infinity();
    sum[row] = 0.0f;
  }
  Strip strip;
  for (int key = 0; key < num_seen; key += kReceivedTile) {
    compute_strip<MASKED>(strip, a, q_head, k_head, first_query, key, ends, image, q_tile, k_tile);
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
    // From here on the weight of the row, 0 where there is none or it sees no key.
    const int tile_row = warp * kTile + row;
    const bool counts = MASKED ? ends[tile_row] > 0 : first_query + tile_row < a.q.rows;
    sum[row] = counts ? 1.0f / sum[row] : 0.0f;
  }

  float* out = a.partial + static_cast<int64>(blockIdx.x) * a.k.rows;
  for (int key = 0; key < num_seen; key += kReceivedTile) {
    compute_strip<MASKED>(strip, a, q_head, k_head, first_query, key, ends, image, q_tile, k_tile);
    float received[2] = {0.0f, 0.0f};
#pragma unroll
    for (int row = 0; row < kTile; ++row)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // NaN of a row stays with the keys that it sees.
        if (MASKED && key + lane + i * kWarpSize >= ends[warp * kTile + row]) continue;
        received[i] = fmaf(exp_below(strip.x[row][i], top[row]), sum[row], received[i]);
      }
    columns[warp][lane] = received[0];
    columns[warp][lane + kWarpSize] = received[1];
    __syncthreads();
    if (threadIdx.x < kReceivedTile && key + static_cast<int>(threadIdx.x) < a.k.rows) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kReceivedWarps; ++i) total += columns[i][threadIdx.x];
      out[key + threadIdx.x] = total;
    }
  }
  if constexpr (MASKED) {
    const int written = ceil_div(num_seen, kReceivedTile) * kReceivedTile;
    for (int key = written + threadIdx.x; key < a.k.rows; key += kReceivedThreads) out[key] = 0.0f;
  }
}

// partial[b,h,m,n] = softmax over keys (scale q k^T), a block a query.
// Grid B * H * M, block kSumThreads. Logits are kept in `partial`, so N has no limit.
template <class T>
__global__ void __launch_bounds__(kSumThreads) attention_row_kernel(ReceivedArguments<T> a) {
  __shared__ float scratch[kSumThreads / kWarpSize];
  constexpr int kLanes = 8;  // per row of a key
  const int row = blockIdx.x % a.tiles, head = blockIdx.x / a.tiles % a.heads;
  const int64 image = blockIdx.x / a.tiles / a.heads;
  const T* q = a.q.head(image, head) + row * a.q.row_stride;
  const T* k = a.k.head(image, head);
  const int num_seen = a.seen.up_to_last(image * a.q.rows + row, a.k.rows);
  float* out = a.partial + static_cast<int64>(blockIdx.x) * a.k.rows;
  const int lane_of_key = threadIdx.x % kLanes, key_in_block = threadIdx.x / kLanes;
  for (int first = 0; first < num_seen; first += kSumThreads / kLanes) {
    const int key = first + key_in_block;
    const bool sees = key < num_seen && a.seen.is_valid(image, key, a.k.rows);
    float dot = 0.0f;
    if (sees)
      for (int i = lane_of_key; i < a.width; i += kLanes)
        dot = fmaf(to_float(q[i]), to_float(k[key * a.k.row_stride + i]), dot);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kFullWarp, dot, step);
    if (lane_of_key == 0 && key < num_seen) out[key] = sees ? dot * a.scale : -infinity();
  }
  for (int key = num_seen + threadIdx.x; key < a.k.rows; key += kSumThreads) out[key] = 0.0f;
  __syncthreads();
  float top = -infinity();
  for (int key = threadIdx.x; key < num_seen; key += kSumThreads) top = fmaxf(top, out[key]);
  top = warp_max(top);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = top;
  __syncthreads();
  for (int i = 0; i < kSumThreads / kWarpSize; ++i) top = fmaxf(top, scratch[i]);
  __syncthreads();
  float sum = 0.0f;
  for (int key = threadIdx.x; key < num_seen; key += kSumThreads) sum += exp_below(out[key], top);
  sum = 1.0f / block_sum(sum, scratch);
  for (int key = threadIdx.x; key < num_seen; key += kSumThreads)
    out[key] = exp_below(out[key], top) * sum;
}

// received[b,n] = the sum over `parts` of partial[b,part,n], in the order of the parts, by the rows
// that count, of all heads. Grid B * ceil(N / 32), block kSumThreads: eight warps take every eighth
// part.
__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const float* __restrict__ partial, float* __restrict__ received, SeenKeys seen,
                     int parts, int num_keys, int heads, int queries) {
  constexpr int kWarps = kSumThreads / kWarpSize;
  __shared__ float columns[kWarps][kWarpSize];
  __shared__ float scratch[kWarps];
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
  float rows = static_cast<float>(queries);
  if (seen.last != nullptr) {
    float own = 0.0f;
    for (int row = threadIdx.x; row < queries; row += kSumThreads)
      own += seen.last[image * queries + row] >= 0 ? 1.0f : 0.0f;
    rows = fmaxf(1.0f, block_sum(own, scratch));
  }
  __syncthreads();
  if (warp != 0 || key >= num_keys) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += columns[i][lane];
  received[image * num_keys + key] =
      seen.is_valid(image, key, num_keys) ? total / (static_cast<float>(heads) * rows) : 0.0f;
}

}  // namespace ocvtp
