// ocvtp_native::slot_attention and its gradient on the CPU: the products are ATen's, in the dtype
// of the arguments, and what lies between them is in the same; sums are float32 or wider.
#include "slot_attention/checks.h"
#include "slot_attention/slot_attention_tensor.h"

namespace ocvtp {
namespace {

// The mass of each slot, summed over the attention as it was rounded.
Tensor mass_of(const Tensor& attention) {
  const int64_t rows = attention.size(0) * attention.size(1), tokens = attention.size(2);
  Tensor mass =
      empty(attention, {attention.size(0), attention.size(1)}, acc_dtype(attention.scalar_type()));
  by_pipeline_dtype(attention, [&](auto kind) {
    using E = decltype(kind);
    run(kernels::slot_mass<E>, SlotMass<E>{data<E>(attention), tokens, out<Acc<E>>(mass)}, rows,
        tokens);
  });
  return mass;
}

std::tuple<Tensor, Tensor, Tensor> slot_attention(Tensor q, Tensor k, Tensor v,
                                                  std::optional<Tensor> constant,
                                                  std::optional<Tensor> slot_mask, double scale,
                                                  double eps, bool with_attention) {
  check_slot_attention(q, k, v, constant, slot_mask, pipeline_dtypes);
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
                                grad_attention, kept, pipeline_dtypes);
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
  by_pipeline_dtype(grad, [&](auto kind) {
    using E = decltype(kind);
    using T = Acc<E>;
    const SlotSoftmaxBackward<E> arguments{data<E>(attention),
                                           data<T>(delta),
                                           data<T>(grad_mass),
                                           data<E>(grad_attention),
                                           slots,
                                           tokens,
                                           T(scale),
                                           out<E>(grad)};
    run(kernels::slot_softmax_backward<E>, arguments, q.size(0) * token_blocks(tokens),
        slots * token_block);
  });
  return {product(grad, k), product(transposed(grad), q), product(transposed(attention), scaled)};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  m.def(
      "slot_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? slot_mask, float scale,"
      " float eps, Tensor updates, Tensor grad_updates, Tensor grad_mass, Tensor? grad_attention,"
      " Tensor? attention=None)"
      " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("slot_attention", TORCH_BOX(&slot_attention));
  m.impl("slot_attention_backward", TORCH_BOX(&slot_attention_backward));
}

}  // namespace
}  // namespace ocvtp
