// ocvtp_native's parts on CUDA that take the slots row by row; the GEMMs between them are torch's.
#include <torch/csrc/stable/library.h>

#include "common/cuda_rows.h"
#include "slots/checks.h"
#include "slots/gru_gates.cuh"
#include "slots/norm_slots.cuh"

namespace ocvtp {
namespace {

// Of the row that a norm keeps in shared memory: what no chip needs to be asked for.
constexpr int kWidestNorm = 8192;

void check_width(int width) {
  STD_TORCH_CHECK(width <= kWidestNorm, "ocvtp_native: slots of ", width, " channels, the most is ",
                  kWidestNorm);
}

std::tuple<Tensor, Tensor, Tensor> start(Tensor tokens, Tensor slots, Tensor weight, double eps) {
  check_start(tokens, slots, weight, kernel_dtypes);
  slots = dense(slots);
  weight = dense(weight);
  const Tensor x = empty_sized(tokens, tokens.scalar_type());
  const Tensor normed = empty_sized(slots, tokens.scalar_type());
  const Tensor statistics = empty_rows(slots, 3, ScalarType::Float);
  const Rows2 rows = rows_of(tokens, 2);
  if (rows.count + num_rows(slots) == 0) return {x, normed, statistics};
  const Launcher launch(tokens);
  by_cuda_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    constexpr int kPack = kMostElements<T>;
    const bool packs =
        rows.in_packs_of(kPack, sizeof(T)) && divides(sizeof(T) * kPack, {address(slots)});
    launch(packs ? start_kernel<T, kPack> : start_kernel<T, 1>, rows.count + num_rows(slots),
           kNormThreads, 0, data<T>(rows.tensor), out<T>(x), rows.layout, rows.count,
           data<T>(slots), data<T>(weight), out<T>(normed), out<SlotStatistics>(statistics),
           rows.width, static_cast<float>(eps));
  });
  return {x, normed, statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_slots(Tensor x, Tensor y, Tensor weight, double eps) {
  check_norm_slots(x, y, weight, kernel_dtypes);
  weight = dense(weight);
  const Tensor sum = empty_sized(x, ScalarType::Float);
  const Tensor normed = empty_sized(y, y.scalar_type());
  const Tensor statistics = empty_rows(x, 3, ScalarType::Float);
  const Rows2 x_rows = rows_of(x, 1), y_rows = rows_of(y, 1);
  check_width(x_rows.width);
  if (x_rows.count == 0) return {sum, normed, statistics};
  const Launcher launch(x);
  by_cuda_dtype(y, [&](auto kind) {
    using T = decltype(kind);
    launch(norm_slots_kernel<T>, x_rows.count, kNormThreads,
           x_rows.width * static_cast<int>(sizeof(float)), data<float>(x_rows.tensor),
           data<T>(y_rows.tensor), data<T>(weight), out<float>(sum), out<T>(normed),
           out<SlotStatistics>(statistics), x_rows.layout.inner_stride, y_rows.layout.inner_stride,
           x_rows.width, static_cast<float>(eps));
  });
  return {sum, normed, statistics};
}

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
  m.impl("start", TORCH_BOX(&start));
  m.impl("norm_slots", TORCH_BOX(&norm_slots));
  m.impl("gru_gates", TORCH_BOX(&gru_gates));
}

}  // namespace
}  // namespace ocvtp
