// Sums and the un-affined LayerNorm (Ba et al. 2016) of a row.
#pragma once

#include <cmath>

#include "common/half.h"
#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

template <class E>
inline Acc<E> row_sum(const E* x, int64_t size) {
  using T = Acc<E>;
  Vector<T> sum{};
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) { sum += load_acc(x + at, lanes); });
  return sum_lanes<T>(sum);
}

template <class T>
struct RowStatistics {
  T mean, deviation;
};

// Two passes: with a large mean the difference of two sums would lose the variance.
template <class E>
inline RowStatistics<Acc<E>> normalize_row(const E* x, int64_t size, Acc<E> eps, E* out) {
  using T = Acc<E>;
  const T mean = row_sum(x, size) / T(size);
  Vector<T> squares{};
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) {
    const Vector<T> off = load_acc(x + at, lanes, mean) - mean;
    squares += off * off;
  });
  const T deviation = std::sqrt(sum_lanes<T>(squares) / T(size) + eps);
  const T scale = T(1) / deviation;
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) {
    store_acc(out + at, (load_acc(x + at, lanes) - mean) * scale, lanes);
  });
  return {mean, deviation};
}

}  // namespace ocvtp::OCVTP_ISA
