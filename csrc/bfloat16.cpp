// The CPU kernels of bfloat16 for one instruction set: compiled once for each, and for one more,
// which multiplies it. Beside the others they would take from what the compiler inlines there.
#include "encode/layer_norm.h"
#include "importance/attention_received.h"
#include "slots/slot_softmax.h"

namespace ocvtp::OCVTP_ISA {

static const Kernels<BFloat16> table = {
    {attention_received<BFloat16>},
    layer_norm<BFloat16>,
    slot_softmax<BFloat16>,
    slot_mass<BFloat16>,
    per_mass<BFloat16>,
    slot_softmax_backward<BFloat16>,
};

const Kernels<BFloat16>* bfloat16() { return &table; }

}  // namespace ocvtp::OCVTP_ISA
