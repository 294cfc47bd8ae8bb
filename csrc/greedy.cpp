// The CPU kernels that round as PyTorch does, so that their ties are its ties: compiled once for
// each instruction set, without fused multiply-adds.
#include "bipartite_merge/bipartite_merge.h"
#include "centrifugal_select/centrifugal_select.h"
#include "channel_variance/channel_variance.h"
#include "dpp_select/dpp_select.h"
#include "facility_select/facility_select.h"
#include "farthest_select/farthest_select.h"
#include "match_select/match_select.h"
#include "mmr_select/mmr_select.h"
#include "pivot_select/pivot_select.h"
