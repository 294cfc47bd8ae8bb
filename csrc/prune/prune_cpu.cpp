// The ops that only ocvtp::prune calls, on the CPU.
#include "common/binding.h"
#include "prune/bias_gelu.h"
#include "prune/checks.h"
#include "prune/layer_norm.h"
#include "prune/norm_slots.h"

namespace ocvtp {
namespace {

Tensor layer_norm(Tensor x, double eps) {
  check_layer_norm(x, pipeline_dtypes);
  x = dense(x);
  const int64_t width = x.size(x.dim() - 1);
  Tensor normed = torch::stable::empty_like(x);
  by_pipeline_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const LayerNorm<E> arguments{data<E>(x), width, width, Acc<E>(eps), out<E>(normed)};
    run(kernels::layer_norm<E>, arguments, width ? x.numel() / width : 0, width);
  });
  return normed;
}

void bias_gelu_(Tensor x, Tensor bias) {
  check_bias_gelu(x, bias, kernel_dtypes);
  if (!x.is_contiguous()) refuse("x", "a dense tensor", "strides " + text_of(x.strides()));
  bias = dense(bias);
  const int64_t width = x.size(x.dim() - 1);
  by_dtype(x, [&](auto kind) {
    using T = decltype(kind);
    const BiasGelu<T> arguments{out<T>(x), data<T>(bias), width};
    run(kernels::bias_gelu<T>, arguments, width ? x.numel() / width : 0, 4 * width);
  });
}

// The norm and the statistics [.., 3] of slots, or of slots + y into `sum`.
std::tuple<Tensor, Tensor> normed_slots(const Tensor& slots, const Tensor* y, const Tensor& weight,
                                        double eps, const Tensor* sum) {
  const int64_t width = slots.size(slots.dim() - 1);
  const Tensor normed = torch::stable::empty_like(slots);
  const Tensor statistics = empty_rows(slots, 3, slots.scalar_type());
  by_dtype(slots, [&](auto kind) {
    using T = decltype(kind);
    const NormSlots<T> arguments{
        data<T>(slots), y ? data<T>(*y) : nullptr,    data<T>(weight), width,
        T(eps),         sum ? out<T>(*sum) : nullptr, out<T>(normed),  out<T>(statistics)};
    run(kernels::norm_slots<T>, arguments, num_rows(slots), 2 * width);
  });
  return {normed, statistics};
}

std::tuple<Tensor, Tensor, Tensor> start(Tensor tokens, Tensor slots, Tensor weight, double eps) {
  check_start(tokens, slots, weight, pipeline_dtypes);
  const Tensor x = layer_norm(tokens, eps);
  const auto [normed, statistics] =
      normed_slots(upcast_dense(slots), nullptr, upcast_dense(weight), eps, nullptr);
  return {x, in_dtype(normed, tokens.scalar_type()), statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_slots(Tensor x, Tensor y, Tensor weight, double eps) {
  check_norm_slots(x, y, weight, pipeline_dtypes);
  const ScalarType dtype = y.scalar_type();
  x = dense(x);
  y = upcast_dense(y);
  const Tensor sum = torch::stable::empty_like(x);
  const auto [normed, statistics] = normed_slots(x, &y, upcast_dense(weight), eps, &sum);
  return {sum, in_dtype(normed, dtype), statistics};
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
  m.impl("start", TORCH_BOX(&start));
  m.impl("norm_slots", TORCH_BOX(&norm_slots));
}

}  // namespace
}  // namespace ocvtp
