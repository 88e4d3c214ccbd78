// A GPU that is played on the CPU, to find missing waits between host and GPU and between streams. It does no more than
// it must: work stays in the queue of its stream until the host waits for the stream, and then only this queue runs, up
// to there, with the work of other streams for which it waits itself. So a host that does not wait reads old bytes,
// memory that is overwritten before its copy is done spoils the copy, and a stream that was not told to wait for another
// stream runs before it. Schedule has other orders that a GPU may choose.
//
// Here: what there is, in which order it runs, and memory. played.cpp has the calls. Only played.cpp includes this.
#pragma once

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "cuda_runtime.h"

inline namespace played {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;
struct Queue;

// Reached when the first `count` items of a queue are done.
struct Point {
  std::shared_ptr<Queue> queue;
  std::size_t count = 0;
};
struct Item {
  Work work;
  Point wait;  // before the work
};
struct Queue {
  std::vector<Item> items;  // items that are done have been moved out, but not in a graph
  std::size_t done = 0;
  bool of_graph = false;

  Point end(std::shared_ptr<Queue> self) const { return {std::move(self), items.size()}; }
};
using QueuePtr = std::shared_ptr<Queue>;

// The work of one stream that a capture records, and that a graph launches.
struct Recording {
  QueuePtr queue = std::make_shared<Queue>();
  std::thread::id thread = std::this_thread::get_id();
  bool invalid = false;
};
using RecordingPtr = std::shared_ptr<Recording>;

struct Block {
  std::size_t bytes;
  bool device;  // or pinned
};

// In which order work runs that nobody has ordered.
enum Schedule {
  kLazy,         // as late as possible
  kEager,        // as early as possible
  kOthersFirst,  // when the host waits for a stream, all other streams run first, as far as they can
};

}  // namespace played

struct CUstream_st {
  QueuePtr own = std::make_shared<Queue>();
  RecordingPtr recording;  // while the stream captures

  const QueuePtr& queue() const { return recording ? recording->queue : own; }
};
struct CUevent_st {
  bool timing = true;
  Point point;  // no queue: never recorded
  std::shared_ptr<Clock::time_point> time;
};
struct CUgraph_st {
  RecordingPtr recording;
};
struct CUgraphExec_st {
  RecordingPtr recording;
};

inline namespace played {

struct Gpu {
  std::recursive_mutex state;    // of everything below; never held while work runs
  std::recursive_mutex running;  // one piece of work at a time; taken before `state`
  CUstream_st legacy;            // the default stream: here a stream like any other
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> execs;
  std::vector<QueuePtr> queues{legacy.own};  // of all streams, and of destroyed streams with work left
  std::set<RecordingPtr> recordings;         // that have not ended
  std::map<std::uintptr_t, Block> blocks;
  std::size_t used = 0, total = std::size_t{8} << 30;
  Schedule schedule = kLazy;
  std::atomic<cudaError_t> error{cudaSuccess};  // stays
  cudaError_t last = cudaSuccess;
  long made = 0;  // of everything that has to be freed
  long calls = 0, fail_call = 0, fail_work = 0;  // fail_*: how many more to go, 0: none fails
  int (*call_python)(long) = nullptr;
  void (*release_python)(long) = nullptr;
};

// Never destroyed: threads and Python may outlive it.
Gpu& gpu() {
  static Gpu& one = *new Gpu;
  return one;
}
using Lock = std::lock_guard<std::recursive_mutex>;

// The value that a call returns, which cudaGetLastError tells once more.
cudaError_t fails(cudaError_t error) {
  const Lock lock(gpu().state);
  Gpu& g = gpu();
  if ((error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure) && g.error == cudaSuccess) {
    g.error = error;  // the context is of no use any more, and no work runs
    for (const QueuePtr& q : g.queues) q->done = q->items.size();
  }
  return g.last = error;
}

// At the beginning of each call, with `state` held.
cudaError_t begin_call() {
  Gpu& g = gpu();
  ++g.calls;
  if (g.error != cudaSuccess) return g.error;
  return g.fail_call > 0 && --g.fail_call == 0 ? fails(cudaErrorInvalidValue) : cudaSuccess;
}

// The same for calls that may wait for the GPU, which a thread must not make while it captures.
cudaError_t begin_blocking_call() {
  if (const cudaError_t error = begin_call()) return error;
  for (const RecordingPtr& r : gpu().recordings) {
    if (r->thread != std::this_thread::get_id()) continue;
    r->invalid = true;
    return fails(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

// Both return from the function that they are in.
#define BEGIN(begin)            \
  const Lock lock(gpu().state); \
  if (const cudaError_t e = begin()) return e
#define REQUIRE(condition, error) \
  if (!(condition)) return fails(error)

// The stream with that handle, or null.
cudaStream_t find(cudaStream_t handle) {
  if (handle == nullptr) return &gpu().legacy;
  return gpu().streams.count(handle) ? handle : nullptr;
}

// The block that holds these bytes, or null.
const Block* block_of(const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = gpu().blocks.upper_bound(at);
  if (next == gpu().blocks.begin()) return nullptr;
  const auto& [begin, block] = *std::prev(next);
  return at - begin < block.bytes && bytes <= block.bytes - (at - begin) ? &block : nullptr;
}

// Whether these bytes are device memory, or pinned memory, that has not been freed.
bool lives(const void* address, std::size_t bytes, bool device) {
  const Lock lock(gpu().state);
  const Block* block = block_of(address, bytes);
  return block && block->device == device;
}

// ---- Running. `running` is held, `state` is not. -------------------------------------------------------------------

void fail_work(cudaError_t error, const char* why) {
  const Lock lock(gpu().state);
  if (gpu().error == cudaSuccess) std::fprintf(stderr, "cuda_shim: %s\n", why);
  fails(error);
}

bool reached(const Point& p) {
  const Lock lock(gpu().state);
  return !p.queue || p.queue->done >= p.count;
}

void run_next(const QueuePtr& queue);

void run_until(const Point& point) {
  while (gpu().error == cudaSuccess && !reached(point)) run_next(point.queue);
}

void run_next(const QueuePtr& queue) {
  Item item;
  {
    const Lock lock(gpu().state);
    Item& next = queue->items[queue->done];
    item = queue->of_graph ? next : std::move(next);
    Gpu& g = gpu();
    if (item.work && g.fail_work > 0 && --g.fail_work == 0) fails(cudaErrorIllegalAddress);
  }
  if (item.wait.queue) run_until(item.wait);
  if (item.work && gpu().error == cudaSuccess) item.work();
  const Lock lock(gpu().state);
  if (gpu().error == cudaSuccess) ++queue->done;
}

bool next_can_run(const QueuePtr& queue) {
  const Lock lock(gpu().state);
  return queue->done < queue->items.size() && reached(queue->items[queue->done].wait);
}

// Runs the work that can run without `but`.
void run_all(const QueuePtr& but) {
  std::vector<QueuePtr> queues;
  {
    const Lock lock(gpu().state);
    queues = gpu().queues;
  }
  for (bool again = true; again;) {
    again = false;
    for (const QueuePtr& q : queues) {
      while (q != but && gpu().error == cudaSuccess && next_can_run(q)) {
        run_next(q);
        again = true;
      }
    }
  }
}

// The host waits for a point.
cudaError_t demand(const Point& point) {
  const Lock one_at_a_time(gpu().running);
  if (gpu().schedule == kOthersFirst) run_all(point.queue);
  run_until(point);
  return gpu().error;
}

void be_eager() {
  if (gpu().schedule != kEager) return;
  const Lock one_at_a_time(gpu().running);
  run_all(nullptr);
}

// ---- Memory and handles. -------------------------------------------------------------------------------------------

cudaError_t allocate(void** address, std::size_t bytes, bool device) {
  BEGIN(begin_blocking_call);
  Gpu& g = gpu();
  REQUIRE(bytes > 0, cudaErrorInvalidValue);
  REQUIRE(!device || (g.used <= g.total && bytes <= g.total - g.used), cudaErrorMemoryAllocation);
  *address = std::malloc(bytes);
  std::memset(*address, 0xff, bytes);  // NaN, in all kinds of floats
  g.blocks[reinterpret_cast<std::uintptr_t>(*address)] = {bytes, device};
  ++g.made;
  if (device) g.used += bytes;
  return cudaSuccess;
}

// It does not wait for the work that uses the block, as a GPU might.
cudaError_t release(void* address, bool device) {
  const Lock lock(gpu().state);
  const cudaError_t error = begin_blocking_call();
  Gpu& g = gpu();
  const auto block = g.blocks.find(reinterpret_cast<std::uintptr_t>(address));
  REQUIRE(block != g.blocks.end() && block->second.device == device, cudaErrorInvalidValue);
  if (error == cudaErrorStreamCaptureUnsupported) return error;
  if (device) g.used -= block->second.bytes;
  g.blocks.erase(block);
  std::free(address);
  return error;
}

template <typename Set, typename Handle>
cudaError_t destroy(Set& set, Handle handle) {
  std::unique_ptr<std::remove_pointer_t<Handle>> gone;  // goes without the lock: it may hold Python functions
  const Lock lock(gpu().state);
  const cudaError_t error = begin_call();
  if (set.erase(handle)) gone.reset(handle);
  if (error != cudaSuccess) return error;
  REQUIRE(gone, cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

template <typename Set, typename Handle>
cudaError_t made(Set& set, Handle* out, Handle handle) {
  set.insert(*out = handle);
  ++gpu().made;
  return cudaSuccess;
}

// A Python function in a queue, known there by its key.
struct Callable {
  long key;
  explicit Callable(long key) : key(key) {}
  ~Callable() { gpu().release_python(key); }
};

}  // namespace played
