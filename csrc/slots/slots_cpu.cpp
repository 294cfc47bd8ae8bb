// ocvtp_native's slots parts on the CPU: the products are ATen's, what lies between them is ours.
// Products are in the dtype of the arguments, sums float32 or wider. What is of bfloat16 between
// products stays so in the competition; for other kernels it is made float32 first.
#include "encode/norm_tensor.h"
#include "slots/attention_tensor.h"
#include "slots/checks.h"

namespace ocvtp {
namespace {

// Wide, of the attention as it is multiplied.
Tensor mass_of(const Tensor& attention) {
  const int64_t rows = attention.size(0) * attention.size(1), tokens = attention.size(2);
  Tensor mass =
      empty(attention, {attention.size(0), attention.size(1)}, wide(attention.scalar_type()));
  by_chain_dtype(attention, [&](auto kind) {
    using E = decltype(kind);
    run(kernels<E>().slot_mass, SlotMass<E>{data<E>(attention), tokens, out<Wide<E>>(mass)}, rows,
        tokens);
  });
  return mass;
}

std::tuple<Tensor, Tensor, Tensor> slot_attention(Tensor q, Tensor k, Tensor v,
                                                  std::optional<Tensor> constant,
                                                  std::optional<Tensor> slot_mask, double scale,
                                                  double eps, bool with_attention) {
  check_slot_attention(q, k, v, constant, slot_mask, chain_dtypes);
  const Tensor attention = attention_of(q, k, dense(constant), dense(slot_mask), scale);
  const Tensor mass = mass_of(attention), updates = product(attention, v);
  per_mass(updates, nullptr, mass, eps, updates, nullptr);
  return {updates, mass, with_attention ? attention : empty(q, {0})};
}

std::tuple<Tensor, Tensor, Tensor> slot_attention_backward(Tensor q, Tensor k, Tensor v,
                                                           std::optional<Tensor> slot_mask,
                                                           double scale, double eps, Tensor updates,
                                                           Tensor grad_updates, Tensor grad_mass,
                                                           std::optional<Tensor> grad_attention,
                                                           std::optional<Tensor> kept) {
  check_slot_attention_backward(q, k, v, slot_mask, updates, grad_updates, grad_mass,
                                grad_attention, kept, chain_dtypes);
  updates = dense(updates);
  grad_updates = dense(grad_updates);
  grad_mass = dense(grad_mass);
  grad_attention = dense(grad_attention);
  const Tensor attention =
      kept ? dense(*kept) : attention_of(q, k, std::nullopt, dense(slot_mask), scale);
  const Tensor mass = mass_of(attention);
  const Tensor scaled = torch::stable::empty_like(grad_updates),
               delta = torch::stable::empty_like(mass);
  per_mass(grad_updates, &updates, mass, eps, scaled, &delta);
  const Tensor grad = product(scaled, transposed(v));
  const int64_t slots = grad.size(1), tokens = grad.size(2);
  by_chain_dtype(grad, [&](auto kind) {
    using E = decltype(kind);
    using T = Wide<E>;
    const SlotSoftmaxBackward<E> arguments{data<E>(attention),
                                           data<T>(delta),
                                           data<T>(grad_mass),
                                           data<E>(grad_attention),
                                           slots,
                                           tokens,
                                           T(scale),
                                           out<E>(grad)};
    run(kernels<E>().slot_softmax_backward, arguments, q.size(0) * token_blocks(tokens),
        slots * token_block);
  });
  return {product(grad, k), product(transposed(grad), q), product(transposed(attention), scaled)};
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
    run(kernels<T>().norm_slots, arguments, num_rows(slots), 2 * width);
  });
  return {normed, statistics};
}

std::tuple<Tensor, Tensor, Tensor> start(Tensor tokens, Tensor slots, Tensor weight, double eps) {
  check_start(tokens, slots, weight, chain_dtypes);
  const Tensor x = layer_norm(tokens, eps);
  const auto [normed, statistics] =
      normed_slots(computed(slots), nullptr, computed(weight), eps, nullptr);
  return {x, in_dtype(normed, tokens.scalar_type()), statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_slots(Tensor x, Tensor y, Tensor weight, double eps) {
  check_norm_slots(x, y, weight, chain_dtypes);
  const ScalarType dtype = y.scalar_type();
  x = dense(x);
  y = computed(y);
  const Tensor sum = torch::stable::empty_like(x);
  const auto [normed, statistics] = normed_slots(x, &y, computed(weight), eps, &sum);
  return {sum, in_dtype(normed, dtype), statistics};
}

std::tuple<Tensor, Tensor> gru_gates(Tensor x_gates, Tensor h_gates, Tensor h,
                                     std::optional<Tensor> shift, std::optional<Tensor> mass,
                                     std::optional<Tensor> statistics, std::optional<Tensor> sums,
                                     std::optional<Tensor> bias, double eps, bool with_norm) {
  check_gru_gates(x_gates, h_gates, h, shift, mass, statistics, sums, bias, chain_dtypes);
  const ScalarType dtype = x_gates.scalar_type(), dtype_of_h = h.scalar_type();
  x_gates = computed(x_gates);
  if (dtype != wide(dtype) || !has_one_row_stride(h_gates)) h_gates = computed(h_gates);
  h = computed(h);
  shift = computed(shift);
  mass = dense(mass);
  statistics = dense(statistics);
  sums = computed(sums);
  bias = computed(bias);
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
    run(kernels<T>().gru_gates, arguments, num_rows(x_gates), 16 * width);
  });
  return {with_norm ? state : in_dtype(state, dtype_of_h), in_dtype(normed, dtype)};
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("slot_attention", TORCH_BOX(&slot_attention));
  m.impl("slot_attention_backward", TORCH_BOX(&slot_attention_backward));
  m.impl("gru_gates", TORCH_BOX(&gru_gates));
  m.impl("start", TORCH_BOX(&start));
  m.impl("norm_slots", TORCH_BOX(&norm_slots));
}

}  // namespace
}  // namespace ocvtp
