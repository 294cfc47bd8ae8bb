// Rounds of bipartite matching (ocvtp_kernels/ops/match_select). Reading a whole row under a
// mask is faster than gathering the tokens of the other set from it.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Part: images.
template <class T>
struct MatchSelect {
  Rows<T> similarity;
  const int64_t* ranked;  // [B, num_ranked]
  int64_t tokens, num_ranked, budget, drop;
  T* mask;                        // [B, N]
  T* best_similarity;             // [B, num_ranked]
  int64_t *list, *next, *sorted;  // [B, num_ranked]
  int64_t* order;                 // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// One round: the list of `remaining` tokens becomes the next, `num_dropped` shorter.
template <class T>
inline void match_round(const MatchSelect<T>& a, int64_t image, const int64_t* list,
                        int64_t remaining, int64_t num_dropped, int64_t* next) {
  T *mask = a.mask + image * a.tokens, *best_similarity = a.best_similarity + image * a.num_ranked;
  int64_t* sorted = a.sorted + image * a.num_ranked;
  std::fill(mask, mask + a.tokens, lowest<T>);
  for (int64_t i = 1; i < remaining; i += 2) mask[list[i]] = T(0);
  const int64_t num_first = (remaining + 1) / 2;
  for (int64_t i = 0; i < num_first; ++i) {
    const T* row = a.similarity.at(image, list[2 * i]);
    // inf - inf is NaN, which max_of passes over.
    best_similarity[i] = max_of<T>(a.tokens, [=](int64_t at, int64_t lanes) -> Vector<T> {
      return load_lanes(row + at, lanes) + load_lanes(mask + at, lanes, lowest<T>);
    });
    sorted[i] = i;
  }
  sort_descending(best_similarity, sorted, num_first);
  for (int64_t i = num_dropped; i < num_first; ++i) *next++ = list[2 * sorted[i]];
  for (int64_t i = 1; i < remaining; i += 2) *next++ = list[i];
}

template <class T>
void match_select(const MatchSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    int64_t *list = a.list + image * a.num_ranked, *next = a.next + image * a.num_ranked;
    std::copy_n(a.ranked + image * a.num_ranked, a.num_ranked, list);
    for (int64_t remaining = a.num_ranked; remaining > a.budget;) {
      const int64_t num_dropped = std::min({a.drop, remaining - a.budget, (remaining + 1) / 2});
      match_round(a, image, list, remaining, num_dropped, next);
      std::swap(list, next);
      remaining -= num_dropped;
    }
    std::copy_n(list, a.budget, a.order + image * a.budget);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(match_select, MatchSelect)
