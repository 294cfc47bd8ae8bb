// Which of the instruction sets that the kernels were compiled for this CPU runs.
#include <cstring>

#include "common/kernels.h"

#define OCVTP_DECLARE(name)            \
  namespace ocvtp::name {              \
  const Kernels<float>* single();      \
  const Kernels<double>* wide();       \
  const Kernels<Float16>* half();      \
  const Kernels<BFloat16>* bfloat16(); \
  }

#define OCVTP_ISA_OF(name) {#name, name::single(), name::wide(), name::half(), name::bfloat16()}

OCVTP_DECLARE(portable)
#ifdef OCVTP_X86
OCVTP_DECLARE(avx2)
OCVTP_DECLARE(avx512)
#endif
#ifdef OCVTP_BF16
OCVTP_DECLARE(avx512_bf16)
#endif

namespace ocvtp {
namespace {

struct Candidate {
  Isa isa;
  bool (*supported)();
};

#ifdef OCVTP_X86
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

// Best first.
const Candidate candidates[] = {
#ifdef OCVTP_BF16
    {{"avx512_bf16", avx512::single(), avx512::wide(), avx512::half(), avx512_bf16::bfloat16()},
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
#endif
#ifdef OCVTP_X86
    {OCVTP_ISA_OF(avx512), has_avx512},
    {OCVTP_ISA_OF(avx2),
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {OCVTP_ISA_OF(portable), [] { return true; }},
};

const Isa* widest() {
  for (const Candidate& candidate : candidates)
    if (candidate.supported()) return &candidate.isa;
  return nullptr;
}

const Isa*& chosen() {
  static const Isa* isa = widest();
  return isa;
}

}  // namespace

const Isa& isa() { return *chosen(); }

bool use_isa(const char* name) {
  for (const Candidate& candidate : candidates)
    if (std::strcmp(candidate.isa.name, name) == 0 && candidate.supported()) {
      chosen() = &candidate.isa;
      return true;
    }
  return false;
}

}  // namespace ocvtp
