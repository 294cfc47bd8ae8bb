// ocvtp_native::gru_gates on CUDA.
#include <torch/csrc/stable/library.h>

#include "common/cuda_rows.h"
#include "gru_cell/checks.h"
#include "gru_cell/gru_gates.cuh"

namespace ocvtp {
namespace {

template <class T, class Old, class State, bool NORM>
void launch_gates(const Launcher& launch, const GruArguments<T, Old, State>& arguments,
                  int64 rows) {
  launch(gru_gates_kernel<T, Old, State, NORM>, rows, kGruThreads,
         NORM ? arguments.width * static_cast<int>(sizeof(float)) : 0, arguments);
}

std::tuple<Tensor, Tensor> gru_gates(Tensor x_gates, Tensor h_gates, Tensor h,
                                     std::optional<Tensor> shift, std::optional<Tensor> mass,
                                     std::optional<Tensor> statistics, std::optional<Tensor> sums,
                                     std::optional<Tensor> bias, double eps, bool with_norm) {
  check_gru_gates(x_gates, h_gates, h, shift, mass, statistics, sums, bias, kernel_dtypes);
  const ScalarType dtype = x_gates.scalar_type();
  const int width = int_size(h, h.dim() - 1);
  const Tensor state = empty_rows(x_gates, width, with_norm ? ScalarType::Float : h.scalar_type());
  const Tensor normed = with_norm ? empty_sized(state, dtype) : empty(x_gates, {0});
  const Rows2 x = rows_of(x_gates, 1), g = rows_of(h_gates, 1), old = rows_of(h, 1);
  if (with_norm) check_width(width);
  if (x.count == 0) return {state, normed};
  shift = dense(shift);
  mass = dense(mass);
  statistics = dense(statistics);
  sums = dense(sums);
  bias = dense(bias);
  const Launcher launch(h);
  by_cuda_dtype(x_gates, [&](auto kind) {
    using T = decltype(kind);
    const auto arguments_of = [&](auto old_kind, auto state_kind) {
      using Old = decltype(old_kind);
      using State = decltype(state_kind);
      return GruArguments<T, Old, State>{data<T>(x.tensor),
                                         data<T>(g.tensor),
                                         data<Old>(old.tensor),
                                         data<T>(shift),
                                         data<float>(mass),
                                         data<SlotStatistics>(statistics),
                                         data<T>(sums),
                                         data<T>(bias),
                                         out<State>(state),
                                         with_norm ? out<T>(normed) : nullptr,
                                         old.count,
                                         x.layout.inner_stride,
                                         g.layout.inner_stride,
                                         old.layout.inner_stride,
                                         width,
                                         static_cast<float>(eps),
                                         static_cast<float>(layer_norm_eps)};
    };
    const auto run_on = [&](auto old_kind) {
      using Old = decltype(old_kind);
      if (with_norm)
        launch_gates<T, Old, float, true>(launch, arguments_of(Old{}, float{}), x.count);
      else
        launch_gates<T, Old, Old, false>(launch, arguments_of(Old{}, Old{}), x.count);
    };
    if (h.scalar_type() == dtype)
      run_on(T{});
    else
      run_on(float{});
  });
  return {state, normed};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("gru_gates", TORCH_BOX(&gru_gates));
}

}  // namespace
}  // namespace ocvtp
