// ocvtp_native::centrifugal_select.
#include "centrifugal_select/centrifugal_select.h"
#include "common/binding.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> centrifugal_select(Tensor similarity, Tensor pivots,
                                                              int64_t height, int64_t width,
                                                              int64_t budget, double spread,
                                                              double threshold, double step,
                                                              int64_t chunk, bool pad) {
  require_square("similarity", similarity, kernel_dtypes);
  require("pivots", pivots, {similarity.size(0), any}, ScalarType::Long, similarity);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  require_range("height", height, 0, tokens);
  require_range("width", width, 0, tokens);
  if (height * width != tokens)
    refuse("height, width", "a grid of " + std::to_string(tokens) + " tokens",
           std::to_string(height) + ", " + std::to_string(width));
  require_range("budget", budget, 0, tokens);
  require_at_least("chunk", chunk, 1);
  similarity = with_unit_stride(similarity);
  pivots = dense(pivots);
  require_ids("pivots", pivots, tokens);
  const Tensor closeness = empty(similarity, {batch, tokens});
  const Tensor closest_pick = empty(similarity, {batch, tokens});
  const Tensor merit = empty(similarity, {batch, tokens});
  const Tensor lists = empty(pivots, {3, batch, tokens}),
               assignment = empty(pivots, {batch, tokens});
  const Tensor order = empty(pivots, {batch, budget}), count = empty(pivots, {batch});
  const Tensor selected = empty(pivots, {batch, tokens}, ScalarType::Bool);
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    int64_t* list = out<int64_t>(lists);
    const CentrifugalSelect<T> arguments{rows<T>(similarity),
                                         data<int64_t>(pivots),
                                         pivots.size(1),
                                         height,
                                         width,
                                         budget,
                                         spread,
                                         threshold,
                                         step,
                                         std::min(chunk, tokens),
                                         pad,
                                         out<T>(closest_pick),
                                         out<T>(merit),
                                         list,
                                         list + batch * tokens,
                                         list + 2 * batch * tokens,
                                         out<bool>(selected),
                                         out<int64_t>(order),
                                         out<int64_t>(count),
                                         out<int64_t>(assignment),
                                         out<T>(closeness)};
    run(kernels::centrifugal_select<T>, arguments, batch, budget * tokens);
  });
  return {order, count, assignment, closeness};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // similarity [B,N,N], pivots int64 [B,P] -> order [B,budget], count [B], owner [B,N], all int64,
  // and closeness [B,N].
  m.def(
      "centrifugal_select(Tensor similarity, Tensor pivots, int height, int width, int budget,"
      " float spread, float threshold, float step, int chunk, bool pad)"
      " -> (Tensor order, Tensor count, Tensor owner, Tensor closeness)");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("centrifugal_select", TORCH_BOX(&centrifugal_select));
}

}  // namespace
}  // namespace ocvtp
