// Stands in for CUDA's own header, so that g++ compiles csrc/ops_cuda.cu for the CPU: its kernels and launchers run
// where there is no GPU, and under AddressSanitizer and UBSan. tests/test_cuda_kernels.py builds and runs it.
//
// The blocks of a grid run one after the other. The threads of a block take turns: each runs until it ends or comes to
// a barrier, then the next one does. So each needs a stack of its own to stop on: a coroutine of <ucontext.h>, which
// needs no change in the kernels, as those of C++20 would. What takes real parallelism to go wrong (blocks or threads
// that race, atomics that are none) goes unseen, and so does whatever nvcc, the driver and a GPU make of the code.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static  // one block runs at a time

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 gridDim, blockDim;

// ---- What the shim does. -----------------------------------------------------------------------------------------

namespace cuda_shim {

constexpr std::size_t kStackBytes = 1 << 15;
constexpr std::uintptr_t kStream = 0x5712ea;  // the one stream there is; run.py passes it

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int waits_at;  // the line of a barrier, or kEnd
};
constexpr int kEnd = 0;  // of the kernel

inline std::vector<Thread> threads;  // of the block that runs
inline Thread* running;
inline unsigned turn;  // how many have had theirs in this round
inline ucontext_t scheduler;
inline std::function<void()> kernel;
inline int votes, counted;  // of __syncthreads_count: in this round and in the one before

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_shim: %s\n", what);
  std::abort();
}

// From `here` to the next thread of this round, or from the last one back to run_round. Every other block starts with
// its last thread: where a barrier is missing, one order or the other reads shared memory before it is written.
inline void switch_over(ucontext_t& here) {
  const unsigned n = static_cast<unsigned>(threads.size());
  if (turn == n) {
    swapcontext(&here, &scheduler);
    return;
  }
  const bool backwards = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 != 0;
  const unsigned t = backwards ? n - 1 - turn : turn;
  ++turn;
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  running = &threads[t];
  swapcontext(&here, &running->context);
}

inline void wait_at(int line) {
  running->waits_at = line;
  switch_over(running->context);
}

inline void thread_main() {
  for (;;) {  // once per block
    kernel();
    wait_at(kEnd);
  }
}

inline void make_threads(std::size_t n) {
  if (threads.size() == n) return;  // those of the last launch, all at their end
  threads = std::vector<Thread>(n);
  for (Thread& t : threads) {
    t.stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = kStackBytes;
    t.context.uc_link = nullptr;
    makecontext(&t.context, thread_main, 0);
  }
}

// Lets each thread run to its next barrier or its end; returns where they all are.
inline int run_round() {
  turn = 0;
  votes = 0;
  switch_over(scheduler);
  counted = votes;
  for (const Thread& t : threads) {
    if (t.waits_at != threads[0].waits_at) fail("the threads of a block went to different barriers");
  }
  return threads[0].waits_at;
}

inline void check_launch(const dim3& grid, const dim3& block) {
  const std::size_t n = static_cast<std::size_t>(block.x) * block.y * block.z;
  if (n == 0 || n > 1024 || block.z > 64) fail("a block of no or too many threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("a grid of no blocks");
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) fail("a grid of too many blocks");
}

inline void check_stream(const void* stream) {
  if (reinterpret_cast<std::uintptr_t>(stream) != kStream) fail("work on another stream than the caller's");
}

inline void launch(const dim3& grid, const dim3& block) {
  check_launch(grid, block);
  gridDim = grid;
  blockDim = block;
  make_threads(static_cast<std::size_t>(block.x) * block.y * block.z);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        while (run_round() != kEnd) {
        }
      }
    }
  }
}

}  // namespace cuda_shim

// ---- What csrc/ops_cuda.cu uses of CUDA. -------------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { cuda_shim::wait_at(line); }

inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
  cuda_shim::votes += predicate != 0;
  cuda_shim::wait_at(line);
  return cuda_shim::counted;
}

inline int atomicAdd(int* address, int value) {
  const int old = *address;
  *address += value;
  return old;
}

enum cudaError_t { cudaSuccess };
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

enum cudaMemoryType { cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {cudaMemoryTypeDevice, 0};
  return cudaSuccess;
}

using cudaStream_t = struct CUstream_st*;
inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  cuda_shim::check_stream(stream);
  std::memset(address, value, bytes);
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cuda_shim::check_stream(config->stream);
  cuda_shim::kernel = [&] { kernel(arguments...); };
  cuda_shim::launch(config->gridDim, config->blockDim);
  return cudaSuccess;
}
