// The CPU kernels of bfloat16 alone, for an instruction set that multiplies it.
#include "bfloat16.h"

namespace ocvtp::OCVTP_ISA {

const Kernels<BFloat16>* bfloat16() { return &bfloat16_table; }

}  // namespace ocvtp::OCVTP_ISA
