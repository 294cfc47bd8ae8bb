// What every CPU kernel is made of: the dtypes it reads, and how a binding reaches the one that was
// compiled for this CPU. A kernel takes its arguments as a struct, reads and writes dense row-major
// arrays unless a stride is named, knows nothing of torch or threads, and does the part [begin,
// end) of its work: any division of the work gives the same bits.
//
// A kernel's header has its arguments in ocvtp, its code in ocvtp::OCVTP_ISA and, at its end,
// OCVTP_KERNEL(name, Arguments). Where CMake names an instruction set as OCVTP_ISA that compiles
// the code; everywhere else it makes ocvtp::kernels::name<T>, which calls what was compiled.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace ocvtp {

// Half precision, as bits.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The dtype that elements are summed in.
template <class E>
struct Accumulated {
  using Type = E;
};
template <>
struct Accumulated<Float16> {
  using Type = float;
};
template <>
struct Accumulated<BFloat16> {
  using Type = float;
};
template <class E>
using Acc = typename Accumulated<E>::Type;

// Rows of images, [B, N, width], of unit stride within a row: matrices, points, tokens.
template <class T>
struct Rows {
  const T* x;
  int64_t image_stride, row_stride;
  const T* at(int64_t image, int64_t row) const {
    return x + image * image_stride + row * row_stride;
  }
};

enum class Isa { portable, avx2, avx512, avx512_bf16 };

// The widest instruction set of this CPU, or the one that `use_isa` named.
Isa isa();
const char* isa_name();

// False where this CPU or this build lacks it.
bool use_isa(const std::string& name);

}  // namespace ocvtp

#ifdef OCVTP_ISA

#define OCVTP_INSTANTIATE(name, Arguments, E) \
  template void ocvtp::OCVTP_ISA::name<E>(const ocvtp::Arguments<E>&, int64_t, int64_t);
#ifdef OCVTP_BFLOAT16_ONLY
#define OCVTP_KERNEL(name, Arguments)
#define OCVTP_KERNEL_OF_FLOAT16(name, Arguments)
#define OCVTP_KERNEL_OF_BFLOAT16(name, Arguments) \
  OCVTP_INSTANTIATE(name, Arguments, ocvtp::BFloat16)
#else
#define OCVTP_KERNEL(name, Arguments)       \
  OCVTP_INSTANTIATE(name, Arguments, float) \
  OCVTP_INSTANTIATE(name, Arguments, double)
#define OCVTP_KERNEL_OF_FLOAT16(name, Arguments) OCVTP_INSTANTIATE(name, Arguments, ocvtp::Float16)
#define OCVTP_KERNEL_OF_BFLOAT16(name, Arguments)
#endif

#else

// The code is parsed here, and never compiled.
#define OCVTP_ISA not_compiled
#define OCVTP_KERNEL_OF_FLOAT16(name, Arguments)
#define OCVTP_KERNEL_OF_BFLOAT16(name, Arguments)

#ifdef OCVTP_X86
#define OCVTP_IF_X86(...) __VA_ARGS__
#else
#define OCVTP_IF_X86(...)
#endif
#ifdef OCVTP_AVX512_BF16
#define OCVTP_IF_AVX512_BF16(...) __VA_ARGS__
#else
#define OCVTP_IF_AVX512_BF16(...)
#endif

#define OCVTP_DECLARE(isa, name, Arguments)         \
  namespace ocvtp::isa {                            \
  template <class E>                                \
  void name(const Arguments<E>&, int64_t, int64_t); \
  }
// avx512_bf16 has kernels of bfloat16 alone; for the other dtypes it is avx512.
#define OCVTP_KERNEL(name, Arguments)                                          \
  OCVTP_DECLARE(portable, name, Arguments)                                     \
  OCVTP_DECLARE(avx2, name, Arguments)                                         \
  OCVTP_DECLARE(avx512, name, Arguments)                                       \
  OCVTP_DECLARE(avx512_bf16, name, Arguments)                                  \
  namespace ocvtp::kernels {                                                   \
  template <class E>                                                           \
  void name(const Arguments<E>& a, int64_t begin, int64_t end) {               \
    OCVTP_IF_AVX512_BF16(if constexpr (std::is_same_v<E, BFloat16>) {          \
      if (isa() == Isa::avx512_bf16) return avx512_bf16::name(a, begin, end);  \
    })                                                                         \
    OCVTP_IF_X86(if (isa() >= Isa::avx512) return avx512::name(a, begin, end); \
                 if (isa() == Isa::avx2) return avx2::name(a, begin, end);)    \
    portable::name(a, begin, end);                                             \
  }                                                                            \
  }

#endif
