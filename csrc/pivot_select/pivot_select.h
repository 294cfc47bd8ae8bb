// Farthest-point greedy on points (ocvtp_kernels/ops/pivot_select), a pick at a time.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts: rows for pivot_norms; then, for each `step`, images for pivot_pick and rows for
// pivot_distances.
template <class T>
struct PivotSelect {
  Rows<T> points;
  int64_t tokens, width, budget, step;
  T* running;      // [B, N]: L1 norms, then squared distances to the nearest pick
  int64_t* order;  // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void pivot_norms(const PivotSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* point = a.points.at(row / a.tokens, row % a.tokens);
    a.running[row] = nan_last(sum_of<T>(a.width, [point](int64_t at, int64_t lanes) -> Vector<T> {
      return by_parts<T>([](Part<T> x) -> Part<T> { return x < T(0) ? -x : x; },
                         load_lanes(point + at, lanes));
    }));
  }
}

template <class T>
void pivot_pick(const PivotSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    T* running = a.running + image * a.tokens;
    const int64_t pick = argmax_of(running, a.tokens);
    // The norms choose the first pick only.
    if (a.step == 0) std::fill(running, running + a.tokens, highest<T>);
    running[pick] = selected_score<T>;
    a.order[image * a.budget + a.step] = pick;
  }
}

template <class T>
void pivot_distances(const PivotSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / a.tokens;
    const T* point = a.points.at(image, row % a.tokens);
    const T* pick = a.points.at(image, a.order[image * a.budget + a.step]);
    T& running = a.running[row];
    if (running != running) continue;
    const T square = sum_of<T>(a.width, [=](int64_t at, int64_t lanes) -> Vector<T> {
      const Vector<T> off = load_lanes(point + at, lanes) - load_lanes(pick + at, lanes);
      return off * off;
    });
    running = std::min(running, nan_last(square));
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(pivot_norms, PivotSelect)
OCVTP_KERNEL(pivot_pick, PivotSelect)
OCVTP_KERNEL(pivot_distances, PivotSelect)
