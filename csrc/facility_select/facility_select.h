// Greedy facility location (ocvtp_kernels/ops/facility_select), lazily (Minoux 1978): coverage only
// grows, so the gain of an earlier step is an upper bound of the current one. That holds to the
// bit, since each operation rounds monotonically and sums have one order.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts: rows for facility_gains, then images.
template <class T>
struct FacilitySelect {
  Rows<T> similarity;
  const T* saliency;  // [B, N]
  int64_t tokens, budget;
  T* bound;             // [B, N]: upper bounds of the gains
  T* covered;           // [B, N]
  int64_t* bound_step;  // [B, N]: the step that each bound is of
  int64_t* guessed;     // [B, N]: tokens whose bound in this step is 0, a guess
  int64_t* order;       // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The gains of the first step. Where saliency is not positive a gain may grow, but never above 0,
// which is its bound.
template <class T>
void facility_gains(const FacilitySelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* similarity = a.similarity.at(row / a.tokens, row % a.tokens);
    const T saliency = a.saliency[row];
    const bool positive = saliency > T(0);
    a.bound_step[row] = positive ? 0 : -1;
    a.bound[row] = T(0);
    if (!positive) continue;
    const T sum = sum_of<T>(a.tokens, [similarity](int64_t at, int64_t lanes) -> Vector<T> {
      return by_parts<T>([](Part<T> x) -> Part<T> { return x < T(0) ? Part<T>{} : x; },
                         load_lanes(similarity + at, lanes));
    });
    a.bound[row] = nan_last(sum * saliency);
  }
}

// What a row adds to the coverage; NaN if either holds one.
template <class T>
inline T added(const T* similarity, const T* covered, int64_t tokens) {
  return sum_of<T>(tokens, [=](int64_t at, int64_t lanes) -> Vector<T> {
    return by_parts<T>(
        [](Part<T> x, Part<T> old) -> Part<T> {
          const Part<T> more = x - old;
          return more < T(0) ? Part<T>{} : more;
        },
        load_lanes(similarity + at, lanes), load_lanes(covered + at, lanes));
  });
}

// NaN in a row stays in the coverage: from then on every gain is NaN.
template <class T>
inline void cover(const T* similarity, T* covered, int64_t tokens) {
  for_each_vector<T>(tokens, [&](int64_t at, int64_t lanes) {
    const Vector<T> after = by_parts<T>(
        [](Part<T> x, Part<T> old) -> Part<T> {
          const Part<T> max = x > old ? x : old;
          return x == x ? max : x;
        },
        load_lanes(similarity + at, lanes), load_lanes(covered + at, lanes));
    store_lanes<T>(covered + at, after, lanes);
  });
}

template <class T>
void facility_select(const FacilitySelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    const int64_t start = image * a.tokens;
    T *bound = a.bound + start, *covered = a.covered + start;
    int64_t *bound_step = a.bound_step + start, *guessed = a.guessed + start;
    std::fill(covered, covered + a.tokens, T(0));
    for (int64_t step = 0; step < a.budget; ++step) {
      int64_t num_guessed = 0;
      // The highest bound that is of this step is the largest gain, at the lowest id of equals.
      int64_t pick = argmax_of(bound, a.tokens);
      for (; bound_step[pick] != step; pick = argmax_of(bound, a.tokens)) {
        const T saliency = a.saliency[start + pick];
        const T sum = added(a.similarity.at(image, pick), covered, a.tokens);
        bound[pick] = nan_last(sum * saliency);
        bound_step[pick] = step;
        const bool decided = saliency > T(0) || sum != sum || saliency != saliency;
        if (!decided) guessed[num_guessed++] = pick;
      }
      a.order[image * a.budget + step] = pick;
      while (num_guessed > 0) bound[guessed[--num_guessed]] = T(0);
      bound[pick] = selected_score<T>;
      cover(a.similarity.at(image, pick), covered, a.tokens);
    }
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(facility_gains, FacilitySelect)
OCVTP_KERNEL(facility_select, FacilitySelect)
