// ocvtp_native::gru_gates on CUDA; the two GEMMs before it are torch's.
#include <torch/csrc/stable/library.h>

#include "common/cuda_rows.h"
#include "slots/checks.h"
#include "slots/gru_gates.cuh"

namespace ocvtp {
namespace {

// Of the row that the norm keeps in shared memory: what no chip needs to be asked for.
constexpr int kWidestNorm = 8192;

template <class T, class State>
void launch_gates(const Launcher& launch, const GruArguments<T, State>& arguments, int64 rows,
                  bool with_norm) {
  if (with_norm)
    launch(gru_gates_kernel<T, State, true>, rows, kGruThreads,
           arguments.width * static_cast<int>(sizeof(float)), arguments);
  else
    launch(gru_gates_kernel<T, State, false>, rows, kGruThreads, 0, arguments);
}

std::tuple<Tensor, Tensor> gru_gates(Tensor x_gates, Tensor h_gates, Tensor h,
                                     std::optional<Tensor> shift, std::optional<Tensor> mass,
                                     double eps, bool with_norm) {
  check_gru_gates(x_gates, h_gates, h, shift, mass, kernel_dtypes);
  const ScalarType dtype = x_gates.scalar_type();
  const Tensor state = empty_sized(h, h.scalar_type());
  const Tensor normed = with_norm ? empty_sized(h, dtype) : empty(x_gates, {0});
  const Rows2 x = rows_of(x_gates, 1), g = rows_of(h_gates, 1), old = rows_of(h, 1);
  STD_TORCH_CHECK(!with_norm || old.width <= kWidestNorm, "ocvtp_native: gru_gates with_norm of ",
                  old.width, " channels, the most is ", kWidestNorm);
  if (old.count == 0) return {state, normed};
  shift = dense(shift);
  mass = dense(mass);
  const Launcher launch(h);
  by_cuda_dtype(x_gates, [&](auto kind) {
    using T = decltype(kind);
    const auto run_with = [&](auto wide) {
      using State = decltype(wide);
      launch_gates<T, State>(
          launch,
          {data<T>(x.tensor), data<T>(g.tensor), data<State>(old.tensor), data<T>(shift),
           data<float>(mass), out<State>(state), with_norm ? out<T>(normed) : nullptr,
           x.layout.inner_stride, g.layout.inner_stride, old.layout.inner_stride, old.width,
           static_cast<float>(eps), static_cast<float>(layer_norm_eps)},
          old.count, with_norm);
    };
    if (h.scalar_type() == dtype) return run_with(T{});
    run_with(float{});
  });
  return {state, normed};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("gru_gates", TORCH_BOX(&gru_gates));
}

}  // namespace
}  // namespace ocvtp
