// A GPU that is played on the CPU, to find what is missing between host and GPU and between streams. It never does more
// than it has been promised to: work stays in the queue of its stream until the host waits for it, and then only that
// queue runs, up to there, with what it waits for itself. So who does not wait reads old bytes, who overwrites memory
// before its copy is done spoils the copy, and a stream that was not told to wait for another one runs before it. Other
// orders that a GPU may choose: see Schedule.
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
  std::vector<Item> items;  // those that are done have been moved out, but in a graph
  std::size_t done = 0;
  bool of_graph = false;

  Point end(std::shared_ptr<Queue> self) const { return {std::move(self), items.size()}; }
};
using QueuePtr = std::shared_ptr<Queue>;

// What a capture records: one queue per stream that took part, the first of them that of the stream it began on.
struct Recording {
  std::vector<QueuePtr> queues;
  std::set<cudaStream_t> streams;
  std::thread::id thread = std::this_thread::get_id();
  std::size_t nodes = 0;
  bool invalid = false, ended = false;

  ~Recording() {
    for (const QueuePtr& q : queues) q->items.clear();  // they refer to one another
  }
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
  kOthersFirst,  // when the host waits for a stream, all the others run first, as far as they can
};

}  // namespace

struct CUstream_st {
  bool blocking;  // ordered with the legacy default stream
  QueuePtr own = std::make_shared<Queue>();
  QueuePtr queue = own;    // what is enqueued goes here; while it captures, into the recording
  RecordingPtr recording;  // of the capture it takes part in
};
struct CUevent_st {
  bool timing = true;
  Point point;  // no queue: never recorded
  std::shared_ptr<Clock::time_point> time;
  bool captured = false;
  std::weak_ptr<Recording> recording;  // where, if it was captured
};
struct CUgraph_st {
  RecordingPtr recording;
};
struct CUgraphExec_st {
  RecordingPtr recording;
};

namespace {

struct Gpu {
  std::recursive_mutex state;    // of all that is here; never held while work runs
  std::recursive_mutex running;  // one piece of work at a time; taken before `state`
  CUstream_st legacy{true}, per_thread{true};  // the default ones; the second is one for all threads
  std::set<cudaStream_t> streams;  // all others
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> execs;
  std::vector<QueuePtr> queues{legacy.own, per_thread.own};  // of all streams, and of those gone with work left
  std::set<RecordingPtr> recordings;  // that have not ended
  std::map<std::uintptr_t, Block> blocks;
  std::size_t used = 0, total = std::size_t{8} << 30;
  Schedule schedule = kLazy;
  std::atomic<cudaError_t> error{cudaSuccess};  // stays
  cudaError_t last = cudaSuccess;
  long made = 0;  // of all that has to be freed
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

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not initiated in this stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const ErrorText& text_of(cudaError_t error) {
  static const ErrorText unknown{cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
  for (const ErrorText& e : kErrors) {
    if (e.error == error) return e;
  }
  return unknown;
}

// The kind after which a context is of no use any more.
bool sticky(cudaError_t e) { return e == cudaErrorIllegalAddress || (e >= 710 && e <= 719); }

// What a call returns, which cudaGetLastError tells once more.
cudaError_t fails(cudaError_t error) {
  if (error == cudaSuccess) return error;
  const Lock lock(gpu().state);
  Gpu& g = gpu();
  if (sticky(error) && g.error == cudaSuccess) {
    g.error = error;
    for (const QueuePtr& q : g.queues) q->done = q->items.size();  // nothing runs any more
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
  const cudaError_t error = begin_call();
  if (error != cudaSuccess) return error;
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
  if (handle == nullptr || handle == cudaStreamLegacy) return &gpu().legacy;
  if (handle == cudaStreamPerThread) return &gpu().per_thread;
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

void run_until(const Point& point);

void fail_work(cudaError_t error, const char* why) {
  const Lock lock(gpu().state);
  if (gpu().error == cudaSuccess) std::fprintf(stderr, "cuda_shim: %s\n", why);
  fails(error);
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

bool reached(const Point& p) {
  const Lock lock(gpu().state);
  return !p.queue || p.queue->done >= p.count;
}

void run_until(const Point& point) {
  while (gpu().error == cudaSuccess && !reached(point)) run_next(point.queue);
}

bool next_can_run(const QueuePtr& queue) {
  const Lock lock(gpu().state);
  return queue->done < queue->items.size() && reached(queue->items[queue->done].wait);
}

// Runs what can run without `but`.
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

// The host looks whether a point is reached: the GPU does a little meanwhile.
cudaError_t look(const Point& point) {
  const Lock one_at_a_time(gpu().running);
  if (!reached(point)) run_next(point.queue);
  if (gpu().error != cudaSuccess) return gpu().error;
  return reached(point) ? cudaSuccess : cudaErrorNotReady;
}

void be_eager() {
  if (gpu().schedule != kEager) return;
  const Lock one_at_a_time(gpu().running);
  run_all(nullptr);
}

// ---- Enqueuing. `state` is held. ---------------------------------------------------------------------------------

void add_wait(cudaStream_t s, cudaStream_t other) {
  const Point end = other->own->end(other->own);
  if (!reached(end)) s->queue->items.push_back({{}, end});
}

// The legacy default stream and those that block wait for one another.
cudaError_t order_with_legacy(cudaStream_t s) {
  Gpu& g = gpu();
  if (s->recording || !s->blocking) return cudaSuccess;
  std::set<cudaStream_t> others{&g.legacy};
  if (s == &g.legacy) {
    others = g.streams;
    others.insert(&g.per_thread);
  }
  for (const cudaStream_t other : others) {
    if (!other->blocking) continue;
    if (other->recording) {
      other->recording->invalid = true;
      return fails(cudaErrorStreamCaptureImplicit);
    }
    add_wait(s, other);
  }
  return cudaSuccess;
}

cudaError_t add(cudaStream_t s, Work& work) {
  REQUIRE(s, cudaErrorInvalidResourceHandle);
  if (const cudaError_t e = order_with_legacy(s)) return e;
  if (s->recording) {
    REQUIRE(!s->recording->invalid, cudaErrorStreamCaptureInvalidated);
    ++s->recording->nodes;
  }
  s->queue->items.push_back({std::move(work), {}});
  return cudaSuccess;
}

// ---- Captures. -----------------------------------------------------------------------------------------------------

// Lets a stream take part in a capture.
void join(cudaStream_t s, const RecordingPtr& recording) {
  s->recording = recording;
  s->queue = std::make_shared<Queue>();
  s->queue->of_graph = true;
  recording->queues.push_back(s->queue);
  recording->streams.insert(s);
}

// Marks what has to be done before a point.
void reach(const Point& point, std::map<Queue*, std::size_t>& done) {
  std::size_t& count = done[point.queue.get()];
  for (; count < point.count; ++count) {
    const Point& wait = point.queue->items[count].wait;
    if (wait.queue) reach(wait, done);
  }
}

bool all_joined(const Recording& r) {
  std::map<Queue*, std::size_t> done;
  reach(r.queues[0]->end(r.queues[0]), done);
  for (const QueuePtr& q : r.queues) {
    if (done[q.get()] != q->items.size()) return false;
  }
  return true;
}

// Makes what is enqueued from now on wait for an event.
cudaError_t add_wait(cudaStream_t s, const CUevent_st& event) {
  const RecordingPtr recording = event.recording.lock();
  REQUIRE(!event.captured || (recording && !recording->ended), cudaErrorCapturedEvent);
  if (!s->recording && recording) {
    join(s, recording);
  } else if (s->recording != recording) {
    s->recording->invalid = true;
    return fails(recording ? cudaErrorStreamCaptureMerge : cudaErrorStreamCaptureIsolation);
  }
  s->queue->items.push_back({{}, event.point});
  return cudaSuccess;
}

// Takes out what is done of streams that were destroyed. What it returns may hold Python functions: let it go without
// the lock.
std::vector<QueuePtr> take_done() {
  std::vector<QueuePtr> taken, kept;
  for (QueuePtr& q : gpu().queues) {
    const bool done = q.use_count() == 1 && q->done == q->items.size();
    (done ? taken : kept).push_back(std::move(q));
  }
  gpu().queues = std::move(kept);
  return taken;
}

cudaError_t allocate(void** address, std::size_t bytes, bool device) {
  BEGIN(begin_blocking_call);
  Gpu& g = gpu();
  REQUIRE(bytes > 0, cudaErrorInvalidValue);
  REQUIRE(!device || (g.used <= g.total && bytes <= g.total - g.used), cudaErrorMemoryAllocation);
  *address = std::malloc(bytes);
  REQUIRE(*address, cudaErrorMemoryAllocation);
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
  if (!address) return error;
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
    if (const cudaError_t e = add(find(stream), work)) return e;
  }
  be_eager();
  return cudaSuccess;
}

}  // namespace cuda_shim

#pragma GCC visibility push(default)
extern "C" {

const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return text_of(error).text; }

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
  REQUIRE(device == 0, cudaErrorInvalidDevice);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  std::vector<Point> points;
  {
    BEGIN(begin_blocking_call);
    for (const RecordingPtr& r : gpu().recordings) r->invalid = true;  // of other threads
    REQUIRE(gpu().recordings.empty(), cudaErrorStreamCaptureUnsupported);
    for (const QueuePtr& q : gpu().queues) points.push_back(q->end(q));
  }
  for (const Point& p : points) demand(p);
  return gpu().error;
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

// As the driver does it: in the legacy default stream, without waiting for it.
cudaError_t cudaMemset(void* address, int value, std::size_t bytes) {
  {
    BEGIN(begin_blocking_call);
  }
  return cudaMemsetAsync(address, value, bytes, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const auto valid = [=] {
    return lives(to, bytes, kind != cudaMemcpyDeviceToHost) && lives(from, bytes, kind != cudaMemcpyHostToDevice);
  };
  if (bytes > 0 && !valid()) return fails(cudaErrorInvalidValue);
  return cuda_shim::enqueue(stream, [=] {
    if (bytes == 0) return;
    if (!valid()) return fail_work(cudaErrorIllegalAddress, "copy from or to memory that was freed");
    std::memcpy(to, from, bytes);
  });
}

// ---- Streams.

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  BEGIN(begin_call);
  *stream = new CUstream_st{!(flags & cudaStreamNonBlocking)};
  gpu().streams.insert(*stream);
  ++gpu().made;
  gpu().queues.push_back((*stream)->own);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::vector<QueuePtr> done;
  const Lock lock(gpu().state);
  if (gpu().streams.count(stream) && stream->recording) cuda_shim::fail("a stream was destroyed while it captured");
  const cudaError_t error = destroy(gpu().streams, stream);
  done = take_done();
  return error;
}

static cudaError_t end_of(cudaStream_t handle, Point& end) {
  BEGIN(begin_blocking_call);
  const cudaStream_t s = find(handle);
  REQUIRE(s, cudaErrorInvalidResourceHandle);
  if (s->recording) {
    s->recording->invalid = true;
    return fails(cudaErrorStreamCaptureUnsupported);
  }
  if (const cudaError_t e = order_with_legacy(s)) return e;
  end = s->queue->end(s->queue);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Point end;
  if (const cudaError_t e = end_of(stream, end)) return e;
  return demand(end);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Point end;
  if (const cudaError_t e = end_of(stream, end)) return e;
  return look(end);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  {
    BEGIN(begin_call);
    REQUIRE(gpu().events.count(event), cudaErrorInvalidResourceHandle);
    const cudaStream_t s = find(stream);
    REQUIRE(s, cudaErrorInvalidResourceHandle);
    if (!event->point.queue) return cudaSuccess;
    if (const cudaError_t e = add_wait(s, *event)) return e;
  }
  be_eager();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  BEGIN(begin_call);
  const cudaStream_t s = find(stream);
  REQUIRE(s, cudaErrorInvalidResourceHandle);
  REQUIRE(s != &gpu().legacy, cudaErrorStreamCaptureUnsupported);
  REQUIRE(!s->recording, cudaErrorIllegalState);
  join(s, std::make_shared<Recording>());
  gpu().recordings.insert(s->recording);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  RecordingPtr recording;  // goes without the lock: it may hold Python functions
  const Lock lock(gpu().state);
  const cudaError_t error = begin_call();
  *graph = nullptr;
  const cudaStream_t origin = find(stream);
  REQUIRE(origin, cudaErrorInvalidResourceHandle);
  recording = origin->recording;
  REQUIRE(recording, cudaErrorIllegalState);
  REQUIRE(recording->queues[0] == origin->queue, cudaErrorStreamCaptureUnmatched);
  REQUIRE(recording->thread == std::this_thread::get_id(), cudaErrorStreamCaptureWrongThread);
  for (const cudaStream_t s : recording->streams) {
    s->queue = s->own;
    s->recording = nullptr;
  }
  recording->ended = true;
  gpu().recordings.erase(recording);
  if (error != cudaSuccess) return error;
  REQUIRE(!recording->invalid, cudaErrorStreamCaptureInvalidated);
  REQUIRE(all_joined(*recording), cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{recording};
  gpu().graphs.insert(*graph);
  ++gpu().made;
  return cudaSuccess;
}

// ---- Events.

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  BEGIN(begin_call);
  *event = new CUevent_st;
  (*event)->timing = !(flags & cudaEventDisableTiming);
  gpu().events.insert(*event);
  ++gpu().made;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(gpu().events, event); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  {
    BEGIN(begin_call);
    REQUIRE(gpu().events.count(event), cudaErrorInvalidResourceHandle);
    const auto time = std::make_shared<Clock::time_point>(Clock::now());
    const cudaStream_t s = find(stream);
    REQUIRE(s, cudaErrorInvalidResourceHandle);
    if (const cudaError_t e = order_with_legacy(s)) return e;
    if (!s->recording) s->queue->items.push_back({[time] { *time = Clock::now(); }, {}});
    *event = {event->timing, s->queue->end(s->queue), time, s->recording != nullptr, s->recording};
  }
  be_eager();
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Point point;
  {
    BEGIN(begin_blocking_call);
    REQUIRE(gpu().events.count(event), cudaErrorInvalidResourceHandle);
    REQUIRE(!event->captured, cudaErrorCapturedEvent);
    point = event->point;
  }
  return demand(point);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  Point point;
  {
    BEGIN(begin_blocking_call);
    REQUIRE(gpu().events.count(event), cudaErrorInvalidResourceHandle);
    REQUIRE(!event->captured, cudaErrorCapturedEvent);
    point = event->point;
  }
  return look(point);
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  BEGIN(begin_call);
  for (const cudaEvent_t e : {start, end}) {
    REQUIRE(gpu().events.count(e) && e->timing && e->time && !e->captured, cudaErrorInvalidResourceHandle);
  }
  if (!reached(start->point) || !reached(end->point)) return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return cudaSuccess;
}

// ---- Graphs.

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, std::size_t* count) {
  BEGIN(begin_call);
  REQUIRE(gpu().graphs.count(graph), cudaErrorInvalidValue);
  *count = graph->recording->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  BEGIN(begin_call);
  REQUIRE(gpu().graphs.count(graph), cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{graph->recording};
  gpu().execs.insert(*exec);
  ++gpu().made;
  return cudaSuccess;
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
    for (const QueuePtr& q : recording->queues) q->done = 0;
    run_until(recording->queues[0]->end(recording->queues[0]));
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(gpu().graphs, graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return destroy(gpu().execs, exec); }

// ---- For played_pycuda.py.

// Where Python functions are called and let go, by their keys.
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

// Forgets errors and work; what is allocated stays.
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

// How many there are: device and pinned blocks, streams, events, graphs, and those to be launched.
void played_live(long counts[6]) {
  const Lock lock(gpu().state);
  const Gpu& g = gpu();
  counts[0] = counts[1] = 0;
  for (const auto& [address, block] : g.blocks) ++counts[block.device ? 0 : 1];
  const std::size_t handles[] = {g.streams.size(), g.events.size(), g.graphs.size(), g.execs.size()};
  for (int i = 0; i < 4; ++i) counts[2 + i] = static_cast<long>(handles[i]);
}

}  // extern "C"
