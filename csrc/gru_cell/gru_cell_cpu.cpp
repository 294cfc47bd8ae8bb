// ocvtp_native::gru_gates on the CPU, in float32 or wider.
#include "common/binding.h"
#include "gru_cell/checks.h"
#include "gru_cell/gru_gates.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor> gru_gates(Tensor x_gates, Tensor h_gates, Tensor h,
                                     std::optional<Tensor> shift, std::optional<Tensor> mass,
                                     std::optional<Tensor> statistics, std::optional<Tensor> sums,
                                     std::optional<Tensor> bias, double eps, bool with_norm) {
  check_gru_gates(x_gates, h_gates, h, shift, mass, statistics, sums, bias, pipeline_dtypes);
  const ScalarType dtype = x_gates.scalar_type(), dtype_of_h = h.scalar_type();
  x_gates = upcast_dense(x_gates);
  if (dtype != acc_dtype(dtype) || !has_one_row_stride(h_gates)) h_gates = upcast_dense(h_gates);
  h = upcast_dense(h);
  shift = upcast_dense(shift);
  mass = dense(mass);
  statistics = dense(statistics);
  sums = upcast_dense(sums);
  bias = upcast_dense(bias);
  const int64_t width = h.size(h.dim() - 1);
  const Tensor state = empty_rows(x_gates, width, h.scalar_type());
  const Tensor normed = with_norm ? torch::stable::empty_like(state) : empty(h, {0});
  by_dtype(h, [&](auto kind) {
    using T = decltype(kind);
    const GruGates<T> arguments{data<T>(x_gates),
                                data<T>(h_gates),
                                data<T>(h),
                                num_rows(h),
                                row_stride(h_gates),
                                data<T>(shift),
                                data<T>(mass),
                                data<T>(statistics),
                                data<T>(sums),
                                data<T>(bias),
                                width,
                                T(eps),
                                T(layer_norm_eps),
                                out<T>(state),
                                with_norm ? out<T>(normed) : nullptr};
    run(kernels::gru_gates<T>, arguments, num_rows(x_gates), 16 * width);
  });
  return {with_norm ? state : in_dtype(state, dtype_of_h), in_dtype(normed, dtype)};
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) { m.impl("gru_gates", TORCH_BOX(&gru_gates)); }

}  // namespace
}  // namespace ocvtp
