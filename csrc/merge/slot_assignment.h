// Each token's slot in a hard assignment (ocvtp_kernels/ops/argmax_gather::merge_weights):
// that of its largest attention, ties to the lowest slot; NaN is larger than all else.
#pragma once

#include <limits>

#include "common/blocks.h"
#include "common/maths.h"

namespace ocvtp {

// Part: blocks of tokens of images. A token's largest attention, and the first slot that has it.
template <class T>
struct SlotAssignment {
  const T* attention;  // [B, K, N]
  int64_t slots, tokens;
  T* weight;            // [B, N]
  int64_t* assignment;  // [B, N]
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void slot_assignment(const SlotAssignment<T>& a, int64_t begin, int64_t end) {
  const auto is_larger = [](Part<T> x, Part<T> top) {
    return (x > top) | ((x != x) & (top == top));
  };
  for_each_block(a.tokens, begin, end, [&](int64_t image, int64_t first, int64_t count) {
    const T* block = a.attention + image * a.slots * a.tokens + first;
    const int64_t token = image * a.tokens + first;
    for_each_vector<T>(count, [&](int64_t at, int64_t lanes) {
      Vector<T> top = splat(-std::numeric_limits<T>::infinity()), argmax = splat(T(0));
      for (int64_t slot = 0; slot < a.slots; ++slot) {
        const Vector<T> x = load_lanes(block + slot * a.tokens + at, lanes);
        argmax = by_parts<T>(
            [&](Part<T> x, Part<T> top, Part<T> old) -> Part<T> {
              return is_larger(x, top) ? parts::splat(T(slot)) : old;
            },
            x, top, argmax);
        top = by_parts<T>(
            [&](Part<T> x, Part<T> top) -> Part<T> { return is_larger(x, top) ? x : top; }, x, top);
      }
      T slots_of[width<T>];
      store(slots_of, argmax);
      store_lanes<T>(a.weight + token + at, top, lanes);
      for (int64_t i = 0; i < lanes; ++i)
        a.assignment[token + at + i] = static_cast<int64_t>(slots_of[i]);
    });
  });
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(slot_assignment, SlotAssignment)
