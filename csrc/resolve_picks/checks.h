// What resolve_picks and its gather take, on every device.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_importance(const std::optional<Tensor>& importance, int64_t batch,
                             int64_t num_tokens, int64_t budget, const Tensor& picks) {
  require("importance", importance, {batch, num_tokens}, floating, picks);
  require_range("budget", budget, 0, num_tokens);
}

inline void check_resolve_picks(const Tensor& picks, const Tensor& peak,
                                const std::optional<Tensor>& importance, int64_t budget,
                                int64_t num_tokens) {
  require("picks", picks, {any, any, any}, ScalarType::Long, picks);
  require("peak", peak, {picks.size(0), picks.size(1)}, floating, picks);
  require_at_least("num_tokens", num_tokens, 0);
  check_importance(importance, picks.size(0), num_tokens, budget, picks);
}

inline void check_resolve_gather(const Tensor& picks, const Tensor& peak,
                                 const std::optional<Tensor>& importance, const Tensor& final,
                                 int64_t budget) {
  require("final", final, {any, any, any}, Dtypes::all(), final);
  check_resolve_picks(picks, peak, importance, budget, final.size(1));
  require("final", final, {picks.size(0), any, any}, Dtypes::all(), picks);
}

inline void check_resolve_gather_packed(const Tensor& packed,
                                        const std::optional<Tensor>& importance,
                                        const Tensor& final, int64_t budget) {
  require("packed", packed, {any, any, any}, ScalarType::Long, packed);
  require("final", final, {packed.size(0), any, any}, Dtypes::all(), packed);
  check_importance(importance, packed.size(0), final.size(1), budget, packed);
}

}  // namespace ocvtp
