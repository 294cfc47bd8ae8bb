// What the greedy selections share: scores of the tokens left, in which a NaN is a token taken,
// since no comparison holds with it. A score that is itself NaN counts as -inf.
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
inline constexpr T taken_score = std::numeric_limits<T>::quiet_NaN();

template <class T>
inline T nan_last(T score) {
  return score == score ? score : lowest<T>;
}

template <class T>
inline Vector<T> nan_last(const Vector<T>& scores) {
  return by_parts<T>([](Part<T> x) -> Part<T> { return x == x ? x : lowest<T> - Part<T>{}; },
                     scores);
}

// NaN in `other`, a token taken, stays.
template <class T>
inline Vector<T> smaller(const Vector<T>& x, const Vector<T>& other) {
  return by_parts<T>([](Part<T> a, Part<T> b) -> Part<T> { return a < b ? a : b; }, x, other);
}

// Joins part(offset, lanes) over a row, in four strands that need not wait for each other.
template <class T, class Join, class Function>
inline Vector<T> joined(int64_t size, T start, const Join& join, const Function& part) {
  Vector<T> strand[4] = {start, start, start, start};
  int64_t at = 0;
  for (; at + 4 * width<T> <= size; at += 4 * width<T>) {
    strand[0] = join(part(at, width<T>), strand[0]);
    strand[1] = join(part(at + width<T>, width<T>), strand[1]);
    strand[2] = join(part(at + 2 * width<T>, width<T>), strand[2]);
    strand[3] = join(part(at + 3 * width<T>, width<T>), strand[3]);
  }
  for (; at < size; at += width<T>)
    strand[0] = join(part(at, std::min(width<T>, size - at)), strand[0]);
  return join(join(strand[0], strand[1]), join(strand[2], strand[3]));
}

// The sum of part(offset, lanes) over a row.
template <class T, class Function>
inline T sum_of(int64_t size, const Function& part) {
  const auto add = [](const Vector<T>& x, const Vector<T>& sum) -> Vector<T> { return x + sum; };
  return sum_lanes<T>(joined<T>(size, T(0), add, part));
}

// The largest of part(offset, lanes) over a row; NaN is passed over.
template <class T, class Function>
inline T most_of(int64_t size, const Function& part) {
  return max_lanes<T>(joined<T>(size, lowest<T>, larger<T>, part));
}

// The best scores seen, lane by lane, and where the first vector that had each started. A T counts
// the tokens of any matrix that fits in memory.
template <class T>
struct Leaders {
  Vector<T> score = splat(lowest<T>), token = splat(highest<T>);

  // Of tokens from `first` on, after those seen.
  void meet(const Vector<T>& scores, T first) {
    token =
        by_parts<T>([first](Part<T> x, Part<T> best,
                            Part<T> old) -> Part<T> { return x > best ? first - Part<T>{} : old; },
                    scores, score, token);
    score = larger<T>(scores, score);
  }

  // Of vectors that are `apart` tokens further on.
  void join(const Leaders& other, T apart) {
    token = by_parts<T>(
        [apart](Part<T> x, Part<T> best, Part<T> theirs, Part<T> ours) -> Part<T> {
          const Part<T> shifted = theirs + apart;
          const Part<T> first = shifted < ours ? shifted : ours;
          return x > best ? shifted : x == best ? first : ours;
        },
        other.score, score, other.token, token);
    score = larger<T>(other.score, score);
  }
};

// The first token of the highest score; 0 if none is left.
template <class T>
inline int64_t first_of_highest(const T* scores, int64_t tokens) {
  // Strands that need not wait for each other.
  Leaders<T> strand[4];
  int64_t at = 0;
  for (; at + 4 * width<T> <= tokens; at += 4 * width<T>)
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) strand[i].meet(load(scores + at + i * width<T>), T(at));
  for (; at < tokens; at += width<T>)
    strand[0].meet(load_lanes(scores + at, std::min(width<T>, tokens - at), lowest<T>), T(at));
  strand[0].join(strand[1], T(width<T>));
  strand[2].join(strand[3], T(width<T>));
  strand[0].join(strand[2], T(2 * width<T>));
  T best[width<T>], token[width<T>];
  store(best, strand[0].score);
  store(token, strand[0].token);
  T most = lowest<T>, first = highest<T>;
  for (int64_t lane = 0; lane < width<T>; ++lane) {
    const T own = token[lane] + T(lane);
    const bool leads = best[lane] > most || (best[lane] == most && own < first);
    most = leads ? best[lane] : most;
    first = leads ? own : first;
  }
  if (first < highest<T>) return int64_t(first);
  // Nothing is above -inf.
  for (int64_t n = 0; n < tokens; ++n)
    if (scores[n] == lowest<T>) return n;
  return 0;
}

// Places by score, the highest first, equals by place. Scores are no NaN.
template <class T>
inline void sort_descending(const T* scores, int64_t* places, int64_t count) {
  std::sort(places, places + count, [scores](int64_t i, int64_t j) {
    return scores[i] > scores[j] || (scores[i] == scores[j] && i < j);
  });
}

}  // namespace ocvtp::OCVTP_ISA
