// Un-affined LayerNorm of rows (Ba et al. 2016).
#pragma once

#include <cmath>

#include "common/half.h"
#include "common/kernels.h"
#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

template <class E>
inline Wide<E> row_sum(const E* x, int64_t size) {
  using T = Wide<E>;
  Vector<T> sum{};
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) { sum += load_wide(x + at, lanes); });
  return sum_lanes<T>(sum);
}

template <class T>
struct RowStatistics {
  T mean, deviation;
};

// The mean first: a large one must not drown the deviation.
template <class E>
inline RowStatistics<Wide<E>> normalize_row(const E* x, int64_t size, Wide<E> eps, E* out) {
  using T = Wide<E>;
  const T mean = row_sum(x, size) / T(size);
  Vector<T> squares{};
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) {
    const Vector<T> off = load_wide(x + at, lanes, mean) - mean;
    squares += off * off;
  });
  const T deviation = std::sqrt(sum_lanes<T>(squares) / T(size) + eps);
  const T scale = T(1) / deviation;
  for_each_vector<T>(size, [&](int64_t at, int64_t lanes) {
    store_wide(out + at, (load_wide(x + at, lanes) - mean) * scale, lanes);
  });
  return {mean, deviation};
}

template <class E>
void layer_norm(const LayerNorm<E>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    normalize_row(a.x + row * a.stride, a.width, a.eps, a.out + row * a.width);
}

}  // namespace ocvtp::OCVTP_ISA
