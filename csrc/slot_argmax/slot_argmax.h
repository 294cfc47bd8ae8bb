// Each slot's best tokens under the log-attention (ocvtp_kernels/ops/argmax_gather), which
// resolves tokens whose attention rounds to 1. Only the sums over slots need all dot products, so
// for top_k = 1 the scores are never written.
#pragma once

#include <algorithm>
#include <limits>

#include "common/blocks.h"
#include "common/maths.h"

namespace ocvtp {

// Parts: for slot_scores blocks of tokens of images, then for slot_best rows of [B, K]. Dot
// products become log-attention: (x - top) - log_rest with x = scale * x + constant.
template <class T>
struct SlotArgmax {
  T* x;               // [B, K, N]; holds the scores, NaN as -inf, after slot_scores without `best`
  const T* constant;  // [B, K] or null
  int64_t slots, tokens, top_k;
  T scale;
  T *top, *log_rest;  // [B, N] scratch
  T* best;            // [B, K, token blocks] scratch for one pick a slot, else null
  T* token_score;     // [B, N] or null: each token's largest score
  int64_t* picks;     // [B, K, top_k]
  T* peak;            // [B, K]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void slot_scores(const SlotArgmax<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t vectors = token_block / width<T>;
  const T infinity = std::numeric_limits<T>::infinity();
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    T* block = a.x + image * a.slots * a.tokens + first;
    const int64_t token = image * a.tokens + first;
    const auto logits = [&](int64_t slot, int64_t at, int64_t lanes) -> Vector<T> {
      const T shift = a.constant ? a.constant[image * a.slots + slot] : T(0);
      return load_lanes(block + slot * a.tokens + at, lanes) * a.scale + shift;
    };
    Vector<T> top[vectors], argmax[vectors] = {}, total[vectors] = {};
    for (Vector<T>& x : top) x = splat(-infinity);
    for (int64_t slot = 0; slot < a.slots; ++slot)
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const int64_t i = at / width<T>;
        const Vector<T> x = logits(slot, at, lanes);
        argmax[i] =
            by_parts<T>([&](Part<T> a, Part<T> b,
                            Part<T> old) -> Part<T> { return a > b ? parts::splat(T(slot)) : old; },
                        x, top[i], argmax[i]);
        top[i] = larger<T>(x, top[i]);
      });
    // NaN is excluded from the maximum and kept in the sum, so all scores of its token are NaN.
    for (int64_t slot = 0; slot < a.slots; ++slot)
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const int64_t i = at / width<T>;
        total[i] += by_parts<T>(
            [&](Part<T> a, Part<T> b, Part<T> first) -> Part<T> {
              return first == T(slot) ? Part<T>{} : parts::exp<T>(a - b);
            },
            logits(slot, at, lanes), top[i], argmax[i]);
      });
    // Lanes past the last token score -inf.
    T log_rest[token_block];
    for (T& x : log_rest) x = infinity;
    for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
      const int64_t i = at / width<T>;
      const Vector<T> lost = log1p<T>(total[i]);
      store_lanes<T>(log_rest + at, lost, lanes);
      store_lanes<T>(a.top + token + at, top[i], lanes);
      store_lanes<T>(a.log_rest + token + at, lost, lanes);
      if (a.token_score)
        store_lanes<T>(a.token_score + token + at, (top[i] - top[i]) - lost, lanes);
    });
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      Vector<T> best = splat(-infinity);
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> score =
            (logits(slot, at, lanes) - top[at / width<T>]) - load(log_rest + at);
        if (a.best)
          best = larger<T>(score, best);
        else
          store_lanes<T>(block + slot * a.tokens + at, larger<T>(score, splat(-infinity)), lanes);
      });
      if (a.best)
        a.best[(image * a.slots + slot) * token_blocks(a.tokens) + first / token_block] =
            max_lanes<T>(best);
    }
  });
}

// The largest score of a row, from the first block that has it.
template <class T>
inline void best_of_blocks(const SlotArgmax<T>& a, int64_t row) {
  const int64_t blocks = token_blocks(a.tokens);
  const T* best = a.best + row * blocks;
  int64_t block = 0;
  for (int64_t i = 1; i < blocks; ++i)
    if (best[i] > best[block]) block = i;
  const int64_t first = block * token_block;
  const int64_t token = row / a.slots * a.tokens;
  const T shift = a.constant ? a.constant[row] : T(0);
  T peak = -std::numeric_limits<T>::infinity();
  int64_t id = 0;
  for (int64_t n = first; n < std::min(first + token_block, a.tokens); ++n) {
    const T logit = a.x[row * a.tokens + n] * a.scale + shift;
    const T score = (logit - a.top[token + n]) - a.log_rest[token + n];
    if (score > peak) peak = score, id = n;
  }
  a.picks[row] = id;
  a.peak[row] = peak;
}

// Insertion into the picks so far; a later token goes behind its equals.
template <class T>
inline void best_of_scores(const SlotArgmax<T>& a, int64_t row) {
  const T* scores = a.x + row * a.tokens;
  int64_t* picks = a.picks + row * a.top_k;
  int64_t held = 0;
  for (int64_t n = 0; n < a.tokens; ++n) {
    if (held == a.top_k && !(scores[n] > scores[picks[held - 1]])) continue;
    int64_t at = held < a.top_k ? held++ : held - 1;
    for (; at > 0 && scores[n] > scores[picks[at - 1]]; --at) picks[at] = picks[at - 1];
    picks[at] = n;
  }
  a.peak[row] = scores[picks[0]];
}

template <class T>
void slot_best(const SlotArgmax<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    if (a.best)
      best_of_blocks(a, row);
    else
      best_of_scores(a, row);
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(slot_scores, SlotArgmax)
OCVTP_KERNEL(slot_best, SlotArgmax)
