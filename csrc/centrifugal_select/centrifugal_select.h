// VLM-Pruner's centrifugal expansion (ocvtp_kernels/ops/centrifugal_select). A token's redundancy
// is computed as in the reference, operation for operation, so it rounds alike.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Part: images.
template <class T>
struct CentrifugalSelect {
  Rows<T> similarity;
  const int64_t* pivots;  // [B, num_pivots]
  int64_t num_pivots, height, width, budget;
  double spread, threshold, step;
  int64_t chunk;
  bool pad;
  T *closest_pick, *merit;                        // [B, N]: index in order; 1 - redundancy
  int64_t *square_distance, *ranking, *accepted;  // [B, N]; on the grid, to the nearest pick
  bool* selected;                                 // [B, N]
  int64_t *order, *count, *assignment;            // [B, budget], [B], [B, N]
  T* closeness;                                   // [B, N]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
struct Expansion {
  const CentrifugalSelect<T>& a;
  int64_t image, tokens, picked = 0;
  T *best, *closest_pick, *merit;
  int64_t *square_distance, *ranking, *accepted, *order;
  bool* selected;
  T spread, diameter;

  Expansion(const CentrifugalSelect<T>& a, int64_t image)
      : a(a), image(image), tokens(a.height * a.width) {
    const int64_t start = image * tokens;
    best = a.closeness + start, closest_pick = a.closest_pick + start, merit = a.merit + start;
    square_distance = a.square_distance + start, ranking = a.ranking + start,
    accepted = a.accepted + start;
    selected = a.selected + start, order = a.order + image * a.budget;
    spread = T(a.spread), diameter = T(std::sqrt(double(a.height * a.height + a.width * a.width)));
    // A NaN token keeps NaN, with which no comparison holds, so the expansion leaves it out.
    for (int64_t n = 0; n < tokens; ++n) {
      const T own = a.similarity.at(image, n)[n];
      best[n] = own == own ? lowest<T> : own;
    }
    std::fill(closest_pick, closest_pick + tokens, T(0));
    std::fill(square_distance, square_distance + tokens, 2 * tokens * tokens);
    std::fill(selected, selected + tokens, false);
    std::fill(order, order + a.budget, -1);
  }

  void pick(int64_t token) {
    const T* row = a.similarity.at(image, token);
    const T now = T(picked);
    for_each_vector<T>(tokens, [&](int64_t at, int64_t lanes) {
      const Vector<T> x = load_lanes(row + at, lanes), old = load_lanes(best + at, lanes);
      const Vector<T> closest = by_parts<T>(
          [now](Part<T> x, Part<T> old, Part<T> closest_pick) -> Part<T> {
            return x > old ? now - Part<T>{} : closest_pick;
          },
          x, old, load_lanes(closest_pick + at, lanes));
      store_lanes<T>(closest_pick + at, closest, lanes);
      store_lanes<T>(best + at, larger<T>(x, old), lanes);
    });
    const int64_t own_row = token / a.width, own_column = token % a.width;
    for (int64_t r = 0; r < a.height; ++r) {
      int64_t* squares = square_distance + r * a.width;
      const int64_t down = (r - own_row) * (r - own_row);
      for (int64_t c = 0; c < a.width; ++c)
        squares[c] = std::min(squares[c], down + (c - own_column) * (c - own_column));
    }
    selected[token] = true;
    order[picked++] = token;
  }

  T redundancy(int64_t token) const {
    const T distance = std::sqrt(T(square_distance[token])) / diameter;
    return best[token] * (T(1) + spread * distance);
  }

  bool is_nan(int64_t token) const { return best[token] != best[token]; }

  // Ranks the tokens not selected, least redundant first; returns their number. NaN tokens follow
  // and are not counted.
  int64_t rank() {
    int64_t count = 0;
    for (int64_t n = 0; n < tokens; ++n) {
      if (selected[n] || is_nan(n)) continue;
      merit[n] = nan_last(T(1) - redundancy(n));
      ranking[count++] = n;
    }
    sort_descending(merit, ranking, count);
    int64_t end = count;
    for (int64_t n = 0; n < tokens; ++n)
      if (!selected[n] && is_nan(n)) ranking[end++] = n;
    return count;
  }

  // Picks what is below the limit among ranks [begin, end).
  void accept(int64_t begin, int64_t end, T limit) {
    int64_t count = 0;
    for (int64_t rank = begin; rank < end; ++rank) {
      const T now = redundancy(ranking[rank]);
      // The ranking is made: from here on merits are by rank.
      merit[rank] = T(1) - now;
      if (now < limit) accepted[count++] = rank;
    }
    const int64_t remaining = a.budget - picked;
    if (count > remaining) {
      sort_descending(merit, accepted, count);
      count = remaining;
      // With std::less the instruction sets would share one instance of std::sort.
      std::sort(accepted, accepted + count, [](int64_t i, int64_t j) { return i < j; });
    }
    for (int64_t i = 0; i < count; ++i) pick(ranking[accepted[i]]);
  }

  void expand() {
    double limit = a.threshold;
    for (int64_t before = -1; before < picked && picked < a.budget; limit += a.step) {
      before = picked;
      const int64_t ranked = rank();
      for (int64_t begin = 0; begin < ranked && picked < a.budget; begin += a.chunk) {
        if (begin == a.chunk && picked == before) break;
        accept(begin, std::min(begin + a.chunk, ranked), T(limit));
      }
    }
  }
};

template <class T>
void centrifugal_select(const CentrifugalSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    Expansion<T> state(a, image);
    const int64_t* pivots = a.pivots + image * a.num_pivots;
    for (int64_t i = 0; i < std::min(a.num_pivots, a.budget); ++i) state.pick(pivots[i]);
    state.expand();
    a.count[image] = state.picked;
    if (a.pad && state.picked < a.budget) {
      state.rank();
      for (int64_t i = 0; state.picked < a.budget; ++i) state.pick(state.ranking[i]);
    }
    for (int64_t n = 0; n < state.tokens; ++n) {
      const bool is_unassigned = state.selected[n] || state.is_nan(n);
      a.assignment[image * state.tokens + n] = is_unassigned ? -1 : int64_t(state.closest_pick[n]);
      if (is_unassigned) state.best[n] = T(0);
    }
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(centrifugal_select, CentrifugalSelect)
