// Which of the instruction sets that the kernels were compiled for this CPU runs.
#include <cstring>

#include "common/kernels.h"

#define OCVTP_DECLARE(name)       \
  namespace ocvtp::name {         \
  const Kernels<float>* single(); \
  const Kernels<double>* wide();  \
  }

OCVTP_DECLARE(portable)
#ifdef OCVTP_X86
OCVTP_DECLARE(avx2)
OCVTP_DECLARE(avx512)
#endif

namespace ocvtp {
namespace {

struct Candidate {
  Isa isa;
  bool (*supported)();
};

// Best first.
const Candidate candidates[] = {
#ifdef OCVTP_X86
    {{"avx512", avx512::single(), avx512::wide()},
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     }},
    {{"avx2", avx2::single(), avx2::wide()},
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {{"portable", portable::single(), portable::wide()}, [] { return true; }},
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
