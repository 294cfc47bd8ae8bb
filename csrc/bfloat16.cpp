// The CPU kernels of bfloat16 alone, for an instruction set that multiplies it.
#include "importance/attention_received.h"

namespace ocvtp::OCVTP_ISA {

const Kernels<BFloat16>* bfloat16() {
  static const Kernels<BFloat16> table = {{attention_received<BFloat16>}};
  return &table;
}

}  // namespace ocvtp::OCVTP_ISA
