// Rounds of bipartite matching (ocvtp_kernels/greedy/reference.py). A whole row against a mask is
// read sooner than the tokens of b are gathered from it.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Part: images.
template <class T>
struct MatchSelect {
  Rows<T> similarity;
  const int64_t* ranked;  // [B, places]
  int64_t tokens, places, budget, drop;
  T* mask;                        // [B, N]
  T* likeness;                    // [B, places]
  int64_t *list, *next, *sorted;  // [B, places]
  int64_t* order;
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// One round: the list of `left` tokens becomes the next, `gone` shorter.
template <class T>
inline void match_round(const MatchSelect<T>& a, int64_t image, const int64_t* list, int64_t left,
                        int64_t gone, int64_t* next) {
  T *mask = a.mask + image * a.tokens, *likeness = a.likeness + image * a.places;
  int64_t* sorted = a.sorted + image * a.places;
  std::fill(mask, mask + a.tokens, lowest<T>);
  for (int64_t i = 1; i < left; i += 2) mask[list[i]] = T(0);
  const int64_t firsts = (left + 1) / 2;
  for (int64_t i = 0; i < firsts; ++i) {
    const T* row = a.similarity.at(image, list[2 * i]);
    // inf - inf is as little a number as NaN is, and passed over.
    likeness[i] = most_of<T>(a.tokens, [=](int64_t at, int64_t lanes) -> Vector<T> {
      return load_lanes(row + at, lanes) + load_lanes(mask + at, lanes, lowest<T>);
    });
    sorted[i] = i;
  }
  sort_descending(likeness, sorted, firsts);
  for (int64_t i = gone; i < firsts; ++i) *next++ = list[2 * sorted[i]];
  for (int64_t i = 1; i < left; i += 2) *next++ = list[i];
}

template <class T>
void match_select(const MatchSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    int64_t *list = a.list + image * a.places, *next = a.next + image * a.places;
    std::copy_n(a.ranked + image * a.places, a.places, list);
    for (int64_t left = a.places; left > a.budget;) {
      const int64_t gone = std::min({a.drop, left - a.budget, (left + 1) / 2});
      match_round(a, image, list, left, gone, next);
      std::swap(list, next);
      left -= gone;
    }
    std::copy_n(list, a.budget, a.order + image * a.budget);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(match_select, MatchSelect)
