// A GPU that is played on the CPU, to find missing waits between host and GPU and between streams. It does no more than
// it must: work stays in the queue of its stream until the host waits for the stream, and then only this queue runs, up
// to there, with the work of other streams for which it waits itself. So a host that does not wait reads old bytes,
// memory that is overwritten before its copy is done spoils the copy, and a stream that was not told to wait for another
// stream runs before it. Schedule has other orders that a GPU may choose.
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

namespace {

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

}  // namespace

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

namespace {

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
  cudaError_t call_error = cudaSuccess, work_error = cudaSuccess;
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
  return g.fail_call > 0 && --g.fail_call == 0 ? fails(g.call_error) : cudaSuccess;
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
    if (item.work && g.fail_work > 0 && --g.fail_work == 0) fails(g.work_error);
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

}  // namespace

namespace cuda_shim {

cudaError_t enqueue(cudaStream_t stream, Work work) {
  {
    BEGIN(begin_call);
    const cudaStream_t s = find(stream);
    REQUIRE(s, cudaErrorInvalidResourceHandle);
    REQUIRE(!s->recording || !s->recording->invalid, cudaErrorStreamCaptureInvalidated);
    s->queue()->items.push_back({std::move(work), {}});
  }
  be_eager();
  return cudaSuccess;
}

}  // namespace cuda_shim

#pragma GCC visibility push(default)
extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError() {
  const Lock lock(gpu().state);
  const cudaError_t last = std::exchange(gpu().last, cudaSuccess), error = gpu().error;
  return error != cudaSuccess ? error : last;
}

cudaError_t cudaGetDevice(int* device) {
  BEGIN(begin_call);
  return *device = 0, cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  BEGIN(begin_call);
  REQUIRE(device == 0, cudaErrorInvalidValue);
  return cudaSuccess;
}

// ---- Memory.

cudaError_t cudaMalloc(void** address, std::size_t bytes) { return allocate(address, bytes, true); }
cudaError_t cudaFree(void* address) { return release(address, true); }
cudaError_t cudaMallocHost(void** address, std::size_t bytes) { return allocate(address, bytes, false); }
cudaError_t cudaFreeHost(void* address) { return release(address, false); }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  BEGIN(begin_call);
  *total = gpu().total;
  *free = gpu().used < *total ? *total - gpu().used : 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  BEGIN(begin_call);
  const Block* block = block_of(address, 0);
  const cudaMemoryType registered = block && block->device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  *attributes = {block ? registered : cudaMemoryTypeUnregistered, 0};
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  if (!lives(address, bytes, true)) return fails(cudaErrorInvalidValue);
  return cuda_shim::enqueue(stream, [=] {
    if (!lives(address, bytes, true)) return fail_work(cudaErrorIllegalAddress, "memset of memory that was freed");
    std::memset(address, value, bytes);
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const auto valid = [=] {
    return lives(to, bytes, kind != cudaMemcpyDeviceToHost) && lives(from, bytes, kind != cudaMemcpyHostToDevice);
  };
  if (!valid()) return fails(cudaErrorInvalidValue);
  return cuda_shim::enqueue(stream, [=] {
    if (!valid()) return fail_work(cudaErrorIllegalAddress, "copy from or to memory that was freed");
    std::memcpy(to, from, bytes);
  });
}

// ---- Streams.

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  BEGIN(begin_call);
  REQUIRE(flags == cudaStreamNonBlocking, cudaErrorInvalidValue);  // other streams would wait for the default stream
  made(gpu().streams, stream, new CUstream_st);
  gpu().queues.push_back((*stream)->own);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::vector<QueuePtr> gone, kept;  // `gone` goes without the lock: it may hold Python functions
  const Lock lock(gpu().state);
  if (gpu().streams.count(stream) && stream->recording) cuda_shim::fail("a stream was destroyed while it captured");
  const cudaError_t error = destroy(gpu().streams, stream);
  for (QueuePtr& q : gpu().queues) {
    const bool done = q.use_count() == 1 && q->done == q->items.size();
    (done ? gone : kept).push_back(std::move(q));
  }
  gpu().queues = std::move(kept);
  return error;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Point end;
  {
    BEGIN(begin_blocking_call);
    const cudaStream_t s = find(stream);
    REQUIRE(s, cudaErrorInvalidResourceHandle);
    if (s->recording) s->recording->invalid = true;
    REQUIRE(!s->recording, cudaErrorStreamCaptureUnsupported);
    end = s->own->end(s->own);
  }
  return demand(end);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  {
    BEGIN(begin_call);
    const cudaStream_t s = find(stream);
    REQUIRE(s && gpu().events.count(event), cudaErrorInvalidResourceHandle);
    REQUIRE(!s->recording, cudaErrorStreamCaptureUnsupported);  // a GPU could record it; trtseg has no use for it
    if (event->point.queue) s->own->items.push_back({{}, event->point});
  }
  be_eager();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  BEGIN(begin_call);
  const cudaStream_t s = find(stream);
  REQUIRE(s && s != &gpu().legacy && !s->recording, cudaErrorInvalidResourceHandle);
  s->recording = std::make_shared<Recording>();
  s->recording->queue->of_graph = true;
  gpu().recordings.insert(s->recording);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  RecordingPtr recording;  // goes without the lock: it may hold Python functions
  const Lock lock(gpu().state);
  const cudaError_t error = begin_call();
  *graph = nullptr;
  const cudaStream_t s = find(stream);
  REQUIRE(s && s->recording && s->recording->thread == std::this_thread::get_id(), cudaErrorInvalidResourceHandle);
  recording = std::move(s->recording);
  s->recording = nullptr;
  gpu().recordings.erase(recording);
  if (error != cudaSuccess) return error;
  REQUIRE(!recording->invalid, cudaErrorStreamCaptureInvalidated);
  return made(gpu().graphs, graph, new CUgraph_st{recording});
}

// ---- Events.

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  BEGIN(begin_call);
  return made(gpu().events, event, new CUevent_st{!(flags & cudaEventDisableTiming), {}, {}});
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(gpu().events, event); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  {
    BEGIN(begin_call);
    const cudaStream_t s = find(stream);
    REQUIRE(s && gpu().events.count(event), cudaErrorInvalidResourceHandle);
    REQUIRE(!s->recording, cudaErrorStreamCaptureUnsupported);  // as for cudaStreamWaitEvent
    event->time = std::make_shared<Clock::time_point>();
    s->own->items.push_back({[time = event->time] { *time = Clock::now(); }, {}});
    event->point = s->own->end(s->own);
  }
  be_eager();
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Point point;
  {
    BEGIN(begin_blocking_call);
    REQUIRE(gpu().events.count(event), cudaErrorInvalidResourceHandle);
    point = event->point;
  }
  return demand(point);
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  BEGIN(begin_call);
  for (const cudaEvent_t e : {start, end}) {
    REQUIRE(gpu().events.count(e) && e->timing && e->time && reached(e->point), cudaErrorInvalidResourceHandle);
  }
  *ms = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return cudaSuccess;
}

// ---- Graphs.

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, std::size_t* count) {
  BEGIN(begin_call);
  *count = graph->recording->queue->items.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  BEGIN(begin_call);
  return made(gpu().execs, exec, new CUgraphExec_st{graph->recording});
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  std::weak_ptr<Recording> recorded;
  {
    const Lock lock(gpu().state);
    REQUIRE(gpu().execs.count(exec), cudaErrorInvalidValue);
    recorded = exec->recording;
  }
  return cuda_shim::enqueue(stream, [recorded] {
    const RecordingPtr recording = recorded.lock();
    if (!recording) return fail_work(cudaErrorIllegalAddress, "a graph was destroyed before its launch had ended");
    recording->queue->done = 0;
    run_until(recording->queue->end(recording->queue));
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(gpu().graphs, graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return destroy(gpu().execs, exec); }

// ---- For played_pycuda.py.

// How Python functions are called and released, by their keys.
void played_python(int (*call)(long), void (*release)(long)) {
  gpu().call_python = call;
  gpu().release_python = release;
}

cudaError_t played_enqueue(cudaStream_t stream, long key) {
  return cuda_shim::enqueue(stream, [callable = std::make_shared<Callable>(key)] {
    if (gpu().call_python(callable->key) != 0) fail_work(cudaErrorLaunchFailure, "a function in a stream raised");
  });
}

void played_schedule(int schedule) { gpu().schedule = static_cast<Schedule>(schedule); }
void played_memory(std::size_t total) { gpu().total = total; }
long played_calls() { return gpu().calls; }
long played_made() { return gpu().made; }

void played_fail_call(long n, int error) {
  gpu().fail_call = n;
  gpu().call_error = static_cast<cudaError_t>(error);
}

void played_fail_work(long n, int error) {
  gpu().fail_work = n;
  gpu().work_error = static_cast<cudaError_t>(error);
}

// Forgets errors and work; allocations stay.
void played_reset() {
  const Lock one_at_a_time(gpu().running);
  std::vector<Item> dropped;  // goes without the lock
  const Lock lock(gpu().state);
  Gpu& g = gpu();
  for (const QueuePtr& q : g.queues) {
    for (Item& item : q->items) dropped.push_back(std::move(item));
    q->done = q->items.size();
  }
  g.error = g.last = cudaSuccess;
  g.calls = g.fail_call = g.fail_work = 0;
  g.total = std::size_t{8} << 30;
  g.schedule = kLazy;
}

// How many there are: device and pinned blocks, streams, events, graphs, and graphs to be launched.
void played_live(long counts[6]) {
  const Lock lock(gpu().state);
  const Gpu& g = gpu();
  counts[0] = counts[1] = 0;
  for (const auto& [address, block] : g.blocks) ++counts[block.device ? 0 : 1];
  const std::size_t handles[] = {g.streams.size(), g.events.size(), g.graphs.size(), g.execs.size()};
  for (int i = 0; i < 4; ++i) counts[2 + i] = static_cast<long>(handles[i]);
}

}  // extern "C"
