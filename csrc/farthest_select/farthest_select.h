// Farthest-point greedy on a matrix of distances (ocvtp_kernels/ops/farthest_select).
#pragma once

#include <iterator>

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts: for farthest_nearest blocks of tokens of images, where `first` is null; then images.
template <class T>
struct FarthestSelect {
  Rows<T> distances;
  const int64_t* first;  // [B] or null
  int64_t tokens, budget;
  bool distinct;
  T* running;      // [B, N]: each token's second smallest distance, then that to its nearest pick
  int64_t* order;  // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The second smallest distance of each column; infinite if there is one token.
template <class T>
void farthest_nearest(const FarthestSelect<T>& a, int64_t begin, int64_t end) {
  const int64_t blocks = token_blocks(a.tokens);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t image = block / blocks, start = block % blocks * token_block;
    const int64_t count = std::min(token_block, a.tokens - start);
    Vector<T> smallest[token_block / width<T>], second[token_block / width<T>];
    std::fill(std::begin(smallest), std::end(smallest), splat(highest<T>));
    std::fill(std::begin(second), std::end(second), splat(highest<T>));
    for (int64_t row = 0; row < a.tokens; ++row) {
      const T* distances = a.distances.at(image, row) + start;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const int64_t i = at / width<T>;
        const Vector<T> x = nan_last(load_lanes(distances + at, lanes));
        second[i] = smaller<T>(larger<T>(x, smallest[i]), second[i]);
        smallest[i] = smaller<T>(x, smallest[i]);
      });
    }
    for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
      const int64_t i = at / width<T>;
      store_lanes<T>(a.running + image * a.tokens + start + at, second[i], lanes);
    });
  }
}

template <class T>
void farthest_select(const FarthestSelect<T>& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    T* running = a.running + image * a.tokens;
    int64_t* order = a.order + image * a.budget;
    order[0] = a.first ? a.first[image] : argmax_of(running, a.tokens);
    std::fill(running, running + a.tokens, highest<T>);
    for (int64_t step = 1; step < a.budget; ++step) {
      const int64_t pick = order[step - 1];
      if (a.distinct) running[pick] = selected_score<T>;
      const T* distances = a.distances.at(image, pick);
      for_each_vector<T>(a.tokens, [&](int64_t at, int64_t lanes) {
        const Vector<T> x = nan_last(load_lanes(distances + at, lanes));
        store_lanes<T>(running + at, smaller<T>(x, load_lanes(running + at, lanes)), lanes);
      });
      order[step] = argmax_of(running, a.tokens);
    }
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(farthest_nearest, FarthestSelect)
OCVTP_KERNEL(farthest_select, FarthestSelect)
