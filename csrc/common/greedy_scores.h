// What the greedy selections share: scores of tokens, in which NaN marks a selected token, since no
// comparison holds with it. A score that is itself NaN counts as -inf.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/blocks.h"
#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

template <class T>
inline constexpr T highest = std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T lowest = -std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T selected_score = std::numeric_limits<T>::quiet_NaN();

template <class T>
inline T nan_last(T score) {
  return score == score ? score : lowest<T>;
}

template <class T>
inline Vector<T> nan_last(const Vector<T>& scores) {
  return by_parts<T>([](Part<T> x) -> Part<T> { return x == x ? x : lowest<T> - Part<T>{}; },
                     scores);
}

// NaN in `other`, a selected token, stays.
template <class T>
inline Vector<T> smaller(const Vector<T>& x, const Vector<T>& other) {
  return by_parts<T>([](Part<T> a, Part<T> b) -> Part<T> { return a < b ? a : b; }, x, other);
}

// Reduces part(offset, lanes) over a row, in four independent accumulators.
template <class T, class Join, class Function>
inline Vector<T> reduced(int64_t size, T start, const Join& join, const Function& part) {
  Vector<T> acc[4] = {start, start, start, start};
  int64_t at = 0;
  for (; at + 4 * width<T> <= size; at += 4 * width<T>) {
    acc[0] = join(part(at, width<T>), acc[0]);
    acc[1] = join(part(at + width<T>, width<T>), acc[1]);
    acc[2] = join(part(at + 2 * width<T>, width<T>), acc[2]);
    acc[3] = join(part(at + 3 * width<T>, width<T>), acc[3]);
  }
  for (; at < size; at += width<T>) acc[0] = join(part(at, std::min(width<T>, size - at)), acc[0]);
  return join(join(acc[0], acc[1]), join(acc[2], acc[3]));
}

// The sum of part(offset, lanes) over a row.
template <class T, class Function>
inline T sum_of(int64_t size, const Function& part) {
  const auto add = [](const Vector<T>& x, const Vector<T>& sum) -> Vector<T> { return x + sum; };
  return sum_lanes<T>(reduced<T>(size, T(0), add, part));
}

// The largest of part(offset, lanes) over a row; NaN is passed over.
template <class T, class Function>
inline T max_of(int64_t size, const Function& part) {
  return max_lanes<T>(reduced<T>(size, lowest<T>, larger<T>, part));
}

// The highest scores so far, lane by lane, and the start of the first vector that had each. A T
// counts the tokens of any matrix that fits in memory.
template <class T>
struct LaneArgmax {
  Vector<T> score = splat(lowest<T>), token = splat(highest<T>);

  // Adds the tokens from `first` on, which are after those so far.
  void add(const Vector<T>& scores, T first) {
    token =
        by_parts<T>([first](Part<T> x, Part<T> best,
                            Part<T> old) -> Part<T> { return x > best ? first - Part<T>{} : old; },
                    scores, score, token);
    score = larger<T>(scores, score);
  }

  // Adds those of vectors that are `apart` tokens further on.
  void join(const LaneArgmax& other, T apart) {
    token = by_parts<T>(
        [apart](Part<T> x, Part<T> best, Part<T> theirs, Part<T> ours) -> Part<T> {
          const Part<T> shifted = theirs + apart;
          const Part<T> first = shifted < ours ? shifted : ours;
          return x > best ? shifted : x == best ? first : ours;
        },
        other.score, score, other.token, token);
    score = larger<T>(other.score, score);
  }

  // The highest score and its first token; `highest` if no score is above -inf.
  std::pair<T, T> leading() const {
    T best[width<T>], tokens[width<T>];
    store(best, score);
    store(tokens, token);
    T max = lowest<T>, first = highest<T>;
    for (int64_t lane = 0; lane < width<T>; ++lane) {
      const T own = tokens[lane] + T(lane);
      const bool leads = best[lane] > max || (best[lane] == max && own < first);
      max = leads ? best[lane] : max;
      first = leads ? own : first;
    }
    return {max, first};
  }
};

// The first token of the highest score; 0 if all are selected.
template <class T>
inline int64_t argmax_of(const T* scores, int64_t tokens) {
  // Independent accumulators.
  LaneArgmax<T> lanes[4];
  int64_t at = 0;
  for (; at + 4 * width<T> <= tokens; at += 4 * width<T>)
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) lanes[i].add(load(scores + at + i * width<T>), T(at));
  for (; at < tokens; at += width<T>)
    lanes[0].add(load_lanes(scores + at, std::min(width<T>, tokens - at), lowest<T>), T(at));
  lanes[0].join(lanes[1], T(width<T>));
  lanes[2].join(lanes[3], T(width<T>));
  lanes[0].join(lanes[2], T(2 * width<T>));
  const T first = lanes[0].leading().second;
  if (first < highest<T>) return int64_t(first);
  // No score is above -inf.
  for (int64_t n = 0; n < tokens; ++n)
    if (scores[n] == lowest<T>) return n;
  return 0;
}

// Sorts indices by score, the highest first, equals by index. No score is NaN.
template <class T>
inline void sort_descending(const T* scores, int64_t* indices, int64_t count) {
  std::sort(indices, indices + count, [scores](int64_t i, int64_t j) {
    return scores[i] > scores[j] || (scores[i] == scores[j] && i < j);
  });
}

}  // namespace ocvtp::OCVTP_ISA
