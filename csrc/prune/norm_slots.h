// The residual of slots, their LayerNorm, and the statistics that the GRU and the logits use.
#pragma once

#include "common/row_norm.h"

namespace ocvtp {

// Part: rows. normed = layer_norm(x), or, where y is given, of sum = x + y. A row's statistics are
// its mean, its deviation and the dot product of normed and weight.
template <class T>
struct NormSlots {
  const T *x, *y;   // [rows, width]; y may be null
  const T* weight;  // [width]
  int64_t width;
  T eps;
  T *sum, *normed;  // [rows, width]; sum with y only
  T* statistics;    // [rows, 3]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void norm_slots(const NormSlots<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * a.width;
    const T* slots = a.x + start;
    if (a.y) {
      for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
        const Vector<T> y = load_lanes(a.y + start + at, lanes);
        store_lanes<T>(a.sum + start + at, load_lanes(slots + at, lanes) + y, lanes);
      });
      slots = a.sum + start;
    }
    T* normed = a.normed + start;
    const RowStatistics<T> of = normalize_row(slots, a.width, a.eps, normed);
    Vector<T> dot{};
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      dot += load_lanes(normed + at, lanes) * load_lanes(a.weight + at, lanes);
    });
    T* statistics = a.statistics + 3 * row;
    statistics[0] = of.mean, statistics[1] = of.deviation, statistics[2] = sum_lanes<T>(dot);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(norm_slots, NormSlots)
