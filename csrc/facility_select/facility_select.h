// Greedy facility location (ocvtp_kernels/greedy/reference.py), lazily (Minoux 1978): what is
// covered only grows, so a gain known from an earlier step bounds today's. That holds to the bit,
// since each operation rounds monotonically and sums have one order.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts: rows for facility_gains, then images.
template <class T>
struct FacilitySelect {
  Rows<T> similarity;
  const T* saliency;  // [B, N]
  int64_t tokens, budget;
  T* bound;                  // [B, N], gains as last known: no gain grows
  T* covered;                // [B, N]
  int64_t *known, *revived;  // [B, N]: the step that a bound is of; tokens whose bound is a guess
  int64_t* order;
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The first step's gains, while nothing is covered. Where saliency is not positive gains may grow,
// but never above 0.
template <class T>
void facility_gains(const FacilitySelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* similarity = a.similarity.at(row / a.tokens, row % a.tokens);
    const T saliency = a.saliency[row];
    const bool positive = saliency > T(0);
    a.known[row] = positive ? 0 : -1;
    a.bound[row] = T(0);
    if (!positive) continue;
    const T sum = sum_of<T>(a.tokens, [similarity](int64_t at, int64_t lanes) -> Vector<T> {
      return by_parts<T>([](Part<T> x) -> Part<T> { return x < T(0) ? Part<T>{} : x; },
                         load_lanes(similarity + at, lanes));
    });
    a.bound[row] = nan_last(sum * saliency);
  }
}

// What a row adds to what is covered; NaN if either holds one.
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

// A NaN covers for good: no gain is a number any more.
template <class T>
inline void cover(const T* similarity, T* covered, int64_t tokens) {
  for_each_vector<T>(tokens, [&](int64_t at, int64_t lanes) {
    const Vector<T> after = by_parts<T>(
        [](Part<T> x, Part<T> old) -> Part<T> {
          const Part<T> number = x > old ? x : old;
          return x == x ? number : x;
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
    int64_t *known = a.known + start, *revived = a.revived + start;
    std::fill(covered, covered + a.tokens, T(0));
    for (int64_t step = 0; step < a.budget; ++step) {
      int64_t guesses = 0;
      // Who leads with today's gain is the pick: a token of an equal gain and a lower id would
      // lead.
      int64_t pick = first_of_highest(bound, a.tokens);
      for (; known[pick] != step; pick = first_of_highest(bound, a.tokens)) {
        const T saliency = a.saliency[start + pick];
        const T sum = added(a.similarity.at(image, pick), covered, a.tokens);
        bound[pick] = nan_last(sum * saliency);
        known[pick] = step;
        const bool decided = saliency > T(0) || sum != sum || saliency != saliency;
        if (!decided) revived[guesses++] = pick;
      }
      a.order[image * a.budget + step] = pick;
      while (guesses > 0) bound[revived[--guesses]] = T(0);
      bound[pick] = taken_score<T>;
      cover(a.similarity.at(image, pick), covered, a.tokens);
    }
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(facility_gains, FacilitySelect)
OCVTP_KERNEL(facility_select, FacilitySelect)
