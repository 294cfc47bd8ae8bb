// The CPU kernels that read and write bfloat16, for one instruction set.
#pragma once

#include "encode/layer_norm.h"
#include "importance/attention_received.h"
#include "slots/slot_softmax.h"

namespace ocvtp::OCVTP_ISA {

static const Kernels<BFloat16> bfloat16_table = {
    {attention_received<BFloat16>},
    layer_norm<BFloat16>,
    slot_softmax<BFloat16>,
    slot_mass<BFloat16>,
    per_mass<BFloat16>,
    slot_softmax_backward<BFloat16>,
};

}  // namespace ocvtp::OCVTP_ISA
