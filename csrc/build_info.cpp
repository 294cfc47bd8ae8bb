// What the native objects were built with, and what this CPU can run, without needing torch. The
// strings come from CMakeLists.txt; the date is left out so that the same sources give the same
// binary.
#include <Python.h>

namespace {

// The features this compiler can ask for (none off x86); a missing key means "cannot tell".
PyObject* cpu_capability(PyObject*, PyObject*) {
  PyObject* supported = PyDict_New();
#define OCVTP_FEATURE(name)                                                                       \
  if (supported != nullptr &&                                                                     \
      PyDict_SetItemString(supported, name, __builtin_cpu_supports(name) ? Py_True : Py_False) != \
          0) {                                                                                    \
    Py_CLEAR(supported);                                                                          \
  }
  OCVTP_CPU_FEATURES
#undef OCVTP_FEATURE
  return supported;
}

PyMethodDef methods[] = {
    {"cpu_capability", cpu_capability, METH_NOARGS,
     "Instruction sets this CPU and its system can run."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_build_info",
                          "Facts about the native build, read by ocvtp_kernels.native.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__build_info() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  const bool added =
      PyModule_AddStringConstant(module, "compiler", OCVTP_COMPILER) == 0 &&
      PyModule_AddIntConstant(module, "cxx_standard", static_cast<long>(__cplusplus)) == 0 &&
      PyModule_AddStringConstant(module, "build_type", OCVTP_BUILD_TYPE) == 0 &&
      PyModule_AddStringConstant(module, "flags", OCVTP_FLAGS) == 0 &&
      PyModule_AddStringConstant(module, "architecture", OCVTP_ARCHITECTURE) == 0 &&
      PyModule_AddStringConstant(module, "cuda_architectures", OCVTP_CUDA_ARCHITECTURES) == 0 &&
      PyModule_AddStringConstant(module, "why_no_cuda", OCVTP_WHY_NO_CUDA) == 0;
  if (!added) Py_CLEAR(module);
  return module;
}
