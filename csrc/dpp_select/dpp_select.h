// Greedy inference of a determinantal point process (ocvtp_kernels/ops/dpp_select), a pick at
// a time. Each token's arithmetic is the reference's, operation for operation, so it rounds alike.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts, for each `step`: images for dpp_pick, then blocks of tokens of images for dpp_explain.
template <class T>
struct DppSelect {
  Rows<T> similarity;
  const T* quality;  // [B, N]
  int64_t tokens, budget, step;
  T* variance;                  // [B, N]: what the picks leave unexplained
  T* components;                // [B, budget, whole_vectors(N)]
  T* pick_components;           // [B, budget], components of the pick
  T *min_variance, *pick_root;  // [B]: no variance up to here; root of the pick's, or 0
  int64_t* order;               // [B, budget]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// Before the first pick: the variance of every token.
template <class T>
inline void dpp_start(const DppSelect<T>& a, int64_t image) {
  T max = lowest<T>;
  for (int64_t n = 0; n < a.tokens; ++n) {
    const T quality = a.quality[image * a.tokens + n];
    const T variance = nan_last((quality * quality) * a.similarity.at(image, n)[n]);
    a.variance[image * a.tokens + n] = variance;
    max = std::max(max, variance);
  }
  a.min_variance[image] = T(1e-12) * std::max(max, T(0));
}

template <class T>
void dpp_pick(const DppSelect<T>& a, int64_t begin, int64_t end) {
  const int64_t stride = whole_vectors(a.tokens);
  for (int64_t image = begin; image < end; ++image) {
    if (a.step == 0) dpp_start(a, image);
    T* variance = a.variance + image * a.tokens;
    const int64_t pick = argmax_of(variance, a.tokens);
    a.order[image * a.budget + a.step] = pick;
    const T picked = variance[pick];
    a.pick_root[image] = picked > a.min_variance[image]
                             ? std::sqrt(std::max(picked, std::numeric_limits<T>::min()))
                             : T(0);
    variance[pick] = selected_score<T>;
    const T* components = a.components + image * a.budget * stride + pick;
    T* pick_components = a.pick_components + image * a.budget;
    for (int64_t s = 0; s < a.step; ++s) pick_components[s] = components[s * stride];
  }
}

// The new component of `count` tokens from `start`, in `vectors` vectors, which stay in registers
// while earlier components are taken off.
template <class T, int64_t vectors>
inline void explain(const DppSelect<T>& a, int64_t image, int64_t start, int64_t count) {
  const int64_t stride = whole_vectors(a.tokens);
  const int64_t pick = a.order[image * a.budget + a.step];
  const T* quality = a.quality + image * a.tokens;
  const T* row = a.similarity.at(image, pick) + start;
  T* components = a.components + image * a.budget * stride + start;
  const T* pick_components = a.pick_components + image * a.budget;
  const T pick_root = a.pick_root[image];
  const auto lanes = [count](int64_t i) { return std::min(width<T>, count - i * width<T>); };
  Vector<T> rest[vectors];
  for (int64_t i = 0; i < vectors; ++i)
    rest[i] = splat(quality[pick]) * load_lanes(row + i * width<T>, lanes(i)) *
              load_lanes(quality + start + i * width<T>, lanes(i));
  for (int64_t s = 0; s < a.step; ++s)
#pragma GCC unroll 8
    for (int64_t i = 0; i < vectors; ++i)
      rest[i] = rest[i] - splat(pick_components[s]) * load(components + s * stride + i * width<T>);
  T* variance = a.variance + image * a.tokens + start;
  for (int64_t i = 0; i < vectors; ++i) {
    const Vector<T> explained =
        pick_root == T(0)
            ? Vector<T>{}
            : by_parts<T>([pick_root](Part<T> x) -> Part<T> { return x / pick_root; }, rest[i]);
    store(components + a.step * stride + i * width<T>, explained);
    // A variance that becomes NaN counts as -inf; that of a selected token stays NaN.
    const Vector<T> before = load_lanes(variance + i * width<T>, lanes(i));
    const Vector<T> after = by_parts<T>(
        [](Part<T> old, Part<T> x) -> Part<T> {
          const Part<T> now = old - x * x;
          const Part<T> last = lowest<T> - Part<T>{};
          return old == old ? (now == now ? now : last) : old;
        },
        before, explained);
    store_lanes<T>(variance + i * width<T>, after, lanes(i));
  }
}

template <class T>
void dpp_explain(const DppSelect<T>& a, int64_t begin, int64_t end) {
  // As many registers on every instruction set.
  constexpr int64_t vectors = std::min<int64_t>(register_bytes / 8, token_block / width<T>);
  const int64_t blocks = token_blocks(a.tokens);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block % blocks * token_block;
    const int64_t last = std::min(start + token_block, a.tokens);
    int64_t at = start;
    for (; at + vectors * width<T> <= last; at += vectors * width<T>)
      explain<T, vectors>(a, block / blocks, at, vectors * width<T>);
    for (; at < last; at += width<T>) explain<T, 1>(a, block / blocks, at, last - at);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(dpp_pick, DppSelect)
OCVTP_KERNEL(dpp_explain, DppSelect)
