// The attention that keys receive (ocvtp_kernels/ops/attention_from_rows), a few rows of queries at
// a time: logits by register tiles, softmax over keys while they are in cache, sums per key. The
// matrix of queries by keys is never in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "common/blocks.h"
#include "common/half.h"
#include "common/maths.h"

namespace ocvtp {

// Which keys a row attends to: valid ones up to its last. `last` is -1 in a row that sees none.
struct SeenKeys {
  const int64_t* last;  // [B, M]; null: every row sees every valid key
  const bool* valid;    // [B, N]; null: all are
};

// Part: blocks of queries of heads of images. Each key's sum of softmax(scale * q k^T).
template <class E>
struct AttentionFromRows {
  const E *q, *k;  // [B, H, M, d], [B, H, N, d]
  SeenKeys seen;
  int64_t q_strides[3], k_strides[3];
  int64_t heads, queries, keys, width;
  Acc<E> scale;
  Acc<E>* scratch;   // attention_scratch elements, one thread's own
  Acc<E>* received;  // [B, H, query blocks, N]
};

// Part: blocks of tokens of images. mean = sum of parts / the rows that count, of all heads.
template <class T>
struct AttentionMean {
  const T* received;  // [B, parts, N]
  SeenKeys seen;
  int64_t parts, keys, heads, queries;
  T* mean;  // [B, N]
};

// Queries in a block of AttentionFromRows, and the maximal size of a tile of logits. Blocks are
// whole tiles of every instruction set, and few tiles: long sums of like terms lose bits.
inline constexpr int64_t query_block = 48, attention_rows = 8, attention_columns = 48;
inline int64_t query_blocks(int64_t queries) { return (queries + query_block - 1) / query_block; }

// Whether keys are packed: for a few queries it would cost more than the logits.
inline bool packs_keys(int64_t queries) { return queries > attention_rows; }

// Elements for the logits of a tile, its queries and packed keys: whole cache lines.
inline int64_t attention_scratch(int64_t queries, int64_t keys, int64_t width) {
  const int64_t rows = attention_rows + (packs_keys(queries) ? width : 0);
  return ((keys + attention_columns) * rows + attention_rows * width + 15) / 16 * 16;
}

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// A tile whose sums fill the registers of the instruction set.
#if defined(__AVX512F__)
inline constexpr int64_t tile_rows = 8, tile_vectors = 3;
#elif defined(__AVX2__)
inline constexpr int64_t tile_rows = 6, tile_vectors = 2;
#else
inline constexpr int64_t tile_rows = 4, tile_vectors = 2;
#endif

template <class T>
inline constexpr int64_t tile_columns = tile_vectors * register_bytes / int64_t(sizeof(T));
static_assert(query_block % tile_rows == 0 && tile_rows <= attention_rows);
static_assert(tile_columns<float> <= attention_columns);

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
inline void upcast_row(const E* from, int64_t width, Acc<E>* to) {
  using T = Acc<E>;
  for_each_vector<T>(width, [&](int64_t at, int64_t lanes) {
    store_lanes<T>(to + at, load_acc(from + at, lanes), lanes);
  });
}

// What a tile multiplies: rows in the dtype of their sums, or, where the CPU multiplies bfloat16,
// rows as they are, two elements per float.
#if defined(__AVX512BF16__)
template <class E>
inline constexpr int64_t elements_per_float = std::is_same_v<E, BFloat16> ? 2 : 1;
#else
template <class E>
inline constexpr int64_t elements_per_float = 1;
#endif

template <class E>
inline int64_t depth_of(int64_t width) {
  return (width + elements_per_float<E> - 1) / elements_per_float<E>;
}

template <class E>
inline void lay_row(const E* from, int64_t width, Acc<E>* to) {
  if constexpr (elements_per_float<E> == 2) {
    if (width % 2) to[width / 2] = 0;
    std::memcpy(to, from, static_cast<size_t>(width) * sizeof(E));
  } else {
    upcast_row(from, width, to);
  }
}

template <class E>
inline Part<Acc<E>> add_product(Part<Acc<E>> sum, Part<Acc<E>> key, Acc<E> query) {
#if defined(__AVX512BF16__)
  if constexpr (elements_per_float<E> == 2) {
    const Part<float> queries = query - Part<float>{};
    return _mm512_dpbf16_ps(sum, __m512bh(key), __m512bh(queries));
  }
#endif
  return sum + key * query;
}

// Keys [N, d] become panels [depth, tile_columns], the last filled up with zeros. `rows` holds
// four keys.
template <class E>
inline void pack_keys(const E* k, int64_t stride, int64_t keys, int64_t width, Acc<E>* rows,
                      Acc<E>* panels) {
  using T = Acc<E>;
  constexpr int64_t columns = tile_columns<T>;
  const int64_t depth = depth_of<E>(width);
  for (int64_t first = 0; first < keys; first += columns, panels += depth * columns) {
    const int64_t count = std::min(columns, keys - first);
    if (count < columns) std::fill(panels, panels + depth * columns, T(0));
    for (int64_t j = 0; j < count; j += 4) {
      const E* from = k + (first + j) * stride;
      const int64_t some = std::min<int64_t>(4, count - j);
      const T* laid;
      int64_t laid_stride = depth;
      if constexpr (std::is_same_v<E, T>) {
        laid = from, laid_stride = stride;
      } else {
        for (int64_t row = 0; row < some; ++row)
          lay_row(from + row * stride, width, rows + row * depth);
        laid = rows;
      }
      const int64_t turned = some == 4 ? depth / 4 * 4 : 0;
      for (int64_t i = 0; i < turned; i += 4)
        transpose_square(laid + i, laid_stride, panels + i * columns + j, columns);
      for (int64_t row = 0; row < some; ++row)
        for (int64_t i = turned; i < depth; ++i)
          panels[i * columns + j + row] = laid[row * laid_stride + i];
    }
  }
}

// Logits [tile_rows, `vectors` of lanes] of queries [tile_rows, depth] and a panel.
template <class E, int64_t vectors, class T = Acc<E>>
inline void logits_tile(const T* queries, const T* panel, int64_t depth, T scale, T* logits,
                        int64_t stride) {
  constexpr int64_t lanes = register_bytes / int64_t(sizeof(T));
  // As a BLAS does: longer sums would lose more bits.
  constexpr int64_t block = 256;
  for (int64_t first = 0; first == 0 || first < depth; first += block) {
    const int64_t last = std::min(first + block, depth);
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
          sum[r][c] = add_product<E>(sum[r][c], key[c], queries[r * depth + i]);
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

// Turns a row of logits, padded to whole vectors with -inf, into exp(x - max); returns 1 / sum.
template <class T>
inline T softmax_row(T* row, int64_t keys) {
  Vector<T> max = splat(-std::numeric_limits<T>::infinity()), total{};
  for (int64_t at = 0; at < keys; at += width<T>) max = larger<T>(load(row + at), max);
  const T top = max_lanes<T>(max);
  for (int64_t at = 0; at < keys; at += width<T>) {
    const Vector<T> weight = decay<T>(load(row + at) - top);
    store<T>(row + at, weight);
    total += weight;
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

// The logits [rows, `logits_stride`] of a few queries [rows, width], four keys at a time; past the
// end the last key is repeated.
template <class E>
inline void query_logits(const Acc<E>* queries, int64_t rows, const E* k, int64_t stride,
                         int64_t keys, int64_t width, Acc<E> scale, Acc<E>* logits,
                         int64_t logits_stride) {
  using T = Acc<E>;
  constexpr int64_t step = OCVTP_ISA::width<T>;
  for (int64_t n = 0; n < keys; n += 4)
    for (int64_t r = 0; r < rows; ++r) {
      const T* query = queries + r * width;
      Vector<T> sum[4] = {};
      // One key after another, in the order of memory.
      for (int64_t j = 0; j < 4; ++j) {
        const E* key = k + std::min(n + j, keys - 1) * stride;
        if (r == 0 && stride > width) {
          // Rows of other heads lie between: the hardware prefetches within a row, not that far.
          constexpr int64_t line = 64 / int64_t(sizeof(E));
          const E* later = k + std::min(n + j + 8, keys - 1) * stride;
          for (int64_t at = 0; at < std::min(width, 4 * line); at += line)
            __builtin_prefetch(later + at);
        }
        // Two sums, as each waits for its last term.
        Vector<T> other{};
        int64_t done = 0;
        for (; done + 2 * step <= width; done += 2 * step) {
          sum[j] += load(query + done) * load_acc(key + done, step);
          other += load(query + done + step) * load_acc(key + done + step, step);
        }
        sum[j] += other;
        for_each_vector<T>(width - done, [&](int64_t at, int64_t lanes) {
          sum[j] += load_lanes(query + done + at, lanes) * load_acc(key + done + at, lanes);
        });
      }
      T sums[4];
      sums_of_lanes(sum, sums);
      for (int64_t j = 0; j < 4; ++j) logits[r * logits_stride + n + j] = sums[j] * scale;
    }
}

// The logits of a tile of queries [tile_rows, depth] and packed keys.
template <class E>
inline void packed_logits(const Acc<E>* queries, const Acc<E>* panels, int64_t keys, int64_t depth,
                          Acc<E> scale, Acc<E>* logits, int64_t stride) {
  constexpr int64_t columns = tile_columns<Acc<E>>, lanes = columns / tile_vectors;
  int64_t n = 0;
  for (; n + columns <= keys; n += columns)
    logits_tile<E, tile_vectors>(queries, panels + n * depth, depth, scale, logits + n, stride);
  // The rest is often one key, because of a CLS token.
  const Acc<E>* rest = panels + n * depth;
  if (keys - n > lanes)
    logits_tile<E, tile_vectors>(queries, rest, depth, scale, logits + n, stride);
  else if (keys > n)
    logits_tile<E, 1>(queries, rest, depth, scale, logits + n, stride);
}

template <class E>
void attention_from_rows(const AttentionFromRows<E>& a, int64_t begin, int64_t end) {
  using T = Acc<E>;
  // A row of logits is padded to whole tiles and whole vectors.
  constexpr int64_t unit = std::max(tile_columns<T>, width<T>);
  static_assert(unit % tile_columns<T> == 0 && unit % width<T> == 0);
  const bool packs = packs_keys(a.queries);
  const int64_t blocks = query_blocks(a.queries), depth = depth_of<E>(a.width);
  const int64_t padded = (a.keys + unit - 1) / unit * unit;
  const int64_t rows_at_once = packs ? tile_rows : attention_rows;
  const T none = -std::numeric_limits<T>::infinity();
  T* panels = a.scratch;
  T* logits = panels + (packs ? padded * depth : 0);
  T* tile = logits + padded * attention_rows;
  int64_t packed_head = -1, packed_keys = 0;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t head = part / blocks, image = head / a.heads;
    const E* q = a.q + image * a.q_strides[0] + head % a.heads * a.q_strides[1];
    const E* k = a.k + image * a.k_strides[0] + head % a.heads * a.k_strides[1];
    const int64_t* last = a.seen.last ? a.seen.last + image * a.queries : nullptr;
    const bool* valid = a.seen.valid ? a.seen.valid + image * a.keys : nullptr;
    T* received = a.received + part * a.keys;
    std::fill(received, received + a.keys, T(0));
    const int64_t stop = std::min((part % blocks + 1) * query_block, a.queries);
    for (int64_t next = part % blocks * query_block; next < stop;) {
      // The next rows that see a key, each with the number of keys up to its last.
      int64_t row[attention_rows], seen[attention_rows], rows = 0, keys = 0;
      for (; next < stop && rows < rows_at_once; ++next) {
        seen[rows] = last ? std::min(last[next], a.keys - 1) + 1 : a.keys;
        if (seen[rows] <= 0) continue;
        keys = std::max(keys, seen[rows]);
        row[rows++] = next;
      }
      if (rows == 0) break;
      if (packs) {
        if (packed_head != head) packed_keys = 0;
        packed_head = head;
        if (packed_keys < keys) {
          // Whole panels, as many as a causal mask's next rows take.
          const int64_t from = packed_keys / unit * unit;
          packed_keys = keys;
          pack_keys(k + from * a.k_strides[2], a.k_strides[2], keys - from, a.width, tile,
                    panels + from * depth);
        }
        // Past the end the last row is repeated.
        for (int64_t r = 0; r < tile_rows; ++r)
          lay_row(q + row[std::min(r, rows - 1)] * a.q_strides[2], a.width, tile + r * depth);
        packed_logits<E>(tile, panels, keys, depth, a.scale, logits, padded);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          upcast_row(q + row[r] * a.q_strides[2], a.width, tile + r * a.width);
        query_logits(tile, rows, k, a.k_strides[2], keys, a.width, a.scale, logits, padded);
      }
      const int64_t whole = (keys + width<T> - 1) / width<T> * width<T>;
      T inverse_sum[attention_rows];
      for (int64_t r = 0; r < rows; ++r) {
        T* x = logits + r * padded;
        std::fill(x + seen[r], x + whole, none);
        if (valid)
          for (int64_t n = 0; n < seen[r]; ++n) x[n] = valid[n] ? x[n] : none;
        inverse_sum[r] = softmax_row(x, whole);
        std::fill(x + seen[r], x + whole, T(0));
        if (inverse_sum[r] != inverse_sum[r]) {
          // NaN of a row stays with the keys that it sees.
          std::fill(x, x + seen[r], inverse_sum[r]);
          inverse_sum[r] = 1;
        }
      }
      for_each_vector<T>(keys, [&](int64_t at, int64_t lanes) {
        Vector<T> sum{};
        for (int64_t r = 0; r < rows; ++r)
          sum += load_lanes(logits + r * padded + at, lanes) * inverse_sum[r];
        sum += load_lanes(received + at, lanes);
        store_lanes<T>(received + at, sum, lanes);
      });
    }
  }
}

// In double: a float sum of a thousand parts would lose more bits than the parts have lost.
template <class T>
void attention_mean(const AttentionMean<T>& a, int64_t begin, int64_t end) {
  for_each_block(a.keys, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    double sum[token_block] = {};
    for (int64_t part = 0; part < a.parts; ++part) {
      const T* received = a.received + (image * a.parts + part) * a.keys + first;
      for (int64_t i = 0; i < count; ++i) sum[i] += received[i];
    }
    int64_t rows = a.queries;
    if (a.seen.last) {
      const int64_t* last = a.seen.last + image * a.queries;
      rows = std::count_if(last, last + a.queries, [](int64_t key) { return key >= 0; });
    }
    const auto terms = static_cast<double>(a.heads * std::max<int64_t>(1, rows));
    const bool* valid = a.seen.valid ? a.seen.valid + image * a.keys + first : nullptr;
    for (int64_t i = 0; i < count; ++i)
      a.mean[image * a.keys + first + i] =
          valid && !valid[i] ? T(0) : static_cast<T>(sum[i] / terms);
  });
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(attention_from_rows, AttentionFromRows)
OCVTP_KERNEL_OF_FLOAT16(attention_from_rows, AttentionFromRows)
OCVTP_KERNEL_OF_BFLOAT16(attention_from_rows, AttentionFromRows)
OCVTP_KERNEL(attention_mean, AttentionMean)
