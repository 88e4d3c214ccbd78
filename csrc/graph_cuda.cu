// Recording and launching CUDA graphs; host code only.
#include "cuda_util.h"
#include "graph.h"

namespace trtseg::cuda {
namespace {

int current_device() {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

// A stream that records from construction to end(), or to destruction, which drops the record.
class Capture {
 public:
  // Thread-local: other threads may use CUDA as they like meanwhile.
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }
  ~Capture() {
    if (ended_) return;
    OwnedGraph dropped;
    if (cudaStreamEndCapture(stream_, dropped.out()) != cudaSuccess) (void)cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  OwnedGraph end() {
    ended_ = true;  // also where it fails
    OwnedGraph graph;
    CUDA_CHECK(cudaStreamEndCapture(stream_, graph.out()));
    return graph;
  }

 private:
  cudaStream_t stream_;
  bool ended_ = false;
};

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(const OwnedGraph& graph) : device_(current_device()) {
    CUDA_CHECK(cudaGraphGetNodes(graph.get(), nullptr, &nodes_));
    CUDA_CHECK(cudaGraphInstantiateWithFlags(exec_.out(), graph.get(), 0));
  }

  ~CudaGraph() override { exec_.release_on(device_); }

  void launch(std::uintptr_t stream) override {
    const OnDevice device(device_);
    CUDA_CHECK(cudaGraphLaunch(exec_.get(), stream_of(stream)));
  }

  void run(std::uintptr_t stream) override {
    const OnDevice device(device_);
    CUDA_CHECK(cudaGraphLaunch(exec_.get(), stream_of(stream)));
    CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
  }

  std::size_t nodes() const override { return nodes_; }

 private:
  int device_;
  std::size_t nodes_ = 0;
  OwnedGraphExec exec_;
};

class CudaEvent final : public Event {
 public:
  CudaEvent() : device_(current_device()) {
    CUDA_CHECK(cudaEventCreateWithFlags(event_.out(), cudaEventDisableTiming));
  }

  ~CudaEvent() override { event_.release_on(device_); }

  // A stream waits for the point that was recorded when the wait was enqueued: recording the event anew leaves earlier
  // waits as they are.
  void wait_for(std::uintptr_t stream, std::uintptr_t other) override {
    CUDA_CHECK(cudaEventRecord(event_.get(), stream_of(other)));
    CUDA_CHECK(cudaStreamWaitEvent(stream_of(stream), event_.get(), 0));
  }

 private:
  int device_;
  OwnedEvent event_;
};

}  // namespace

std::unique_ptr<Graph> capture(std::uintptr_t stream, const std::function<void()>& enqueue) {
  const cudaStream_t handle = stream_of(stream);
  if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    throw ArgumentError("stream: got the default stream, expected one of your own: a default stream cannot be recorded");
  }
  Capture recording(handle);
  enqueue();
  return std::make_unique<CudaGraph>(recording.end());
}

std::unique_ptr<Event> make_event() { return std::make_unique<CudaEvent>(); }

}  // namespace trtseg::cuda
