// The CPU kernels that may fuse multiply-adds, but for those of bfloat16: compiled once for each
// instruction set.
#include "attention_from_rows/attention_from_rows.h"
#include "gru_cell/gru_gates.h"
#include "merge/slot_assignment.h"
#include "prune/bias_gelu.h"
#include "prune/layer_norm.h"
#include "prune/norm_slots.h"
#include "scatter_merge/scatter_merge.h"
#include "slot_argmax/slot_argmax.h"
#include "slot_attention/slot_attention.h"
