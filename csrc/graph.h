// CUDA graphs: work recorded from a stream, to be launched as often as one likes with one call; and one stream waiting
// for another. Handles of streams are integers here, so that no CUDA header is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace trtseg {

// It launches the addresses and numbers that were recorded: whoever recorded it keeps those alive.
class Graph {
 public:
  Graph() = default;
  virtual ~Graph() = default;  // its launches must have ended
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Enqueues all of it on `stream`, of the GPU that was current when it was recorded. Throws DeviceError.
  virtual void launch(std::uintptr_t stream) = 0;

  // How many pieces of work there are in it.
  virtual std::size_t nodes() const = 0;
};

// Lets streams wait for one another as often as one likes, and allocates nothing for it. One thread at a time.
class Event {
 public:
  Event() = default;
  virtual ~Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // What is enqueued on `stream` from now on waits for all that was enqueued on `other` so far. Both belong to the
  // GPU that was current when this was made, and is now. Throws DeviceError.
  virtual void wait_for(std::uintptr_t stream, std::uintptr_t other) = 0;
};

namespace cuda {  // graph_cuda.cu

// Calls `enqueue`, and records what it puts on `stream` instead of running it; also what it puts on streams that it
// makes wait for that one, which must wait for them in the end. `stream` belongs to the current GPU. Throws
// ArgumentError for a default stream, DeviceError when something was done that cannot be recorded, and what `enqueue`
// throws; in each case `stream` can be used again.
std::unique_ptr<Graph> capture(std::uintptr_t stream, const std::function<void()>& enqueue);

// An event of the current GPU. Throws DeviceError.
std::unique_ptr<Event> make_event();

// Event::wait_for with an event of its own, for who needs it once.
void wait_for(std::uintptr_t stream, std::uintptr_t other);

}  // namespace cuda
}  // namespace trtseg
