// The calls of CUDA on the GPU that played.h plays, and those of played_pycuda.py.
#include "played.h"

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
void played_fail_call(long n) { gpu().fail_call = n; }
void played_fail_work(long n) { gpu().fail_work = n; }

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
