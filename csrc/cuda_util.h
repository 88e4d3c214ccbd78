// Errors of the CUDA runtime as exceptions, and its handles as objects that release them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "ops.h"

namespace trtseg {

inline void cuda_check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // a sticky error stays; other errors must not surface in the next call
  const std::string what = std::string(call) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) {
    throw OutOfMemory(what + "; free GPU memory (nvidia-smi shows who holds it), or process fewer slices at a time");
  }
  throw DeviceError(what + "; check the driver with nvidia-smi, and that arrays and stream belong to one GPU");
}

inline cudaStream_t stream_of(std::uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// Makes a GPU current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    cuda_check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device == previous_) return;
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Owns a handle of the CUDA runtime. The GPU that it belongs to must be current when it is released.
template <typename T, cudaError_t (*destroy)(T)>
class Owned {
 public:
  Owned() = default;
  ~Owned() { release(); }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

  T get() const { return handle_; }
  T* out() { return &handle_; }  // for the call that makes the handle

  // Releases it on a GPU, which is current meanwhile.
  void release_on(int device) noexcept {
    try {
      const OnDevice current(device);
      release();
    } catch (const DeviceError&) {
      // The GPU is lost, and the handle with it.
    }
  }

 private:
  void release() {
    if (handle_ && destroy(std::exchange(handle_, nullptr)) != cudaSuccess) (void)cudaGetLastError();
  }

  T handle_ = nullptr;
};
using OwnedGraph = Owned<cudaGraph_t, cudaGraphDestroy>;
using OwnedGraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using OwnedEvent = Owned<cudaEvent_t, cudaEventDestroy>;

}  // namespace trtseg

#define CUDA_CHECK(call) ::trtseg::cuda_check((call), #call)
