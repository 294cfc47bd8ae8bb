// The attention that keys receive (ocvtp_kernels/importance/reference.py), a few queries at a time:
// logits of a register tile, softmax over keys while they are in cache, their sum per key. No map
// of queries by keys is ever in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "common/kernels.h"
#include "common/maths.h"
#include "slots/slot_softmax.h"

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

// Keys [N, d] become panels [d, tile_columns], the last filled up with zeros.
template <class T>
inline void pack_keys(const T* k, int64_t stride, int64_t keys, int64_t width, T* panels) {
  constexpr int64_t columns = tile_columns<T>;
  for (int64_t first = 0; first < keys; first += columns, panels += width * columns) {
    const int64_t count = std::min(columns, keys - first);
    if (count < columns) std::fill(panels, panels + width * columns, T(0));
    const int64_t squares = count / 4 * 4, square_width = width / 4 * 4;
    for (int64_t j = 0; j < squares; j += 4)
      for (int64_t i = 0; i < square_width; i += 4)
        transpose_square(k + (first + j) * stride + i, stride, panels + i * columns + j, columns);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = j < squares ? square_width : 0; i < width; ++i)
        panels[i * columns + j] = k[(first + j) * stride + i];
  }
}

// Logits [tile_rows, `vectors` of lanes] of queries [tile_rows, d] and a panel.
template <class T, int64_t vectors>
inline void logits_tile(const T* queries, const T* panel, int64_t width, T scale, T* logits,
                        int64_t stride) {
  constexpr int64_t lanes = register_bytes / int64_t(sizeof(T));
  Part<T> sum[tile_rows][vectors] = {};
  for (int64_t i = 0; i < width; ++i) {
    Part<T> key[vectors];
#pragma GCC unroll 3
    for (int64_t c = 0; c < vectors; ++c)
      std::memcpy(&key[c], panel + i * tile_columns<T> + c * lanes, sizeof key[c]);
#pragma GCC unroll 8
    for (int64_t r = 0; r < tile_rows; ++r)
#pragma GCC unroll 3
      for (int64_t c = 0; c < vectors; ++c) sum[r][c] += key[c] * queries[r * width + i];
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < tile_rows; ++r)
#pragma GCC unroll 3
    for (int64_t c = 0; c < vectors; ++c) {
      const Part<T> x = sum[r][c] * scale;
      std::memcpy(logits + r * stride + c * lanes, &x, sizeof x);
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

template <class T>
inline void query_logits(const T* query, const T* k, int64_t stride, int64_t keys, int64_t width,
                         T scale, T* logits) {
  for (int64_t n = 0; n < keys; ++n) {
    Vector<T> sum{};
    for_each_vector<T>(width, [&](int64_t at, int64_t lanes) {
      sum += load_lanes(query + at, lanes) * load_lanes(k + n * stride + at, lanes);
    });
    logits[n] = sum_lanes<T>(sum) * scale;
  }
}

template <class T>
void attention_received(const AttentionReceived<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t columns = tile_columns<T>;
  const int64_t blocks = query_blocks(a.queries);
  // Of a row of logits: whole tiles, and whole vectors.
  constexpr int64_t unit = std::max(columns, width<T>);
  static_assert(unit % columns == 0 && unit % width<T> == 0);
  const int64_t padded = (a.keys + unit - 1) / unit * unit;
  const T none = -std::numeric_limits<T>::infinity();
  T* panels = a.scratch;
  T* logits = panels + padded * a.width;
  T* tile = logits + padded * tile_rows;
  int64_t packed = -1;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t head = part / blocks;
    const T* q = a.q + head / a.heads * a.q_strides[0] + head % a.heads * a.q_strides[1];
    const T* k = a.k + head / a.heads * a.k_strides[0] + head % a.heads * a.k_strides[1];
    T* received = a.received + part * a.keys;
    const int64_t first = part % blocks * query_block;
    const int64_t last = std::min(first + query_block, a.queries);
    // Panels would cost a lone query more than its logits do.
    if (a.queries > 1 && packed != head) pack_keys(k, a.k_strides[2], a.keys, a.width, panels);
    packed = head;
    for (int64_t row = first; row < last; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, last - row);
      if (a.queries == 1) {
        query_logits(q, k, a.k_strides[2], a.keys, a.width, a.scale, logits);
      } else {
        // A row too many repeats the last.
        for (int64_t r = 0; r < tile_rows; ++r)
          std::memcpy(tile + r * a.width, q + (row + std::min(r, rows - 1)) * a.q_strides[2],
                      static_cast<size_t>(a.width) * sizeof(T));
        int64_t n = 0;
        for (; n + columns <= a.keys; n += columns)
          logits_tile<T, tile_vectors>(tile, panels + n * a.width, a.width, a.scale, logits + n,
                                       padded);
        // What is left is often the one key that a CLS token adds.
        constexpr int64_t lanes = columns / tile_vectors;
        const T* rest = panels + n * a.width;
        if (a.keys - n > lanes)
          logits_tile<T, tile_vectors>(tile, rest, a.width, a.scale, logits + n, padded);
        else if (a.keys > n)
          logits_tile<T, 1>(tile, rest, a.width, a.scale, logits + n, padded);
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
