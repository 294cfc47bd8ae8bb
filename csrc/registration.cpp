// Every schema of torch.ops.ocvtp_native, on one page. These are the parts that
// ocvtp_kernels/*/native.py puts together; the checked ops with fakes and gradients are
// torch.ops.ocvtp.*, defined in ocvtp_kernels/ops. Implementations register beside their kernels,
// for the CPU in this library, for CUDA in _C_cuda; an op's csrc/*/checks.h says what both take.
//
// B images, N tokens, K slots, T kept tokens. Inputs are on one device and of one floating dtype
// unless said; "wide" is float64 for float64 and float32 for the others.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "common/namespace.h"

OCVTP_LIBRARY(m) {
  // Rows to mean 0 and deviation 1: [..., C] -> [..., C].
  m.def("layer_norm(Tensor x, float eps) -> Tensor");
  // gelu(x + bias) in place, the exact (erf) GELU: [..., F], [F].
  m.def("bias_gelu_(Tensor(a!) x, Tensor bias) -> ()");
  // q [B,K,D], k [B,N,D], v [B,N,E], constant wide [B,K], slot_mask bool [B,K]
  // -> updates [B,K,E], wide mass [B,K], attention [B,K,N] or [0].
  m.def(
      "slot_attention(Tensor q, Tensor k, Tensor v, Tensor? constant, Tensor? slot_mask,"
      " float scale, float eps, bool with_attention)"
      " -> (Tensor updates, Tensor mass, Tensor attention)");
  m.def(
      "slot_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? slot_mask, float scale,"
      " float eps, Tensor updates, Tensor grad_updates, Tensor grad_mass, Tensor? grad_attention,"
      " Tensor? attention=None)"
      " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  // tokens [B,N,D] and initial slots [S,K,D] -> their layer_norms, and the slots' wide statistics
  // [S,K,3]: mean, deviation and the dot product of layer_norm(slots) and weight [D].
  m.def(
      "start(Tensor tokens, Tensor slots, Tensor weight, float eps)"
      " -> (Tensor x, Tensor normed, Tensor statistics)");
  // wide x [R,D], y [R,D] -> x + y, wide; its layer_norm in the dtype of y; its statistics [R,3].
  m.def(
      "norm_slots(Tensor x, Tensor y, Tensor weight, float eps)"
      " -> (Tensor sum, Tensor normed, Tensor statistics)");
  // x_gates [R,3D], h_gates [S,3D] and h [S,D] of that dtype or wide, with row r % S of S for row
  // r. shift [3D] and wide mass [R]: x_gates + mass / (mass + eps) * shift. statistics [S,3] of h,
  // sums [3D] and bias [3D]: h_gates are of layer_norm(h), those of h being
  // deviation * h_gates + mean * sums + bias. -> state [R,D] in the dtype of h, and, if asked for,
  // its layer_norm in the dtype of x_gates, else [0]; with it the state is wide.
  m.def(
      "gru_gates(Tensor x_gates, Tensor h_gates, Tensor h, Tensor? shift, Tensor? mass,"
      " Tensor? statistics, Tensor? sums, Tensor? bias, float eps, bool with_norm)"
      " -> (Tensor state, Tensor normed)");
  // -> picks int64 [B,K,top_k] best first, wide log-attention of the best [B,K], and, if asked
  // for, each token's largest log-attention over slots, wide [B,N], else [0].
  m.def(
      "slot_argmax(Tensor q, Tensor k, Tensor? constant, float scale, int top_k,"
      " bool with_evidence) -> (Tensor picks, Tensor peak, Tensor evidence)");
  // On a GPU. -> packed int64 [B,P,K], each slot's best pick of each of P tiles of tokens, as
  // resolve_gather_packed takes it, and the evidence.
  m.def(
      "slot_argmax_packed(Tensor q, Tensor k, Tensor? constant, float scale, bool with_evidence)"
      " -> (Tensor packed, Tensor evidence)");
  // picks int64 [B,K,top_k], peak [B,K], importance [B,N] of any floating dtypes
  // -> ids int64 [B,budget].
  m.def(
      "resolve_picks(Tensor picks, Tensor peak, Tensor? importance, int budget, int num_tokens)"
      " -> Tensor");
  // The same and the gather: final [B,N,C] of any dtype -> tokens [B,budget,C], ids.
  m.def(
      "resolve_gather(Tensor picks, Tensor peak, Tensor? importance, Tensor final, int budget)"
      " -> (Tensor tokens, Tensor ids)");
  m.def(
      "resolve_gather_packed(Tensor packed, Tensor? importance, Tensor final, int budget)"
      " -> (Tensor tokens, Tensor ids)");
  // q and k of one floating dtype, final [B,N,C] of any -> merged [B,K,C] in the dtype of final,
  // mass [B,K] in that of q.
  m.def("merge(Tensor q, Tensor k, Tensor final, float scale) -> (Tensor merged, Tensor mass)");
  // q [B,H,M,d], k [B,H,N,d]; row -1 is the mean over all queries, else that query's row alone
  // -> wide [B,N], averaged over heads.
  m.def("attention_received(Tensor q, Tensor k, int row, float scale) -> Tensor");
  // Greedy selections, ocvtp_kernels/ops/page_greedy.py: matrices [B,N,N] and scores [B,N] are
  // wide and of one dtype, ids int64; what comes back stands in the order picked, [B,budget].
  m.def("farthest_select(Tensor distances, Tensor? first, int budget, bool distinct) -> Tensor");
  m.def("pivot_select(Tensor points, int budget) -> Tensor");
  m.def("dpp_select(Tensor similarity, Tensor quality, int budget) -> Tensor");
  m.def("facility_select(Tensor similarity, Tensor saliency, int budget) -> Tensor");
  m.def("match_select(Tensor similarity, Tensor ranked, int budget, int drop) -> Tensor");
  // -> order [B,budget], count [B], owner [B,N], closeness wide [B,N].
  m.def(
      "centrifugal_select(Tensor similarity, Tensor pivots, int height, int width, int budget,"
      " float spread, float threshold, float step, int chunk, bool pad)"
      " -> (Tensor order, Tensor count, Tensor owner, Tensor closeness)");
  // tokens [B,N,C], weight [B,N], owner [B,N] from -1 -> wide sums [B,num_owners,C], mass.
  m.def(
      "scatter_merge(Tensor tokens, Tensor weight, Tensor owner, int num_owners)"
      " -> (Tensor sums, Tensor mass)");
  // wide tokens [B,N,C] -> [B,C].
  m.def("channel_variance(Tensor tokens) -> Tensor");
  // The instruction set that the CPU kernels use; a name given here is used from now on, for
  // tests that compare them. "" asks only.
  m.def("isa(str wanted) -> str");
}

// An importable module, so that Python's loader finds and loads this library.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
