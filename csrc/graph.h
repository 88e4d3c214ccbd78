// CUDA graphs: work recorded from a stream and launched again with one call. And events: one stream waits for another.
// Handles of streams are integers here, so that no CUDA header is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace trtseg {

// A graph launches the addresses and numbers that were recorded: whoever recorded it keeps the memory alive.
class Graph {
 public:
  Graph() = default;
  virtual ~Graph() = default;  // its launches must have ended
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Enqueues the recorded work on `stream`, of the GPU that was current when it was recorded. Throws DeviceError.
  virtual void launch(std::uintptr_t stream) = 0;

  // Launches on `stream`, then waits until the stream has no work left. Throws DeviceError.
  virtual void run(std::uintptr_t stream) = 0;

  // How many pieces of work the graph has.
  virtual std::size_t nodes() const = 0;
};

// An event lets streams wait for one another, any number of times, and allocates nothing for it. One thread at a time.
class Event {
 public:
  Event() = default;
  virtual ~Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Work enqueued on `stream` from now on waits for all work enqueued on `other` so far. Both streams belong to the
  // GPU that was current when the event was made, and is now. Throws DeviceError.
  virtual void wait_for(std::uintptr_t stream, std::uintptr_t other) = 0;
};

namespace cuda {  // graph_cuda.cu

// Calls `enqueue`, and records the work that it puts on `stream` instead of running it. Streams that `enqueue` makes
// wait for `stream` are recorded too, and `stream` must wait for them in the end. `stream` belongs to the current GPU.
// Throws ArgumentError for a default stream, DeviceError for work that cannot be recorded, and whatever `enqueue`
// throws; in each case `stream` can be used again.
std::unique_ptr<Graph> capture(std::uintptr_t stream, const std::function<void()>& enqueue);

// An event of the current GPU. Throws DeviceError.
std::unique_ptr<Event> make_event();

}  // namespace cuda
}  // namespace trtseg
