// The CPU kernels of bfloat16: compiled once for each instruction set, and for one more, which
// multiplies it. Compiled among the others they would leave the compiler less room to inline those.
#define OCVTP_BFLOAT16_ONLY

#include "attention_from_rows/attention_from_rows.h"
#include "prune/layer_norm.h"
#include "slot_attention/slot_attention.h"
