// Greedy inference of a determinantal point process (ocvtp_kernels/greedy/reference.py), a pick at
// a time. Each token's arithmetic is the reference's, step for step, so its roundings are too.
#pragma once

#include "common/greedy_scores.h"

namespace ocvtp {

// Parts, step by step: images for dpp_pick, blocks of tokens of images for dpp_explain.
template <class T>
struct DppSelect {
  Rows<T> similarity;
  const T* quality;  // [B, N]
  int64_t tokens, budget, step;
  T* left;          // [B, N], variance
  T* components;    // [B, budget, whole_vectors(N)]
  T* own;           // [B, budget], the pick's own components
  T *least, *root;  // [B]: what counts as no variance, and the root of the pick's; 0 for none
  int64_t* order;
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

// The first pick's call finds what every token is to explain.
template <class T>
inline void dpp_start(const DppSelect<T>& a, int64_t image) {
  T most = lowest<T>;
  for (int64_t n = 0; n < a.tokens; ++n) {
    const T quality = a.quality[image * a.tokens + n];
    const T left = nan_last((quality * quality) * a.similarity.at(image, n)[n]);
    a.left[image * a.tokens + n] = left;
    most = std::max(most, left);
  }
  a.least[image] = T(1e-12) * std::max(most, T(0));
}

template <class T>
void dpp_pick(const DppSelect<T>& a, int64_t begin, int64_t end) {
  const int64_t stride = whole_vectors(a.tokens);
  for (int64_t image = begin; image < end; ++image) {
    if (a.step == 0) dpp_start(a, image);
    T* left = a.left + image * a.tokens;
    const int64_t pick = first_of_highest(left, a.tokens);
    a.order[image * a.budget + a.step] = pick;
    const T variance = left[pick];
    a.root[image] = variance > a.least[image]
                        ? std::sqrt(std::max(variance, std::numeric_limits<T>::min()))
                        : T(0);
    left[pick] = taken_score<T>;
    const T* components = a.components + image * a.budget * stride + pick;
    T* own = a.own + image * a.budget;
    for (int64_t s = 0; s < a.step; ++s) own[s] = components[s * stride];
  }
}

// `vectors` vectors of tokens from `start`, of which `count` are: what earlier components leave of
// them stays in registers.
template <class T, int64_t vectors>
inline void explain(const DppSelect<T>& a, int64_t image, int64_t start, int64_t count) {
  const int64_t stride = whole_vectors(a.tokens);
  const int64_t pick = a.order[image * a.budget + a.step];
  const T* quality = a.quality + image * a.tokens;
  const T* row = a.similarity.at(image, pick) + start;
  T* components = a.components + image * a.budget * stride + start;
  const T* own = a.own + image * a.budget;
  const T root = a.root[image];
  const auto lanes = [count](int64_t i) { return std::min(width<T>, count - i * width<T>); };
  Vector<T> rest[vectors];
  for (int64_t i = 0; i < vectors; ++i)
    rest[i] = splat(quality[pick]) * load_lanes(row + i * width<T>, lanes(i)) *
              load_lanes(quality + start + i * width<T>, lanes(i));
  for (int64_t s = 0; s < a.step; ++s)
#pragma GCC unroll 8
    for (int64_t i = 0; i < vectors; ++i)
      rest[i] = rest[i] - splat(own[s]) * load(components + s * stride + i * width<T>);
  T* left = a.left + image * a.tokens + start;
  for (int64_t i = 0; i < vectors; ++i) {
    const Vector<T> explained =
        root == T(0) ? Vector<T>{}
                     : by_parts<T>([root](Part<T> x) -> Part<T> { return x / root; }, rest[i]);
    store(components + a.step * stride + i * width<T>, explained);
    // Where nothing can be told any more a token is last; a token taken stays taken.
    const Vector<T> before = load_lanes(left + i * width<T>, lanes(i));
    const Vector<T> after = by_parts<T>(
        [](Part<T> old, Part<T> x) -> Part<T> {
          const Part<T> now = old - x * x;
          const Part<T> last = lowest<T> - Part<T>{};
          return old == old ? (now == now ? now : last) : old;
        },
        before, explained);
    store_lanes<T>(left + i * width<T>, after, lanes(i));
  }
}

template <class T>
void dpp_explain(const DppSelect<T>& a, int64_t begin, int64_t end) {
  // As many registers, whatever their size.
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
