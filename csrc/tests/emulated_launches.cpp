// torch.ops.ocvtp_emulator.launches(): how many kernels the emulator has launched so far.
#include <torch/csrc/stable/library.h>

#include "common/device.cuh"

namespace ocvtp {
namespace {

int64_t launches() { return emulator::launches; }

STABLE_TORCH_LIBRARY(ocvtp_emulator, m) { m.def("launches() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(ocvtp_emulator, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&launches));
}

}  // namespace
}  // namespace ocvtp
