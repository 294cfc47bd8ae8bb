// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "resolve_picks/resolve_picks.cuh"

template __global__ void ocvtp::resolve_kernel<false, false>(ocvtp::ResolveArguments);
template __global__ void ocvtp::resolve_kernel<true, false>(ocvtp::ResolveArguments);
template __global__ void ocvtp::resolve_kernel<true, true>(ocvtp::ResolveArguments);
