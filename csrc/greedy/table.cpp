// Every greedy selection for one instruction set, OCVTP_ISA: compiled once for each.
#include "greedy/table.h"

#include "greedy/centrifugal.h"
#include "greedy/dpp.h"
#include "greedy/facility.h"
#include "greedy/farthest.h"
#include "greedy/match.h"
#include "greedy/pivot.h"
#include "greedy/variance.h"

namespace ocvtp::OCVTP_ISA {

template <class T>
const GreedyKernels<T> GreedyTable<T>::kernels = {
    farthest_nearest<T>, farthest_select<T>, pivot_norms<T>,        pivot_pick<T>,
    pivot_distances<T>,  dpp_pick<T>,        dpp_explain<T>,        facility_gains<T>,
    facility_select<T>,  match_select<T>,    centrifugal_select<T>, channel_variance<T>,
};

template struct GreedyTable<float>;
template struct GreedyTable<double>;

}  // namespace ocvtp::OCVTP_ISA
