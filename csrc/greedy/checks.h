// What the greedy selections take, but for the values of ids; `taken` are the dtypes that the
// kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

// A matrix [B, N, N].
inline void require_square(const char* name, const Tensor& matrix, Dtypes taken) {
  require(name, matrix, {any, any, any}, taken, matrix);
  require(name, matrix, {any, matrix.size(1), matrix.size(1)}, taken, matrix);
}

inline void check_farthest(const Tensor& distances, const std::optional<Tensor>& first,
                           int64_t budget, Dtypes taken) {
  require_square("distances", distances, taken);
  require("first", first, {distances.size(0)}, ScalarType::Long, distances);
  // The first pick is made whatever the budget.
  require_range("budget", budget, 1, distances.size(1));
}

inline void check_pivot(const Tensor& points, int64_t budget, Dtypes taken) {
  require("points", points, {any, any, any}, taken, points);
  require_range("budget", budget, 0, points.size(1));
}

// A score a token, called `name`, beside similarity.
inline void check_scored(const Tensor& similarity, const char* name, const Tensor& scores,
                         int64_t budget, Dtypes taken) {
  require_square("similarity", similarity, taken);
  require(name, scores, {similarity.size(0), similarity.size(1)}, similarity.scalar_type(),
          similarity);
  require_range("budget", budget, 0, similarity.size(1));
}

inline void check_match(const Tensor& similarity, const Tensor& ranked, int64_t budget,
                        int64_t drop, Dtypes taken) {
  require_square("similarity", similarity, taken);
  require("ranked", ranked, {similarity.size(0), any}, ScalarType::Long, similarity);
  require_range("budget", budget, 0, ranked.size(1));
  require_least("drop", drop, 1);
}

inline void check_centrifugal(const Tensor& similarity, const Tensor& pivots, int64_t height,
                              int64_t width, int64_t budget, int64_t chunk, Dtypes taken) {
  require_square("similarity", similarity, taken);
  require("pivots", pivots, {similarity.size(0), any}, ScalarType::Long, similarity);
  const int64_t tokens = similarity.size(1);
  require_range("height", height, 0, tokens);
  require_range("width", width, 0, tokens);
  if (height * width != tokens)
    refuse("height, width", "a grid of " + std::to_string(tokens) + " tokens",
           std::to_string(height) + ", " + std::to_string(width));
  require_range("budget", budget, 0, tokens);
  require_least("chunk", chunk, 1);
}

inline void check_scatter_merge(const Tensor& tokens, const Tensor& weight, const Tensor& owner,
                                int64_t num_owners, Dtypes taken) {
  require("tokens", tokens, {any, any, any}, taken, tokens);
  require("weight", weight, {tokens.size(0), tokens.size(1)}, tokens.scalar_type(), tokens);
  require("owner", owner, {tokens.size(0), tokens.size(1)}, ScalarType::Long, tokens);
  require_least("num_owners", num_owners, 0);
}

inline void check_channel_variance(const Tensor& tokens, Dtypes taken) {
  require("tokens", tokens, {any, any, any}, taken, tokens);
}

}  // namespace ocvtp
