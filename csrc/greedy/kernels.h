// The greedy selections among the CPU kernels (common/kernels.h), and the rows that they read.
#pragma once

#include <cstdint>

namespace ocvtp {

// Rows of images, [B, N, width], of unit stride within a row: matrices, points, tokens.
template <class T>
struct Rows {
  const T* x;
  int64_t image_stride, row_stride;
  const T* at(int64_t image, int64_t row) const {
    return x + image * image_stride + row * row_stride;
  }
};

// The greedy selections (ocvtp_kernels/greedy). `order` is [B, budget], [B, N] are scratch. Where
// picks wait for each other and a pick's work is large, a call does pick number `step` alone.
//
// Parts: for farthest_nearest blocks of tokens of images, where `first` is null; then images.
template <class T>
struct FarthestSelect {
  Rows<T> distances;
  const int64_t* first;  // [B] or null
  int64_t tokens, budget;
  bool distinct;
  T* running;  // [B, N]: each token's second smallest distance, then that to its nearest pick
  int64_t* order;
};

// Parts: rows for pivot_norms; then, step by step, images for pivot_pick, rows for pivot_distances.
template <class T>
struct PivotSelect {
  Rows<T> points;
  int64_t tokens, width, budget, step;
  T* running;  // [B, N]: L1 norms, then squared distances to the nearest pick
  int64_t* order;
};

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

// Part: images.
template <class T>
struct CentrifugalSelect {
  Rows<T> similarity;
  const int64_t* pivots;  // [B, num_pivots], those that count
  int64_t num_pivots, height, width, budget;
  double spread, threshold, step;
  int64_t chunk;
  bool pad;
  T *place, *merit;                       // [B, N]: the owner's place in the order; 1 - redundancy
  int64_t *nearest, *ranking, *accepted;  // [B, N]
  bool* taken;                            // [B, N]
  int64_t *order, *count, *owner;         // [B, budget], [B], [B, N]
  T* closeness;                           // [B, N]
};

// Parts: images for merge_lists, then rows of [B, owners] for merge_sums.
template <class T>
struct ScatterMerge {
  Rows<T> tokens;
  const T* weight;       // [B, N]
  const int64_t* owner;  // [B, N]
  int64_t num_tokens, width, owners;
  int64_t* starts;   // [B, owners + 1]: where an owner's tokens start in
  int64_t* members;  // [B, N]
  T* sums;           // [B, owners, width]
  T* mass;           // [B, owners]
};

// Part: blocks of channels of images. Unbiased, NaN of a single token.
template <class T>
struct ChannelVariance {
  Rows<T> tokens;
  int64_t num_tokens, width;
  T* variance;  // [B, width]
};

template <class T>
struct GreedyKernels {
  void (*farthest_nearest)(const FarthestSelect<T>&, int64_t begin, int64_t end);
  void (*farthest_select)(const FarthestSelect<T>&, int64_t begin, int64_t end);
  void (*pivot_norms)(const PivotSelect<T>&, int64_t begin, int64_t end);
  void (*pivot_pick)(const PivotSelect<T>&, int64_t begin, int64_t end);
  void (*pivot_distances)(const PivotSelect<T>&, int64_t begin, int64_t end);
  void (*dpp_pick)(const DppSelect<T>&, int64_t begin, int64_t end);
  void (*dpp_explain)(const DppSelect<T>&, int64_t begin, int64_t end);
  void (*facility_gains)(const FacilitySelect<T>&, int64_t begin, int64_t end);
  void (*facility_select)(const FacilitySelect<T>&, int64_t begin, int64_t end);
  void (*match_select)(const MatchSelect<T>&, int64_t begin, int64_t end);
  void (*centrifugal_select)(const CentrifugalSelect<T>&, int64_t begin, int64_t end);
  void (*channel_variance)(const ChannelVariance<T>&, int64_t begin, int64_t end);
};

// Channels in a block of ChannelVariance: their sums stay in the innermost cache.
inline constexpr int64_t channel_block = 256;
inline int64_t channel_blocks(int64_t width) { return (width + channel_block - 1) / channel_block; }

}  // namespace ocvtp
