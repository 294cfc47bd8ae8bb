// A warp's 16 x 16 x 16 multiply-add, float32 sums: tensor cores for half and bfloat16, FMA for
// float32. `WarpTile<T>` hides which: Left and Right are loaded from shared memory, rows 16-byte
// aligned and tiles 32-byte, and `multiply` adds their product to a Sum.
#pragma once

#include "common/device.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include <mma.h>
#else
#include "tests/emulated_wmma.h"
#endif

namespace ocvtp {

constexpr int kTile = 16;

struct alignas(16) Four {
  float x[4];
};

// Four neighbours as floats.
template <class T>
__device__ __forceinline__ Four load_four(const T* at) {
  Four four;
#pragma unroll
  for (int i = 0; i < 4; ++i) four.x[i] = to_float(at[i]);
  return four;
}
template <>
__device__ __forceinline__ Four load_four<float>(const float* at) {
  return *reinterpret_cast<const Four*>(at);
}

// By FMA, in the order of the depth. A lane holds the columns lane % 4 * 4 ... + 3 of the rows
// lane / 4 and lane / 4 + 8.
template <class T>
struct SimtTile {
  // 16 rows of 16 in depth.
  struct Left {
    const T* at;
    int row;
    __device__ __forceinline__ void load(const T* from, int row_stride) {
      at = from;
      row = row_stride;
    }
  };
  // 16 in depth by 16 columns; TRANSPOSED: stored as 16 columns of 16 in depth.
  template <bool TRANSPOSED>
  struct Right : Left {};

  struct Sum {
    float x[2][4];

    __device__ __forceinline__ void zero() {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i / 4][i % 4] = 0.0f;
    }
    __device__ __forceinline__ void add(const Sum& other) {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i / 4][i % 4] += other.x[i / 4][i % 4];
    }
    __device__ __forceinline__ void store(float* to, int row_stride) const {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Four four = {{x[i][0], x[i][1], x[i][2], x[i][3]}};
        *reinterpret_cast<Four*>(to + offset(i, row_stride)) = four;
      }
    }
  };

  template <bool TRANSPOSED>
  static __device__ __forceinline__ void multiply(Sum& sum, const Left& left,
                                                  const Right<TRANSPOSED>& right) {
#pragma unroll 1
    for (int depth = 0; depth < kTile; depth += 4) {
      Four l[2], r[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) l[i] = load_four(left.at + row_of(i) * left.row + depth);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        r[j] = load_four(TRANSPOSED ? right.at + (place_column() + j) * right.row + depth
                                    : right.at + (depth + j) * right.row + place_column());
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            sum.x[i][j] = fmaf(l[i].x[t], TRANSPOSED ? r[j].x[t] : r[t].x[j], sum.x[i][j]);
    }
  }

 private:
  static __device__ __forceinline__ int row_of(int i) {
    return static_cast<int>(threadIdx.x) % kWarpSize / 4 + 8 * i;
  }
  static __device__ __forceinline__ int place_column() {
    return static_cast<int>(threadIdx.x) % 4 * 4;
  }
  static __device__ __forceinline__ int offset(int i, int row_stride) {
    return row_of(i) * row_stride + place_column();
  }
};

template <bool TRANSPOSED>
struct RightLayout {
  using Type = nvcuda::wmma::row_major;
};
template <>
struct RightLayout<true> {
  using Type = nvcuda::wmma::col_major;
};

template <class T>
struct TensorTile {
  template <class Role, class Layout>
  using Fragment = nvcuda::wmma::fragment<Role, kTile, kTile, kTile, T, Layout>;

  struct Left {
    Fragment<nvcuda::wmma::matrix_a, nvcuda::wmma::row_major> fragment;
    __device__ __forceinline__ void load(const T* from, int row_stride) {
      nvcuda::wmma::load_matrix_sync(fragment, from, row_stride);
    }
  };
  template <bool TRANSPOSED>
  struct Right {
    Fragment<nvcuda::wmma::matrix_b, typename RightLayout<TRANSPOSED>::Type> fragment;
    __device__ __forceinline__ void load(const T* from, int row_stride) {
      nvcuda::wmma::load_matrix_sync(fragment, from, row_stride);
    }
  };

  struct Sum {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kTile, float> fragment;

    __device__ __forceinline__ void zero() { nvcuda::wmma::fill_fragment(fragment, 0.0f); }
    __device__ __forceinline__ void add(const Sum& other) {
#pragma unroll
      for (int i = 0; i < fragment.num_elements; ++i) fragment.x[i] += other.fragment.x[i];
    }
    __device__ __forceinline__ void store(float* to, int row_stride) const {
      nvcuda::wmma::store_matrix_sync(to, fragment, row_stride, nvcuda::wmma::mem_row_major);
    }
  };

  template <bool TRANSPOSED>
  static __device__ __forceinline__ void multiply(Sum& sum, const Left& left,
                                                  const Right<TRANSPOSED>& right) {
    nvcuda::wmma::mma_sync(sum.fragment, left.fragment, right.fragment, sum.fragment);
  }
};

template <class T>
struct WarpTileOf {
  using Type = SimtTile<T>;
};
template <>
struct WarpTileOf<half> {
  using Type = TensorTile<half>;
};
// A build for several architectures compiles the bfloat16 kernels for the older ones too.
#if OCVTP_BF16 && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
template <>
struct WarpTileOf<bfloat16> {
  using Type = TensorTile<bfloat16>;
};
#endif

template <class T>
using WarpTile = typename WarpTileOf<T>::Type;

}  // namespace ocvtp
