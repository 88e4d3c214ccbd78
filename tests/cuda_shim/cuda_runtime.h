// Stands in for CUDA's own header, so that g++ compiles csrc/*.cu for the CPU: kernels, launchers and graphs run where
// there is no GPU, also under AddressSanitizer and UBSan. build.py builds it, tests/test_cuda_kernels.py uses it.
//
// Kernels: the blocks of a grid run one after the other. The threads of a block take turns: each runs until it ends or
// comes to a barrier. So each thread has a stack of its own to stop on: a coroutine of <ucontext.h>, which needs no
// change in the kernels. Faults that need real parallelism (races, atomics that are none) go unseen, and so do faults of
// nvcc, the driver and a GPU.
//
// Streams, events, graphs and memory: a lazy GPU, see played.h.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <tuple>
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

inline void run_kernel(const dim3& grid, const dim3& block) {
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

// ---- What csrc/*.cu and played_pycuda.py use of CUDA. -------------------------------------------------------------

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

inline int atomicMin(int* address, int value) {
  const int old = *address;
  *address = value < old ? value : old;
  return old;
}

inline int atomicMax(int* address, int value) {
  const int old = *address;
  *address = value > old ? value : old;
  return old;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1;

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaGraphNode_t = struct CUgraphNode_st*;
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(1))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(2))

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

#pragma GCC visibility push(default)  // for ctypes
extern "C" {
const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);

cudaError_t cudaMalloc(void** address, std::size_t bytes);
cudaError_t cudaFree(void* address);
cudaError_t cudaMallocHost(void** address, std::size_t bytes);
cudaError_t cudaFreeHost(void* address);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address);
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);

cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, std::size_t* count);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
}
#pragma GCC visibility pop

namespace cuda_shim {
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);  // played.cpp
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  cuda_shim::check_launch(grid, block);
  return cuda_shim::enqueue(config->stream, [=, values = std::tuple<Parameters...>(arguments...)] {
    cuda_shim::kernel = [&] { std::apply(kernel, values); };
    cuda_shim::run_kernel(grid, block);
  });
}
