// Greedy maximal marginal relevance (ocvtp_kernels/ops/mmr_select). A score only falls as the
// largest similarity grows, and rounds monotonically: the least of a token's scores against each
// pick is, to the bit, its score against the pick most similar to it.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Part: images.
template <class T>
struct MmrSelect {
  const T* relevance;  // [B, N]
  Rows<T> similarity;
  int64_t tokens, budget;
  T relevance_weight, similarity_weight;
  T* running;      // [B, N]: scores
  int64_t* order;  // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// 0 at weight 0, of scores that are not finite too.
template <class T>
inline Vector<T> weighted(T weight, const T* scores, int64_t lanes) {
  return weight > T(0) ? splat(weight) * load_lanes(scores, lanes) : splat(T(0));
}

template <class T>
void mmr_select(const MmrSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    const T* relevance = a.relevance + image * a.tokens;
    T* running = a.running + image * a.tokens;
    int64_t* order = a.order + image * a.budget;
    for_each_vector<T>(a.tokens, [&](int64_t at, int64_t lanes) {
      store_lanes<T>(running + at, nan_last(load_lanes(relevance + at, lanes)), lanes);
    });
    order[0] = argmax_of(running, a.tokens);
    std::fill(running, running + a.tokens, highest<T>);
    for (int64_t step = 1; step < a.budget; ++step) {
      const int64_t pick = order[step - 1];
      running[pick] = selected_score<T>;
      const T* similarity = a.similarity.at(image, pick);
      for_each_vector<T>(a.tokens, [&](int64_t at, int64_t lanes) {
        const Vector<T> score = nan_last(weighted(a.relevance_weight, relevance + at, lanes) -
                                         weighted(a.similarity_weight, similarity + at, lanes));
        store_lanes<T>(running + at, smaller<T>(score, load_lanes(running + at, lanes)), lanes);
      });
      order[step] = argmax_of(running, a.tokens);
    }
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(mmr_select, MmrSelect)
