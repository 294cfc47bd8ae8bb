// The competition between the products with keys and with values: softmax over slots of each
// token, forward and backward (ocvtp_kernels/slots/reference.py, gradients.py). A block's tokens
// stand in lanes, so the slots of a token are summed from the first to the last.
#pragma once

#include <limits>

#include "common/kernels.h"
#include "common/maths.h"
#include "encode/layer_norm.h"

namespace ocvtp::OCVTP_ISA {

// Calls body(image, first token, tokens) for each block of tokens in [begin, end).
template <class Body>
inline void for_each_block(int64_t tokens, int64_t begin, int64_t end, const Body& body) {
  const int64_t blocks = token_blocks(tokens);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block % blocks * token_block;
    body(block / blocks, first, tokens - first < token_block ? tokens - first : token_block);
  }
}

template <class T>
void slot_softmax(const SlotSoftmax<T>& a, int64_t begin, int64_t end) {
  const T none = -std::numeric_limits<T>::infinity();
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    T* block = a.x + image * a.slots * a.tokens + first;
    const T* constant = a.constant ? a.constant + image * a.slots : nullptr;
    const bool* mask = a.mask ? a.mask + image * a.slots : nullptr;
    T top[token_block], total[token_block];
    for (int64_t i = 0; i < token_block; ++i) top[i] = none, total[i] = T(0);
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      T* row = block + slot * a.tokens;
      const bool live = !mask || mask[slot];
      const T shift = constant ? constant[slot] : T(0);
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> x = live ? load_lanes(row + at, lanes) * a.scale + shift : splat(none);
        store_lanes<T>(row + at, x, lanes);
        store<T>(top + at, larger<T>(x, load(top + at)));
      });
    }
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      T* row = block + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> share = decay<T>(load_lanes(row + at, lanes) - load(top + at));
        store_lanes<T>(row + at, share, lanes);
        store<T>(total + at, load(total + at) + share);
      });
    }
    for (int64_t i = 0; i < count; ++i) total[i] = T(1) / total[i];
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      T* row = block + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        store_lanes<T>(row + at, load_lanes(row + at, lanes) * load(total + at), lanes);
      });
    }
  });
}

template <class T>
void slot_mass(const SlotMass<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    a.mass[row] = row_sum(a.attention + row * a.tokens, a.tokens);
}

template <class T>
void per_mass(const PerMass<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * a.width;
    const T factor = T(1) / (a.mass[row] + a.eps);
    Vector<T> dot{};
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      const Vector<T> x = load_lanes(a.x + start + at, lanes) * factor;
      store_lanes<T>(a.out + start + at, x, lanes);
      if (a.y) dot += x * load_lanes(a.y + start + at, lanes);
    });
    if (a.dot) a.dot[row] = sum_lanes<T>(dot);
  }
}

template <class T>
void slot_softmax_backward(const SlotSoftmaxBackward<T>& a, int64_t begin, int64_t end) {
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    const int64_t start = image * a.slots * a.tokens + first;
    T shared[token_block] = {};
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const int64_t row = start + slot * a.tokens;
      const T shift = a.grad_mass[image * a.slots + slot] - a.delta[image * a.slots + slot];
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        Vector<T> grad = load_lanes(a.grad + row + at, lanes) + shift;
        if (a.given) grad += load_lanes(a.given + row + at, lanes);
        store_lanes<T>(a.grad + row + at, grad, lanes);
        const Vector<T> share = load_lanes(a.attention + row + at, lanes) * grad;
        store<T>(shared + at, load(shared + at) + share);
      });
    }
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const int64_t row = start + slot * a.tokens;
      for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
        const Vector<T> grad = load_lanes(a.grad + row + at, lanes) - load(shared + at);
        const Vector<T> share = load_lanes(a.attention + row + at, lanes) * a.scale;
        store_lanes<T>(a.grad + row + at, share * grad, lanes);
      });
    }
  });
}

}  // namespace ocvtp::OCVTP_ISA
