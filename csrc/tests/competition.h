// Random slots and tokens for the tests of the slot kernels, and the competition in double.
#pragma once

#include <algorithm>

#include "check.h"
#include "slots/logits.cuh"

namespace ocvtp::test {

// Launches on the emulator.
struct Emulated {
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64 blocks, int threads, int shared_bytes,
                  Arguments... arguments) const {
    emulate(dim3(static_cast<unsigned>(blocks)), dim3(threads), shared_bytes,
            [&] { kernel(arguments...); });
  }
};

struct Sizes {
  int batch, slots, tokens, depth, width;
  bool constant, mask;
  int outlier;  // every how many channels one is 80 times the rest; 0: none
};

// [batch, count, width] with gaps of NaN after images and rows; rows are filled up with zeros to 16
// bytes, as the bindings do.
template <class T>
struct Padded {
  int64 row_stride, image_stride;
  std::vector<T> x;

  Padded(Random& random, int batch, int count, int width, int outlier)
      : row_stride((width + 15) / 8 * 8), image_stride((count + 2) * row_stride) {
    x = random_rows<T>(random, batch * (count + 2), width, static_cast<int>(row_stride), 0.0,
                       outlier);
    constexpr int kPack = 16 / sizeof(T);
    for (int row = 0; row < batch * (count + 2); ++row)
      std::fill_n(x.begin() + row * row_stride + width, (kPack - width % kPack) % kPack,
                  from_float<T>(0.0f));
    for (int image = 0; image < batch; ++image)
      std::fill_n(x.begin() + image * image_stride + count * row_stride, 2 * row_stride,
                  from_float<T>(static_cast<float>(kNaN)));
  }
  double at(int image, int row, int column) const {
    return value(x[image * image_stride + row * row_stride + column]);
  }
  Rows<T> rows(int first_image) const {
    return {x.data() + first_image * image_stride, image_stride, row_stride};
  }
};

constexpr int kConstantStride = 3;  // with NaN between the slots' constants

template <class T>
struct Slots {
  Sizes in;
  Random random;
  Padded<T> q, k;
  std::vector<float> constant;
  std::vector<unsigned char> mask;
  float scale;

  explicit Slots(const Sizes& sizes)
      : in(sizes),
        random(sizes.slots * 131 + sizes.tokens * 17 + sizes.depth + sizes.batch),
        q(random, in.batch, in.slots, in.depth, in.outlier),
        k(random, in.batch, in.tokens, in.depth, in.outlier),
        scale(static_cast<float>(1.0 / std::sqrt(in.depth))) {
    constant.assign(in.batch * in.slots * kConstantStride, NAN);
    for (int i = 0; i < in.batch * in.slots; ++i) {
      constant[i * kConstantStride] = static_cast<float>(random.normal());
      mask.push_back(i % in.slots == in.slots / 2 || random.below(3) != 0);
    }
  }

  // The images from the first_image-th on.
  Competition<T> competition(int first_image = 0) const {
    const int first = first_image * in.slots;
    return {q.rows(first_image),
            k.rows(first_image),
            {in.constant ? constant.data() + first * kConstantStride : nullptr,
             in.slots * kConstantStride, kConstantStride},
            in.mask ? reinterpret_cast<const bool*>(mask.data()) + first : nullptr,
            in.slots,
            in.tokens,
            in.depth,
            scale};
  }

  bool live(int image, int slot) const { return !in.mask || mask[image * in.slots + slot] != 0; }

  // Logits [K, N] of an image; `error` grows to the most that float32 sums can be off by.
  std::vector<double> logits(int image, double& error) const {
    std::vector<double> x(in.slots * in.tokens, -kInfinity);
    for (int slot = 0; slot < in.slots; ++slot)
      for (int token = 0; token < in.tokens && live(image, slot); ++token) {
        const double added =
            in.constant ? constant[(image * in.slots + slot) * kConstantStride] : 0.0;
        double dot = 0.0, size = 0.0;
        for (int i = 0; i < in.depth; ++i) {
          const double term = q.at(image, slot, i) * k.at(image, token, i);
          dot += term;
          size += std::abs(term);
        }
        x[slot * in.tokens + token] = dot * scale + added;
        // Sums of random signs lose far less than depth roundings.
        error = std::max(error, (size * scale + std::abs(added)) * 0x1p-22 + 0x1p-21);
      }
    return x;
  }

  // Log-attention [K, N] from logits: (x - m) - log1p(sum of exp(x - m) over the others).
  std::vector<double> log_attention(std::vector<double> x) const {
    for (int token = 0; token < in.tokens; ++token) {
      int leader = 0;
      for (int slot = 1; slot < in.slots; ++slot)
        if (x[slot * in.tokens + token] > x[leader * in.tokens + token]) leader = slot;
      const double top = x[leader * in.tokens + token];
      double others = 0.0;
      for (int slot = 0; slot < in.slots; ++slot)
        if (slot != leader) others += std::exp(x[slot * in.tokens + token] - top);
      for (int slot = 0; slot < in.slots; ++slot)
        x[slot * in.tokens + token] = x[slot * in.tokens + token] - top - std::log1p(others);
    }
    return x;
  }
};

}  // namespace ocvtp::test
