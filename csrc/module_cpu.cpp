// Makes _C an importable module. What is linked in here defines torch.ops.ocvtp_native and
// registers its CPU kernels; an op has its schema beside them, in csrc/*/*_schema.cpp where it has
// a CUDA kernel too, else in its *_cpu.cpp. In schemas B are images, N tokens, K slots, T kept
// tokens; tensors are on one device and of one floating dtype unless said; acc is the dtype of
// sums, float64 for float64 and float32 for the others.
#include <Python.h>

#include "common/binding.h"

namespace ocvtp {
namespace {

std::string instruction_set(std::string wanted) {
  if (!wanted.empty() && !use_isa(wanted))
    refuse("wanted", "an instruction set of this CPU and this build", wanted);
  return isa_name();
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // The instruction set that the CPU kernels use; a name given here is used from now on, for
  // tests that compare them. "" asks only.
  m.def("isa(str wanted) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&instruction_set));
}

}  // namespace
}  // namespace ocvtp

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
