// Bipartite soft matching (ocvtp_kernels/ops/bipartite_merge): tokens of A merge into those of B.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/greedy_scores.h"

namespace ocvtp {

// Tokens of B in a block of units, and tokens of A in a part of bipartite_scores.
inline constexpr int64_t unit_block = 16, score_block = 8;

// Tokens of a side that starts at `first` and has every other token.
inline int64_t side_tokens(int64_t num_tokens, int64_t first) {
  return first < num_tokens ? (num_tokens - first + 1) / 2 : 0;
}
inline int64_t unit_blocks(int64_t num_b) { return (num_b + unit_block - 1) / unit_block; }
inline int64_t score_blocks(int64_t num_a) { return (num_a + score_block - 1) / score_block; }

// Parts: blocks of B for bipartite_units, then blocks of A for bipartite_scores, then images for
// bipartite_groups, then rows of [B, N - r] for bipartite_rows.
template <class T>
struct BipartiteMerge {
  Rows<T> tokens, keys;
  const T* sizes;                        // [B, N]
  int64_t num_tokens, width, depth;      // N, C, D
  int64_t num_merged, first_a, first_b;  // r, and where A and B start
  T* units;                              // [B, blocks of B, D, unit_block]
  T* score;                              // [B, num_a]
  int64_t *target, *sorted;              // [B, num_a]
  int64_t* left;                         // [B, N - r]: the token of each row, and
  int64_t* next;                         // [B, N]: those merged into it, a chain to -1
  T *merged, *merged_sizes;              // [B, N - r, C], [B, N - r]
  int64_t* assignment;                   // [B, N]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// What a key is divided by: its norm, unless that is almost 0.
template <class T>
inline T key_norm(const T* key, int64_t depth) {
  const T square = sum_of<T>(depth, [=](int64_t at, int64_t lanes) -> Vector<T> {
    const Vector<T> x = load_lanes(key + at, lanes);
    return x * x;
  });
  return std::max(std::sqrt(square), T(1e-12));
}

// Keys of norm 1, channel by channel; NaN, which is no maximum, where B has no more tokens.
template <class T>
void bipartite_units(const BipartiteMerge<T>& a, int64_t begin, int64_t end) {
  const int64_t num_b = side_tokens(a.num_tokens, a.first_b), blocks = unit_blocks(num_b);
  for (int64_t part = begin; part < end; ++part) {
    T* units = a.units + part * a.depth * unit_block;
    for (int64_t lane = 0; lane < unit_block; ++lane) {
      const int64_t b = part % blocks * unit_block + lane;
      if (b < num_b) {
        const T* key = a.keys.at(part / blocks, a.first_b + 2 * b);
        const T norm = key_norm(key, a.depth);
        for (int64_t d = 0; d < a.depth; ++d) units[d * unit_block + lane] = key[d] / norm;
      } else {
        for (int64_t d = 0; d < a.depth; ++d) units[d * unit_block + lane] = selected_score<T>;
      }
    }
  }
}

// Score and target of `count` tokens of A from `first` on, at most `rows`.
template <class T, int64_t rows>
inline void score_rows(const BipartiteMerge<T>& a, int64_t image, int64_t first, int64_t count) {
  constexpr int64_t vectors = unit_block / width<T>;
  const int64_t num_a = side_tokens(a.num_tokens, a.first_a),
                blocks = unit_blocks(side_tokens(a.num_tokens, a.first_b));
  const T* keys[rows];
  for (int64_t i = 0; i < rows; ++i)
    keys[i] = a.keys.at(image, a.first_a + 2 * (first + std::min(i, count - 1)));
  LaneArgmax<T> best[rows];
  for (int64_t block = 0; block < blocks; ++block) {
    const T* units = a.units + (image * blocks + block) * a.depth * unit_block;
    Vector<T> sum[rows][vectors] = {};
    for (int64_t d = 0; d < a.depth; ++d) {
      for (int64_t v = 0; v < vectors; ++v) {
        const Vector<T> unit = load(units + d * unit_block + v * width<T>);
#pragma GCC unroll 8
        for (int64_t i = 0; i < rows; ++i) sum[i][v] += splat(keys[i][d]) * unit;
      }
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t v = 0; v < vectors; ++v)
        best[i].add(nan_last<T>(sum[i][v]), T(block * unit_block + v * width<T>));
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto [highest_product, b] = best[i].leading();
    const T score = nan_last<T>(highest_product / key_norm(keys[i], a.depth));
    a.score[image * num_a + first + i] = score;
    a.target[image * num_a + first + i] = score > lowest<T> ? int64_t(b) : 0;
  }
}

template <class T>
void bipartite_scores(const BipartiteMerge<T>& a, int64_t begin, int64_t end) {
  // As many registers on every instruction set.
  constexpr int64_t rows = register_bytes / (2 * int64_t(sizeof(T)));
  const int64_t num_a = side_tokens(a.num_tokens, a.first_a), blocks = score_blocks(num_a);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t first = part % blocks * score_block;
    const int64_t stop = std::min(first + score_block, num_a);
    for (int64_t i = first; i < stop; i += rows)
      score_rows<T, rows>(a, part / blocks, i, std::min(rows, stop - i));
  }
}

template <class T>
void bipartite_groups(const BipartiteMerge<T>& a, int64_t begin, int64_t end) {
  const int64_t num_a = side_tokens(a.num_tokens, a.first_a);
  for (int64_t image = begin; image < end; ++image) {
    int64_t *sorted = a.sorted + image * num_a, *next = a.next + image * a.num_tokens,
            *left = a.left + image * (a.num_tokens - a.num_merged),
            *row = a.assignment + image * a.num_tokens;
    const int64_t* target = a.target + image * num_a;
    std::fill(next, next + a.num_tokens, -1);
    std::fill(row, row + a.num_tokens, 0);
    if (a.num_merged > 0) {
      for (int64_t i = 0; i < num_a; ++i) sorted[i] = i;
      sort_descending(a.score + image * num_a, sorted, num_a);
      std::sort(sorted, sorted + a.num_merged);
    }
    for (int64_t i = 0; i < a.num_merged; ++i) row[a.first_a + 2 * sorted[i]] = -1;
    int64_t rows = 0;
    for (int64_t n = 0; n < a.num_tokens; ++n) {
      if (row[n] < 0) continue;
      left[rows] = n;
      row[n] = rows++;
    }
    // From the last on, so that a chain ascends.
    for (int64_t i = a.num_merged; i-- > 0;) {
      const int64_t from = a.first_a + 2 * sorted[i], into = a.first_b + 2 * target[sorted[i]];
      row[from] = row[into];
      next[from] = next[into];
      next[into] = from;
    }
  }
}

template <class T>
void bipartite_rows(const BipartiteMerge<T>& a, int64_t begin, int64_t end) {
  const int64_t rows = a.num_tokens - a.num_merged;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / rows, first = a.left[row];
    const int64_t* next = a.next + image * a.num_tokens;
    const T* sizes = a.sizes + image * a.num_tokens;
    T* merged = a.merged + row * a.width;
    if (next[first] < 0) {
      std::copy_n(a.tokens.at(image, first), a.width, merged);
      a.merged_sizes[row] = sizes[first];
      continue;
    }
    double total = 0;
    for (int64_t n = first; n >= 0; n = next[n]) total += double(sizes[n]);
    a.merged_sizes[row] = T(total);
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      Vector<T> sum = {};
      for (int64_t n = first; n >= 0; n = next[n])
        sum += splat(sizes[n]) * load_lanes(a.tokens.at(image, n) + at, lanes);
      store_lanes<T>(merged + at, sum / splat(T(total)), lanes);
    });
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(bipartite_units, BipartiteMerge)
OCVTP_KERNEL(bipartite_scores, BipartiteMerge)
OCVTP_KERNEL(bipartite_groups, BipartiteMerge)
OCVTP_KERNEL(bipartite_rows, BipartiteMerge)
