# The GPU architectures that _C_cuda is compiled for: sets `architectures` (8.0 9.0 …) and
# `cmake_architectures` (80-real 90-real …, the newest with PTX for later ones).
set(known 7.0 7.5 8.0 8.6 8.9 9.0 10.0 12.0)

# NVRTC and nvcc of CUDA 13 dropped sm_70; 10.0 and 12.0 came with 12.8.
enable_language(CUDA)
set(architectures ${OCVTP_CUDA_ARCHITECTURES})
separate_arguments(architectures)
if(NOT architectures)
  set(architectures ${known})
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    list(REMOVE_ITEM architectures 7.0)
  elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    list(REMOVE_ITEM architectures 10.0 12.0)
  endif()
endif()

list(SORT architectures COMPARE NATURAL)
string(REPLACE "." "" cmake_architectures "${architectures}")
list(GET cmake_architectures -1 newest)
list(TRANSFORM cmake_architectures APPEND "-real")
list(APPEND cmake_architectures "${newest}-virtual")
string(REPLACE ";" " " architectures "${architectures}")
