// The CPU kernels: what each reads and writes. They know nothing of torch or threads: each does the
// part [begin, end) of its work, and any division of the work gives the same bits. Arrays are dense
// and row-major unless a stride is named. Sources: the stage's kernel header.
#pragma once

#include <cstdint>
#include <type_traits>

#include "greedy/kernels.h"

namespace ocvtp {

// Half precision, of which the kernels know bits alone.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The dtype that elements are summed in.
template <class E>
struct Widened {
  using Type = E;
};
template <>
struct Widened<Float16> {
  using Type = float;
};
template <>
struct Widened<BFloat16> {
  using Type = float;
};
template <class E>
using Wide = typename Widened<E>::Type;

// Part: rows. out = (x - mean) / sqrt(variance + eps).
template <class E>
struct LayerNorm {
  const E* x;  // [rows, width], rows `stride` apart
  int64_t stride, width;
  Wide<E> eps;
  E* out;  // [rows, width]
};

// Part: rows. normed = layer_norm(x), or, where y is given, of sum = x + y. A row's statistics are
// its mean, its deviation and the dot product of normed and weight.
template <class T>
struct NormSlots {
  const T *x, *y;   // [rows, width]; y may be null
  const T* weight;  // [width]
  int64_t width;
  T eps;
  T *sum, *normed;  // [rows, width]; sum with y only
  T* statistics;    // [rows, 3]
};

// Part: rows. x = gelu(x + bias).
template <class T>
struct BiasGelu {
  T* x;  // [rows, width]
  const T* bias;
  int64_t width;
};

// Part: blocks of tokens of images (`token_blocks` an image). Dot products become the attention,
// the softmax over slots of scale * x + constant, -inf where masked.
template <class E>
struct SlotSoftmax {
  E* x;                     // [B, K, N]
  const Wide<E>* constant;  // [B, K] or null
  const bool* mask;         // [B, K] or null
  int64_t slots, tokens;
  Wide<E> scale;
  Wide<E>* scratch;  // softmax_scratch elements, one thread's own
};

// Part: rows. mass = sum of a row.
template <class E>
struct SlotMass {
  const E* attention;  // [rows, tokens]
  int64_t tokens;
  Wide<E>* mass;  // [rows]
};

// Part: rows. out = x / (mass + eps); dot, where wanted, is sum(out * y).
template <class E>
struct PerMass {
  const E* x;           // [rows, width]
  const E* y;           // [rows, width] or null
  const Wide<E>* mass;  // [rows]
  int64_t width;
  Wide<E> eps;
  E* out;        // [rows, width]
  Wide<E>* dot;  // [rows] or null
};

// Part: blocks of tokens of images. grad, the gradient of A / (mass + eps) by v's side, becomes the
// gradient of the dot products: scale * A * (g - sum_k A g), g = grad - delta + grad_mass + given.
template <class E>
struct SlotSoftmaxBackward {
  const E* attention;        // [B, K, N]
  const Wide<E>* delta;      // [B, K]
  const Wide<E>* grad_mass;  // [B, K]
  const E* given;            // [B, K, N] or null
  int64_t slots, tokens;
  Wide<E> scale;
  E* grad;  // [B, K, N]
};

// Part: rows. The gates of the GRU, and, where wanted, the layer_norm of the new state. Row r has
// the state number r % states. With statistics h_gates are of layer_norm(h), those of h being
// deviation * h_gates + mean * sums + bias.
template <class T>
struct GruGates {
  const T* x_gates;  // [rows, 3 * width]
  const T* h_gates;  // [states, 3 * width], rows `stride` apart
  const T* h;        // [states, width]
  int64_t states, stride;
  const T* shift;        // [3 * width] or null: x_gates + mass / (mass + eps) * shift
  const T* mass;         // [rows]
  const T* statistics;   // [states, 3], as NormSlots has them, or null
  const T *sums, *bias;  // [3 * width]
  int64_t width;
  T eps, norm_eps;
  T* state;   // [rows, width]
  T* normed;  // [rows, width] or null
};

// Parts: for slot_scores blocks of tokens of images, then for slot_best rows of [B, K]. Dot
// products become log-attention: (x - top) - rest with x = scale * x + constant.
template <class T>
struct SlotArgmax {
  T* x;               // [B, K, N]; holds the scores, NaN as -inf, after slot_scores without `best`
  const T* constant;  // [B, K] or null
  int64_t slots, tokens, top_k;
  T scale;
  T *top, *rest;   // [B, N] scratch
  T* best;         // [B, K, token blocks] scratch for one pick a slot, else null
  T* evidence;     // [B, N] or null: each token's largest score
  int64_t* picks;  // [B, K, top_k]
  T* peak;         // [B, K]
};

// Part: blocks of tokens of images. A token's largest attention, and the first slot that has it.
template <class T>
struct SlotOwners {
  const T* attention;  // [B, K, N]
  int64_t slots, tokens;
  T* share;        // [B, N]
  int64_t* owner;  // [B, N]
};

// Part: blocks of queries of heads of images. Each key's sum of softmax(scale * q k^T).
template <class E>
struct AttentionReceived {
  const E *q, *k;  // [B, H, M, d], [B, H, N, d]
  int64_t q_strides[3], k_strides[3];
  int64_t heads, queries, keys, width;
  Wide<E> scale;
  Wide<E>* scratch;   // attention_scratch elements, one thread's own
  Wide<E>* received;  // [B, H, query blocks, N]
};

// Part: blocks of tokens of images. mean = sum of parts / rows.
template <class T>
struct AttentionMean {
  const T* received;  // [B, parts, N]
  int64_t parts, keys, rows;
  T* mean;  // [B, N]
};

template <class T>
struct Kernels {
  void (*layer_norm)(const LayerNorm<T>&, int64_t begin, int64_t end);
  void (*norm_slots)(const NormSlots<T>&, int64_t begin, int64_t end);
  void (*bias_gelu)(const BiasGelu<T>&, int64_t begin, int64_t end);
  void (*slot_softmax)(const SlotSoftmax<T>&, int64_t begin, int64_t end);
  void (*slot_mass)(const SlotMass<T>&, int64_t begin, int64_t end);
  void (*per_mass)(const PerMass<T>&, int64_t begin, int64_t end);
  void (*slot_softmax_backward)(const SlotSoftmaxBackward<T>&, int64_t begin, int64_t end);
  void (*gru_gates)(const GruGates<T>&, int64_t begin, int64_t end);
  void (*slot_scores)(const SlotArgmax<T>&, int64_t begin, int64_t end);
  void (*slot_best)(const SlotArgmax<T>&, int64_t begin, int64_t end);
  void (*slot_owners)(const SlotOwners<T>&, int64_t begin, int64_t end);
  void (*attention_received)(const AttentionReceived<T>&, int64_t begin, int64_t end);
  void (*attention_mean)(const AttentionMean<T>&, int64_t begin, int64_t end);
  void (*merge_lists)(const ScatterMerge<T>&, int64_t begin, int64_t end);
  void (*merge_sums)(const ScatterMerge<T>&, int64_t begin, int64_t end);
  const GreedyKernels<T>* greedy;
};

// What reads half precision as it is; for the other kernels it is made float first.
template <class E>
struct HalfKernels {
  void (*attention_received)(const AttentionReceived<E>&, int64_t begin, int64_t end);
};
template <>
struct Kernels<Float16> : HalfKernels<Float16> {};
// What lies between products of bfloat16 writes it too.
template <>
struct Kernels<BFloat16> : HalfKernels<BFloat16> {
  void (*layer_norm)(const LayerNorm<BFloat16>&, int64_t begin, int64_t end);
  void (*slot_softmax)(const SlotSoftmax<BFloat16>&, int64_t begin, int64_t end);
  void (*slot_mass)(const SlotMass<BFloat16>&, int64_t begin, int64_t end);
  void (*per_mass)(const PerMass<BFloat16>&, int64_t begin, int64_t end);
  void (*slot_softmax_backward)(const SlotSoftmaxBackward<BFloat16>&, int64_t begin, int64_t end);
};

// Tokens in a block of SlotSoftmax and the like: a block's column of K slots stays in cache.
inline constexpr int64_t token_block = 64;
inline int64_t token_blocks(int64_t tokens) { return (tokens + token_block - 1) / token_block; }

// Room for a block's logits where they are not as wide as what SlotSoftmax makes of them.
template <class E>
inline int64_t softmax_scratch(int64_t slots) {
  return std::is_same_v<E, Wide<E>> ? 0 : slots * token_block;
}

// Room for a row of tokens in whole vectors, of any dtype.
inline int64_t whole_vectors(int64_t tokens) { return (tokens + 15) / 16 * 16; }

// Queries in a block of AttentionReceived, and the most that a tile of its logits spans.
inline constexpr int64_t query_block = 128, attention_rows = 8, attention_columns = 48;
inline int64_t query_blocks(int64_t queries) { return (queries + query_block - 1) / query_block; }

// Room for a tile's logits, its queries and, of more queries than one, packed keys, in whole cache
// lines.
inline int64_t attention_scratch(int64_t queries, int64_t keys, int64_t width) {
  const int64_t rows = attention_rows + (queries > 1 ? width : 0);
  return ((keys + attention_columns) * rows + attention_rows * width + 15) / 16 * 16;
}

struct Isa {
  const char* name;
  const Kernels<float>* single;
  const Kernels<double>* wide;
  const Kernels<Float16>* half;
  const Kernels<BFloat16>* bfloat16;
};

// The widest instruction set of this CPU, or the one that `use_isa` named.
const Isa& isa();

// False where this CPU or this build lacks it.
bool use_isa(const char* name);

template <class E>
inline const Kernels<E>& kernels() {
  if constexpr (std::is_same_v<E, Float16>)
    return *isa().half;
  else if constexpr (std::is_same_v<E, BFloat16>)
    return *isa().bfloat16;
  else if constexpr (sizeof(E) == sizeof(float))
    return *isa().single;
  else
    return *isa().wide;
}

}  // namespace ocvtp
