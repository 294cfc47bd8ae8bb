// The attention that keys receive (ocvtp_kernels/importance/reference.py), a few queries at a time:
// logits of a register tile, softmax over keys while they are in cache, their sum per key. No map
// of queries by keys is ever in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "common/blocks.h"
#include "common/half.h"
#include "common/maths.h"

namespace ocvtp {

// Part: blocks of queries of heads of images. Each key's sum of softmax(scale * q k^T).
template <class E>
struct AttentionReceived {
  const E *q, *k;  // [B, H, M, d], [B, H, N, d]
  int64_t q_strides[3], k_strides[3];
  int64_t heads, queries, keys, width;
  Wide<E> scale;
  Wide<E>* scratch;   // attention_scratch elements, one thread's own
  Wide<E>* received;  // [B, H, query blocks, N]
};

// Part: blocks of tokens of images. mean = sum of parts / rows.
template <class T>
struct AttentionMean {
  const T* received;  // [B, parts, N]
  int64_t parts, keys, rows;
  T* mean;  // [B, N]
};

// Queries in a block of AttentionReceived, and the most that a tile of its logits spans.
inline constexpr int64_t query_block = 128, attention_rows = 8, attention_columns = 48;
inline int64_t query_blocks(int64_t queries) { return (queries + query_block - 1) / query_block; }

// Room for a tile's logits, its queries and, of more queries than one, packed keys, in whole cache
// lines.
inline int64_t attention_scratch(int64_t queries, int64_t keys, int64_t width) {
  const int64_t rows = attention_rows + (queries > 1 ? width : 0);
  return ((keys + attention_columns) * rows + attention_rows * width + 15) / 16 * 16;
}

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The tile's sums fill the registers of the instruction set.
#if defined(__AVX512F__)
inline constexpr int64_t tile_rows = 8, tile_vectors = 3;
#elif defined(__AVX2__)
inline constexpr int64_t tile_rows = 6, tile_vectors = 2;
#else
inline constexpr int64_t tile_rows = 4, tile_vectors = 2;
#endif

template <class T>
inline constexpr int64_t tile_columns = tile_vectors * register_bytes / int64_t(sizeof(T));
static_assert(tile_rows <= attention_rows && tile_columns<float> <= attention_columns);

// 4 by 4, whose loops the compiler unrolls into shuffles.
template <class T>
inline void transpose_square(const T* from, int64_t stride, T* to, int64_t to_stride) {
  T square[4][4], turned[4][4];
  for (int64_t row = 0; row < 4; ++row)
    std::memcpy(square[row], from + row * stride, sizeof square[row]);
#pragma GCC unroll 4
  for (int64_t row = 0; row < 4; ++row)
#pragma GCC unroll 4
    for (int64_t column = 0; column < 4; ++column) turned[row][column] = square[column][row];
  for (int64_t row = 0; row < 4; ++row)
    std::memcpy(to + row * to_stride, turned[row], sizeof turned[row]);
}

// A row in the dtype that it is summed in.
template <class E>
inline void widen_row(const E* from, int64_t width, Wide<E>* to) {
  using T = Wide<E>;
  for_each_vector<T>(width, [&](int64_t at, int64_t lanes) {
    store_lanes<T>(to + at, load_wide(from + at, lanes), lanes);
  });
}

// What a tile multiplies: rows in the dtype of their sums, or, where the CPU multiplies bfloat16,
// rows as they are, two elements in the place of one float.
#if defined(__AVX512BF16__)
template <class E>
inline constexpr int64_t elements_a_place = std::is_same_v<E, BFloat16> ? 2 : 1;
#else
template <class E>
inline constexpr int64_t elements_a_place = 1;
#endif

template <class E>
inline int64_t places_of(int64_t width) {
  return (width + elements_a_place<E> - 1) / elements_a_place<E>;
}

template <class E>
inline void lay_row(const E* from, int64_t width, Wide<E>* to) {
  if constexpr (elements_a_place<E> == 2) {
    if (width % 2) to[width / 2] = 0;
    std::memcpy(to, from, static_cast<size_t>(width) * sizeof(E));
  } else {
    widen_row(from, width, to);
  }
}

template <class E>
inline Part<Wide<E>> add_product(Part<Wide<E>> sum, Part<Wide<E>> key, Wide<E> query) {
#if defined(__AVX512BF16__)
  if constexpr (elements_a_place<E> == 2) {
    const Part<float> queries = query - Part<float>{};
    return _mm512_dpbf16_ps(sum, __m512bh(key), __m512bh(queries));
  }
#endif
  return sum + key * query;
}

// Keys [N, d] become panels [places, tile_columns], the last filled up with zeros. `rows` has room
// for four keys.
template <class E>
inline void pack_keys(const E* k, int64_t stride, int64_t keys, int64_t width, Wide<E>* rows,
                      Wide<E>* panels) {
  using T = Wide<E>;
  constexpr int64_t columns = tile_columns<T>;
  const int64_t places = places_of<E>(width);
  for (int64_t first = 0; first < keys; first += columns, panels += places * columns) {
    const int64_t count = std::min(columns, keys - first);
    if (count < columns) std::fill(panels, panels + places * columns, T(0));
    for (int64_t j = 0; j < count; j += 4) {
      const E* from = k + (first + j) * stride;
      const int64_t some = std::min<int64_t>(4, count - j);
      const T* laid;
      int64_t laid_stride = places;
      if constexpr (std::is_same_v<E, T>) {
        laid = from, laid_stride = stride;
      } else {
        for (int64_t row = 0; row < some; ++row)
          lay_row(from + row * stride, width, rows + row * places);
        laid = rows;
      }
      const int64_t turned = some == 4 ? places / 4 * 4 : 0;
      for (int64_t i = 0; i < turned; i += 4)
        transpose_square(laid + i, laid_stride, panels + i * columns + j, columns);
      for (int64_t row = 0; row < some; ++row)
        for (int64_t i = turned; i < places; ++i)
          panels[i * columns + j + row] = laid[row * laid_stride + i];
    }
  }
}

// Logits [tile_rows, `vectors` of lanes] of queries [tile_rows, places] and a panel.
template <class E, int64_t vectors, class T = Wide<E>>
inline void logits_tile(const T* queries, const T* panel, int64_t places, T scale, T* logits,
                        int64_t stride) {
  constexpr int64_t lanes = register_bytes / int64_t(sizeof(T));
  // Longer sums would round more than a BLAS does.
  constexpr int64_t block = 256;
  for (int64_t first = 0; first == 0 || first < places; first += block) {
    const int64_t last = std::min(first + block, places);
    Part<T> sum[tile_rows][vectors] = {};
    for (int64_t i = first; i < last; ++i) {
      Part<T> key[vectors];
#pragma GCC unroll 3
      for (int64_t c = 0; c < vectors; ++c)
        std::memcpy(&key[c], panel + i * tile_columns<T> + c * lanes, sizeof key[c]);
#pragma GCC unroll 8
      for (int64_t r = 0; r < tile_rows; ++r)
#pragma GCC unroll 3
        for (int64_t c = 0; c < vectors; ++c)
          sum[r][c] = add_product<E>(sum[r][c], key[c], queries[r * places + i]);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < tile_rows; ++r)
#pragma GCC unroll 3
      for (int64_t c = 0; c < vectors; ++c) {
        T* to = logits + r * stride + c * lanes;
        Part<T> x = sum[r][c] * scale;
        if (first > 0) {
          Part<T> before;
          std::memcpy(&before, to, sizeof before);
          x += before;
        }
        std::memcpy(to, &x, sizeof x);
      }
  }
}

// A row of logits, filled up to whole vectors with -inf, becomes exp(x - max); the factor that
// makes their sum 1 is returned.
template <class T>
inline T softmax_row(T* row, int64_t keys) {
  Vector<T> most = splat(-std::numeric_limits<T>::infinity()), total{};
  for (int64_t at = 0; at < keys; at += width<T>) most = larger<T>(load(row + at), most);
  const T top = max_lanes<T>(most);
  for (int64_t at = 0; at < keys; at += width<T>) {
    const Vector<T> share = decay<T>(load(row + at) - top);
    store<T>(row + at, share);
    total += share;
  }
  return T(1) / sum_lanes<T>(total);
}

// sum_lanes of four vectors, side by side.
template <class T>
inline void sums_of_lanes(const Vector<T> (&values)[4], T* sums) {
  using Quad = typename Simd<T>::Quad;
  constexpr int64_t quads = width<T> / 4;
  T folded[4][4], turned[4][4];
#pragma GCC unroll 4
  for (int64_t v = 0; v < 4; ++v) {
    Quad quad[quads];
    std::memcpy(quad, values[v].part, sizeof quad);
#pragma GCC unroll 2
    for (int64_t half = quads / 2; half > 0; half /= 2)
#pragma GCC unroll 2
      for (int64_t i = 0; i < half; ++i) quad[i] += quad[i + half];
    std::memcpy(folded[v], quad, sizeof folded[v]);
  }
  transpose_square(folded[0], 4, turned[0], 4);
  Quad lane[4];
  std::memcpy(lane, turned, sizeof lane);
  const Quad sum = (lane[0] + lane[2]) + (lane[1] + lane[3]);
  std::memcpy(sums, &sum, sizeof sum);
}

// The logits of one query, four keys at a time; keys too many repeat the last.
template <class E>
inline void query_logits(const Wide<E>* query, const E* k, int64_t stride, int64_t keys,
                         int64_t width, Wide<E> scale, Wide<E>* logits) {
  using T = Wide<E>;
  for (int64_t n = 0; n < keys; n += 4) {
    Vector<T> sum[4] = {};
    // One after another, as they lie in memory.
    for (int64_t j = 0; j < 4; ++j) {
      const E* key = k + std::min(n + j, keys - 1) * stride;
      if (stride > width) {
        // Other heads lie between, often pages of them: the CPU does not look that far ahead, but
        // within a row it does.
        constexpr int64_t line = 64 / int64_t(sizeof(E));
        const E* later = k + std::min(n + j + 8, keys - 1) * stride;
        for (int64_t at = 0; at < std::min(width, 4 * line); at += line)
          __builtin_prefetch(later + at);
      }
      for_each_vector<T>(width, [&](int64_t at, int64_t lanes) {
        sum[j] += load_lanes(query + at, lanes) * load_wide(key + at, lanes);
      });
    }
    T sums[4];
    sums_of_lanes(sum, sums);
    for (int64_t j = 0; j < 4; ++j) logits[n + j] = sums[j] * scale;
  }
}

template <class E>
void attention_received(const AttentionReceived<E>& a, int64_t begin, int64_t end) {
  using T = Wide<E>;
  constexpr int64_t columns = tile_columns<T>;
  const int64_t blocks = query_blocks(a.queries), places = places_of<E>(a.width);
  // Of a row of logits: whole tiles, and whole vectors.
  constexpr int64_t unit = std::max(columns, width<T>);
  static_assert(unit % columns == 0 && unit % width<T> == 0);
  const int64_t padded = (a.keys + unit - 1) / unit * unit;
  const T none = -std::numeric_limits<T>::infinity();
  T* panels = a.scratch;
  T* logits = panels + (a.queries > 1 ? padded * places : 0);
  T* tile = logits + padded * tile_rows;
  int64_t packed = -1;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t head = part / blocks;
    const E* q = a.q + head / a.heads * a.q_strides[0] + head % a.heads * a.q_strides[1];
    const E* k = a.k + head / a.heads * a.k_strides[0] + head % a.heads * a.k_strides[1];
    T* received = a.received + part * a.keys;
    const int64_t first = part % blocks * query_block;
    const int64_t last = std::min(first + query_block, a.queries);
    // Panels would cost a lone query more than its logits do.
    if (a.queries > 1 && packed != head)
      pack_keys(k, a.k_strides[2], a.keys, a.width, tile, panels);
    packed = head;
    for (int64_t row = first; row < last; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, last - row);
      if (a.queries == 1) {
        widen_row(q, a.width, tile);
        query_logits(tile, k, a.k_strides[2], a.keys, a.width, a.scale, logits);
      } else {
        // A row too many repeats the last.
        for (int64_t r = 0; r < tile_rows; ++r)
          lay_row(q + (row + std::min(r, rows - 1)) * a.q_strides[2], a.width, tile + r * places);
        int64_t n = 0;
        for (; n + columns <= a.keys; n += columns)
          logits_tile<E, tile_vectors>(tile, panels + n * places, places, a.scale, logits + n,
                                       padded);
        // What is left is often the one key that a CLS token adds.
        constexpr int64_t lanes = columns / tile_vectors;
        const T* rest = panels + n * places;
        if (a.keys - n > lanes)
          logits_tile<E, tile_vectors>(tile, rest, places, a.scale, logits + n, padded);
        else if (a.keys > n)
          logits_tile<E, 1>(tile, rest, places, a.scale, logits + n, padded);
      }
      T share[tile_rows];
      for (int64_t r = 0; r < rows; ++r) {
        std::fill(logits + r * padded + a.keys, logits + (r + 1) * padded, none);
        share[r] = softmax_row(logits + r * padded, a.keys);
      }
      for_each_vector<T>(a.keys, [&](int64_t at, int64_t lanes) {
        Vector<T> sum = row == first ? Vector<T>{} : load_lanes(received + at, lanes);
        for (int64_t r = 0; r < rows; ++r)
          sum += load_lanes(logits + r * padded + at, lanes) * share[r];
        store_lanes<T>(received + at, sum, lanes);
      });
    }
  }
}

// In double: a sum of a thousand parts would else round more than the parts themselves.
template <class T>
void attention_mean(const AttentionMean<T>& a, int64_t begin, int64_t end) {
  for_each_block(a.keys, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    double sum[token_block] = {};
    for (int64_t part = 0; part < a.parts; ++part) {
      const T* received = a.received + (image * a.parts + part) * a.keys + first;
      for (int64_t i = 0; i < count; ++i) sum[i] += received[i];
    }
    for (int64_t i = 0; i < count; ++i)
      a.mean[image * a.keys + first + i] = static_cast<T>(sum[i] / static_cast<double>(a.rows));
  });
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(attention_received, AttentionReceived)
OCVTP_KERNEL_OF_FLOAT16(attention_received, AttentionReceived)
OCVTP_KERNEL_OF_BFLOAT16(attention_received, AttentionReceived)
OCVTP_KERNEL(attention_mean, AttentionMean)
