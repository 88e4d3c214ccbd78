// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "ops.h"

namespace trtseg {

inline void cuda_check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // a sticky error stays; any other must not surface in the next call
  throw DeviceError(std::string(call) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status) +
                    "; check the driver with nvidia-smi, and that arrays and stream belong to one GPU");
}

}  // namespace trtseg

#define CUDA_CHECK(call) ::trtseg::cuda_check((call), #call)
