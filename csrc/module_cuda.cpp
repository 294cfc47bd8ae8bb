// Makes _C_cuda an importable module. The schemas are in _C, which is loaded first; what is linked
// in here registers the CUDA kernels.
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
