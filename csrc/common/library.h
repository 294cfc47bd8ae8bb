// Where the ops register: torch.ops.ocvtp_native, the CUDA bindings under the key CUDA. Compiled
// for the emulator they are CPU ops of another namespace, so that both can be loaded at once.
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef OCVTP_EMULATED
#define OCVTP_NAMESPACE ocvtp_emulated
#define OCVTP_CUDA_KEY CPU
#else
#define OCVTP_NAMESPACE ocvtp_native
#define OCVTP_CUDA_KEY CUDA
#endif

// Schemas of that namespace; before torch 2.13 the macro takes its name as it is written.
#define OCVTP_EXPANDED_LIBRARY(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)
#define OCVTP_LIBRARY(m) OCVTP_EXPANDED_LIBRARY(OCVTP_NAMESPACE, m)
