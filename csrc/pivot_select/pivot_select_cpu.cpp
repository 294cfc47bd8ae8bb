// ocvtp_native::pivot_select.
#include "common/binding.h"
#include "pivot_select/pivot_select.h"

namespace ocvtp {
namespace {

Tensor pivot_select(Tensor points, int64_t budget) {
  require("points", points, {any, any, any}, kernel_dtypes, points);
  require_range("budget", budget, 0, points.size(1));
  points = with_unit_stride(points);
  const int64_t batch = points.size(0), tokens = points.size(1), width = points.size(2);
  const Tensor running = empty(points, {batch, tokens});
  const Tensor order = empty(points, {batch, budget}, ScalarType::Long);
  by_dtype(points, [&](auto kind) {
    using T = decltype(kind);
    each_image(batch, budget * tokens * width, [&](int64_t image) {
      PivotSelect<T> a{rows<T>(points),    tokens, width, budget, 0, out<T>(running),
                       out<int64_t>(order)};
      run_step(kernels::pivot_norms<T>, a, image, tokens, width);
      for (; a.step < budget; ++a.step) {
        kernels::pivot_pick<T>(a, image, image + 1);
        if (a.step + 1 < budget) run_step(kernels::pivot_distances<T>, a, image, tokens, width);
      }
    });
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // points [B,N,C] -> the picks in order, int64 [B,budget].
  m.def("pivot_select(Tensor points, int budget) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("pivot_select", TORCH_BOX(&pivot_select));
}

}  // namespace
}  // namespace ocvtp
