// Weighted sums of tokens by assignment (ocvtp_kernels/ops/scatter_merge), each in the order of
// ids.
#pragma once

#include <algorithm>

#include "common/simd.h"

namespace ocvtp {

// Parts: images for merge_lists, then rows of [B, num_owners] for merge_sums.
template <class T>
struct ScatterMerge {
  Rows<T> tokens;
  const T* weight;            // [B, N]
  const int64_t* assignment;  // [B, N]
  int64_t num_tokens, width, num_owners;
  int64_t* starts;   // [B, num_owners + 1]: where the tokens of an owner start in
  int64_t* members;  // [B, N]
  T* sums;           // [B, num_owners, width]
  T* mass;           // [B, num_owners]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The tokens of each owner, by a counting sort; an assignment out of range is to none.
template <class T>
void merge_lists(const ScatterMerge<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    const int64_t* assignment = a.assignment + image * a.num_tokens;
    int64_t* starts = a.starts + image * (a.num_owners + 1);
    int64_t* members = a.members + image * a.num_tokens;
    const auto for_each_assigned = [&](const auto& body) {
      for (int64_t n = 0; n < a.num_tokens; ++n)
        if (assignment[n] >= 0 && assignment[n] < a.num_owners) body(n, assignment[n]);
    };
    std::fill(starts, starts + a.num_owners + 1, 0);
    for_each_assigned([&](int64_t, int64_t of) { ++starts[of + 1]; });
    for (int64_t i = 0; i < a.num_owners; ++i) starts[i + 1] += starts[i];
    for_each_assigned([&](int64_t n, int64_t of) { members[starts[of]++] = n; });
    // Each start has advanced to the next one.
    std::copy_backward(starts, starts + a.num_owners, starts + a.num_owners + 1);
    starts[0] = 0;
  }
}

// `count` channels from `start` of a row of sums, in `vectors` vectors.
template <class T, int64_t vectors>
inline void sum_members(const ScatterMerge<T>& a, int64_t row, int64_t start, int64_t count) {
  const int64_t image = row / a.num_owners;
  const int64_t* starts = a.starts + image * (a.num_owners + 1) + row % a.num_owners;
  const int64_t* members = a.members + image * a.num_tokens;
  const auto lanes = [count](int64_t i) { return std::min(width<T>, count - i * width<T>); };
  Vector<T> sum[vectors] = {};
  for (int64_t m = starts[0]; m < starts[1]; ++m) {
    const T* token = a.tokens.at(image, members[m]) + start;
    const Vector<T> weight = splat(a.weight[image * a.num_tokens + members[m]]);
#pragma GCC unroll 8
    for (int64_t i = 0; i < vectors; ++i)
      sum[i] += weight * load_lanes(token + i * width<T>, lanes(i));
  }
  for (int64_t i = 0; i < vectors; ++i)
    store_lanes<T>(a.sums + row * a.width + start + i * width<T>, sum[i], lanes(i));
}

template <class T>
void merge_sums(const ScatterMerge<T>& a, int64_t begin, int64_t end) {
  // As many registers on every instruction set.
  constexpr int64_t vectors = register_bytes / 8;
  for (int64_t row = begin; row < end; ++row) {
    int64_t at = 0;
    for (; at + vectors * width<T> <= a.width; at += vectors * width<T>)
      sum_members<T, vectors>(a, row, at, vectors * width<T>);
    for (; at < a.width; at += width<T>) sum_members<T, 1>(a, row, at, a.width - at);
    const int64_t image = row / a.num_owners;
    const int64_t* starts = a.starts + image * (a.num_owners + 1) + row % a.num_owners;
    double mass = 0;
    for (int64_t m = starts[0]; m < starts[1]; ++m)
      mass += a.weight[image * a.num_tokens + a.members[image * a.num_tokens + m]];
    a.mass[row] = T(mass);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(merge_lists, ScatterMerge)
OCVTP_KERNEL(merge_sums, ScatterMerge)
