// Slot attention between its two products: softmax over slots of each token, forward and backward
// (ocvtp_kernels/ops/slot_attention, gradients.py). Lanes are tokens, so the slots of a token are
// summed in order.
#pragma once

#include <limits>

#include "common/blocks.h"
#include "common/half.h"
#include "common/maths.h"
#include "common/row_norm.h"

namespace ocvtp {

// Part: blocks of tokens of images (`token_blocks` an image). Dot products become the attention,
// the softmax over slots of scale * x + constant, -inf where masked.
template <class E>
struct SlotSoftmax {
  E* x;                    // [B, K, N]
  const Acc<E>* constant;  // [B, K] or null
  const bool* mask;        // [B, K] or null
  int64_t slots, tokens;
  Acc<E> scale;
  Acc<E>* scratch;  // softmax_scratch elements, one thread's own
};

// Elements for the logits of a block where their dtype is not that of x.
template <class E>
inline int64_t softmax_scratch(int64_t slots) {
  return std::is_same_v<E, Acc<E>> ? 0 : slots * token_block;
}

// Part: rows. mass = sum of a row.
template <class E>
struct SlotMass {
  const E* attention;  // [rows, tokens]
  int64_t tokens;
  Acc<E>* mass;  // [rows]
};

// Part: rows. out = x / (mass + eps); dot, where wanted, is sum(out * y).
template <class E>
struct PerMass {
  const E* x;          // [rows, width]
  const E* y;          // [rows, width] or null
  const Acc<E>* mass;  // [rows]
  int64_t width;
  Acc<E> eps;
  E* out;       // [rows, width]
  Acc<E>* dot;  // [rows] or null
};

// Part: blocks of tokens of images. grad, the gradient of A / (mass + eps) by v's side, becomes the
// gradient of the dot products: scale * A * (g - sum_k A g), g = grad - delta + grad_mass + given.
template <class E>
struct SlotSoftmaxBackward {
  const E* attention;       // [B, K, N]
  const Acc<E>* delta;      // [B, K]
  const Acc<E>* grad_mass;  // [B, K]
  const E* given;           // [B, K, N] or null
  int64_t slots, tokens;
  Acc<E> scale;
  E* grad;  // [B, K, N]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class E>
void slot_softmax(const SlotSoftmax<E>& a, int64_t begin, int64_t end) {
  using T = Acc<E>;
  constexpr bool in_place = std::is_same_v<E, T>;
  const T none = -std::numeric_limits<T>::infinity();
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    E* block = a.x + image * a.slots * a.tokens + first;
    // Rounded to E once, at the end.
    const auto acc_row = [&](int64_t slot) {
      if constexpr (in_place)
        return block + slot * a.tokens;
      else
        return a.scratch + slot * token_block;
    };
    const T* constant = a.constant ? a.constant + image * a.slots : nullptr;
    const bool* mask = a.mask ? a.mask + image * a.slots : nullptr;
    T top[token_block], total[token_block];
    for (int64_t i = 0; i < token_block; ++i) top[i] = none, total[i] = T(0);
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const E* given = block + slot * a.tokens;
      T* row = acc_row(slot);
      const bool unmasked = !mask || mask[slot];
      const T shift = constant ? constant[slot] : T(0);
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> x = unmasked ? load_acc(given + at, lanes) * a.scale + shift : splat(none);
        store_lanes<T>(row + at, x, lanes);
        store<T>(top + at, larger<T>(x, load(top + at)));
      });
    }
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      T* row = acc_row(slot);
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> weight = decay<T>(load_lanes(row + at, lanes) - load(top + at));
        store_lanes<T>(row + at, weight, lanes);
        store<T>(total + at, load(total + at) + weight);
      });
    }
    for (int64_t i = 0; i < count; ++i) total[i] = T(1) / total[i];
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const T* row = acc_row(slot);
      E* weights = block + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        store_acc(weights + at, load_lanes(row + at, lanes) * load(total + at), lanes);
      });
    }
  });
}

template <class E>
void slot_mass(const SlotMass<E>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    a.mass[row] = row_sum(a.attention + row * a.tokens, a.tokens);
}

template <class E>
void per_mass(const PerMass<E>& a, int64_t begin, int64_t end) {
  using T = Acc<E>;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * a.width;
    // Not times its inverse, which is infinite where both are next to nothing.
    const T divisor = a.mass[row] + a.eps;
    Vector<T> dot{};
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      const Vector<T> x = load_acc(a.x + start + at, lanes) / divisor;
      store_acc(a.out + start + at, x, lanes);
      if (a.y) dot += x * load_acc(a.y + start + at, lanes);
    });
    if (a.dot) a.dot[row] = sum_lanes<T>(dot);
  }
}

template <class E>
void slot_softmax_backward(const SlotSoftmaxBackward<E>& a, int64_t begin, int64_t end) {
  using T = Acc<E>;
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    // The gradient of the attention, computed twice: stored, it would be rounded to E.
    const auto weight_grad = [&](int64_t slot, int64_t index, int64_t lanes) {
      const T shift = a.grad_mass[image * a.slots + slot] - a.delta[image * a.slots + slot];
      const Vector<T> grad = load_acc(a.grad + index, lanes) + shift;
      return a.given ? grad + load_acc(a.given + index, lanes) : grad;
    };
    const int64_t start = image * a.slots * a.tokens + first;
    T shared[token_block] = {};
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const int64_t row = start + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> grad = weight_grad(slot, row + at, lanes);
        const Vector<T> weight = load_acc(a.attention + row + at, lanes) * grad;
        store<T>(shared + at, load(shared + at) + weight);
      });
    }
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const int64_t row = start + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> grad = weight_grad(slot, row + at, lanes) - load(shared + at);
        const Vector<T> weight = load_acc(a.attention + row + at, lanes) * a.scale;
        store_acc(a.grad + row + at, weight * grad, lanes);
      });
    }
  });
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(slot_softmax, SlotSoftmax)
OCVTP_KERNEL(slot_mass, SlotMass)
OCVTP_KERNEL(per_mass, PerMass)
OCVTP_KERNEL(slot_softmax_backward, SlotSoftmaxBackward)
OCVTP_KERNEL_OF_BFLOAT16(slot_softmax, SlotSoftmax)
OCVTP_KERNEL_OF_BFLOAT16(slot_mass, SlotMass)
OCVTP_KERNEL_OF_BFLOAT16(per_mass, PerMass)
OCVTP_KERNEL_OF_BFLOAT16(slot_softmax_backward, SlotSoftmaxBackward)
