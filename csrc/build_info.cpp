// What the native objects were built with, and what this CPU can run. The strings come from
// CMakeLists.txt; the date is left out so that the same sources give the same binary.
#include <pybind11/pybind11.h>

namespace py = pybind11;

// The features this compiler can ask for (none off x86); a missing key means "cannot tell".
static py::dict cpu_capability() {
  py::dict supported;
#define OCVTP_FEATURE(name) supported[name] = __builtin_cpu_supports(name) != 0;
  OCVTP_CPU_FEATURES
#undef OCVTP_FEATURE
  return supported;
}

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "Facts about the native build, read by ocvtp_kernels.native.";
  m.attr("compiler") = OCVTP_COMPILER;
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.attr("build_type") = OCVTP_BUILD_TYPE;
  m.attr("flags") = OCVTP_FLAGS;
  m.attr("architecture") = OCVTP_ARCHITECTURE;
  m.attr("cuda_architectures") = py::tuple(py::str(OCVTP_CUDA_ARCHITECTURES).attr("split")());
  m.def("cpu_capability", &cpu_capability, "Instruction sets this CPU and its system can run.");
}
