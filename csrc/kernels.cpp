// The CPU kernels, but for those of bfloat16, for one instruction set: compiled once for each.
#include "common/kernels.h"

#include "encode/bias_gelu.h"
#include "encode/layer_norm.h"
#include "greedy/merge.h"
#include "greedy/table.h"
#include "importance/attention_received.h"
#include "selection/slot_argmax.h"
#include "selection/slot_owners.h"
#include "slots/gru_gates.h"
#include "slots/norm_slots.h"
#include "slots/slot_softmax.h"

namespace ocvtp::OCVTP_ISA {

template <class T>
static const Kernels<T> table = {
    layer_norm<T>,
    norm_slots<T>,
    bias_gelu<T>,
    slot_softmax<T>,
    slot_mass<T>,
    per_mass<T>,
    slot_softmax_backward<T>,
    gru_gates<T>,
    slot_scores<T>,
    slot_best<T>,
    slot_owners<T>,
    attention_received<T>,
    attention_mean<T>,
    merge_lists<T>,
    merge_sums<T>,
    &GreedyTable<T>::kernels,
};

static const Kernels<Float16> half_table = {{attention_received<Float16>}};

const Kernels<float>* single() { return &table<float>; }
const Kernels<double>* wide() { return &table<double>; }
const Kernels<Float16>* half() { return &half_table; }

}  // namespace ocvtp::OCVTP_ISA
