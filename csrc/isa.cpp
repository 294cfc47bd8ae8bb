// Which of the instruction sets that the kernels were compiled for this CPU runs.
#include "common/kernel.h"

namespace ocvtp {
namespace {

struct Candidate {
  Isa isa;
  const char* name;
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
#ifdef OCVTP_AVX512_BF16
    {Isa::avx512_bf16, "avx512_bf16",
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
#endif
#ifdef OCVTP_X86
    {Isa::avx512, "avx512", has_avx512},
    {Isa::avx2, "avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {Isa::portable, "portable", [] { return true; }},
};

const Candidate* widest() {
  for (const Candidate& candidate : candidates)
    if (candidate.supported()) return &candidate;
  return nullptr;
}

const Candidate*& chosen() {
  static const Candidate* candidate = widest();
  return candidate;
}

}  // namespace

Isa isa() { return chosen()->isa; }

const char* isa_name() { return chosen()->name; }

bool use_isa(const std::string& name) {
  for (const Candidate& candidate : candidates)
    if (candidate.name == name && candidate.supported()) {
      chosen() = &candidate;
      return true;
    }
  return false;
}

}  // namespace ocvtp
