// From picks to exactly `budget` ascending ids, and their rows
// (ocvtp_kernels/ops/argmax_gather::resolve_picks). It only compares and copies, so it is
// compiled once for all instruction sets.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ocvtp {

// Part: images.
struct ResolvePicks {
  const int64_t* picks;      // [B, K, top_k], a slot's best first, each in [0, tokens)
  const double* peak;        // [B, K]
  const double* importance;  // [B, N] or null
  int64_t slots, top_k, tokens, budget;
  bool* kept;      // [B, N] scratch
  double* spare;   // [B, N] scratch
  int64_t* order;  // [B, K * top_k] scratch
  int64_t* ids;    // [B, budget]
};

// Part: rows of [B, budget].
struct GatherRows {
  const char* from;                        // [B, N] rows of `size` bytes
  int64_t image_stride, row_stride, size;  // bytes
  const int64_t* ids;                      // [B, budget]
  int64_t budget;
  char* to;  // [B, budget] rows, dense
};

inline double nan_last(double x) { return x == x ? x : -std::numeric_limits<double>::infinity(); }

// The first `budget` distinct tokens of the picks by (peak, descending), rank, id.
inline void keep_best_slots(const ResolvePicks& a, int64_t image) {
  const int64_t count = a.slots * a.top_k;
  const int64_t* picks = a.picks + image * count;
  const double* peak = a.peak + image * a.slots;
  int64_t* order = a.order + image * count;
  bool* kept = a.kept + image * a.tokens;
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  std::sort(order, order + count, [&](int64_t i, int64_t j) {
    const double left = nan_last(peak[i / a.top_k]), right = nan_last(peak[j / a.top_k]);
    if (left != right) return left > right;
    if (i % a.top_k != j % a.top_k) return i % a.top_k < j % a.top_k;
    return picks[i] < picks[j];
  });
  std::fill(kept, kept + a.tokens, false);
  int64_t remaining = a.budget;
  for (int64_t i = 0; i < count && remaining > 0; ++i) {
    remaining -= !kept[picks[order[i]]];
    kept[picks[order[i]]] = true;
  }
}

// The `missing` unpicked tokens of highest importance, ties to the lowest id.
inline void keep_important(const ResolvePicks& a, int64_t image, int64_t missing) {
  bool* kept = a.kept + image * a.tokens;
  if (!a.importance) {
    for (int64_t n = 0; missing > 0; ++n)
      if (!kept[n]) kept[n] = true, --missing;
    return;
  }
  const double* importance = a.importance + image * a.tokens;
  double* spare = a.spare + image * a.tokens;
  double* last = spare;
  for (int64_t n = 0; n < a.tokens; ++n)
    if (!kept[n]) *last++ = nan_last(importance[n]);
  std::nth_element(spare, spare + missing - 1, last, [](double x, double y) { return x > y; });
  const double threshold = spare[missing - 1];
  // The tokens above the threshold are kept, and as many of its equals as are then missing.
  int64_t ties = missing;
  for (int64_t i = 0; i < missing; ++i) ties -= spare[i] > threshold;
  for (int64_t n = 0; n < a.tokens; ++n) {
    if (kept[n]) continue;
    const double x = nan_last(importance[n]);
    kept[n] = x > threshold || (x == threshold && ties-- > 0);
  }
}

inline void resolve_picks(const ResolvePicks& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    bool* kept = a.kept + image * a.tokens;
    std::fill(kept, kept + a.tokens, false);
    const int64_t* picks = a.picks + image * a.slots * a.top_k;
    int64_t distinct = 0;
    for (int64_t i = 0; i < a.slots * a.top_k; ++i) {
      distinct += !kept[picks[i]];
      kept[picks[i]] = true;
    }
    if (distinct > a.budget)
      keep_best_slots(a, image);
    else if (distinct < a.budget)
      keep_important(a, image, a.budget - distinct);
    int64_t* ids = a.ids + image * a.budget;
    for (int64_t n = 0; n < a.tokens; ++n)
      if (kept[n]) *ids++ = n;
  }
}

inline void gather_rows(const GatherRows& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    std::memcpy(a.to + row * a.size,
                a.from + row / a.budget * a.image_stride + a.ids[row] * a.row_stride,
                static_cast<size_t>(a.size));
}

}  // namespace ocvtp
