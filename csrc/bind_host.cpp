// Python bindings of what moves data to and from GPUs: host memory, CUDA graphs, and both together in one call.
#include "bind_host.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "bind_arrays.h"
#include "gil.h"
#include "graph.h"
#include "host_copy.h"

namespace py = pybind11;

namespace trtseg {
namespace {

// Two arrays of one size and dtype; the error is about the first one.
void check_same(const View& given, const View& expected) {
  if (given.bytes() == expected.bytes() && given.type == expected.type) return;
  throw ArgumentError(std::string(given.name) + ": got " + std::to_string(given.bytes()) + " bytes, expected the " +
                      std::to_string(expected.bytes()) + " bytes of " + expected.name + " and its dtype; pass arrays " +
                      "of one shape");
}

void py_copy(py::handle dst, py::handle src, int threads) {
  check_threads(threads);
  const View to = host_output(dst, "dst"), from = host_input(src, "src");
  check_same(from, to);
  check_apart(to, {from});
  without_gil([&] { host_copy(to.data, from.data, to.bytes(), threads); });
}

void py_to_half(py::handle dst, py::handle src, int threads) {
  check_threads(threads);
  const View to = host_output(dst, "dst", {Type::f16}), from = host_input(src, "src", {Type::f32});
  if (from.bytes() != 2 * to.bytes()) {
    throw ArgumentError("src: got " + std::to_string(from.bytes()) + " bytes, expected twice the " +
                        std::to_string(to.bytes()) + " bytes of dst; pass arrays of one shape");
  }
  check_apart(to, {from});
  without_gil([&] {
    host_to_half(to.as<std::uint16_t>(), from.as<float>(), to.bytes() / sizeof(std::uint16_t), threads);
  });
}

void py_clear(py::handle dst, int threads) {
  check_threads(threads);
  const View to = host_output(dst, "dst");
  without_gil([&] { host_clear(to.data, to.bytes(), threads); });
}

// A chunk of slices from host memory to host memory in one call, see kChunkDoc. It keeps its arrays and graphs alive.
class Chunk {
 public:
  Chunk(std::uintptr_t stream, py::object hu, py::object first, py::object pixels, py::object rest, py::object labels,
        int threads)
      : kept_{hu, first, pixels, rest, labels}, stream_(stream), hu_(host_output(hu, "hu")),
        labels_(host_input(labels, "labels")), first_(first.cast<Graph&>()), rest_(rest.cast<Graph&>()),
        threads_(threads) {
    check_threads(threads);
    if (pixels.is_none()) return;
    const View view = host_input(pixels, "pixels", {Type::i32});
    pixels_ = static_cast<const std::int32_t*>(view.data);
    slices_ = view.bytes() / sizeof(std::int32_t);
  }

  void run(py::handle hu, py::handle out) {
    const View from = host_input(hu, "hu"), to = host_output(out, "out");
    check_same(from, hu_);
    check_same(to, labels_);
    check_apart(hu_, {from});
    check_apart(to, {labels_, hu_});
    without_gil([&] {
      host_copy(hu_.data, from.data, from.bytes(), threads_);
      first_.run(stream_);
      if (pixels_ && std::all_of(pixels_, pixels_ + slices_, [](std::int32_t n) { return n == 0; })) {
        host_clear(to.data, to.bytes(), threads_);
        return;
      }
      rest_.run(stream_);
      host_copy(to.data, labels_.data, to.bytes(), threads_);
    });
  }

 private:
  std::array<py::object, 5> kept_;
  std::uintptr_t stream_;
  View hu_, labels_;
  Graph &first_, &rest_;
  int threads_;
  const std::int32_t* pixels_ = nullptr;
  std::size_t slices_ = 0;
};

#ifdef TRTSEG_CUDA
std::unique_ptr<Graph> py_capture(std::uintptr_t stream, const py::function& enqueue) {
  std::unique_ptr<Graph> graph;
  without_gil([&] {
    graph = cuda::capture(stream, [&enqueue] {
      const py::gil_scoped_acquire acquire;
      enqueue();
    });
  });
  return graph;
}

std::unique_ptr<Event> py_event() {
  std::unique_ptr<Event> event;
  without_gil([&] { event = cuda::make_event(); });
  return event;
}

#else
[[noreturn]] void no_streams() {
  throw DeviceError(
      "got a CUDA stream, but this build of trtseg runs on the CPU only; rebuild it with nvcc "
      "(TRTSEG_CUDA=1 pip install .)");
}
std::unique_ptr<Graph> py_capture(std::uintptr_t, const py::function&) { no_streams(); }
std::unique_ptr<Event> py_event() { no_streams(); }
#endif

constexpr const char* kCopyDoc = R"(Copy one NumPy array over another of the same size and dtype, on several threads.

dst          uint8, int16, int32, float16 or float32 [...]     out
src          the same                              in)";

constexpr const char* kToHalfDoc = R"(Round a NumPy array to FP16, half to even, on several threads; too large numbers become infinite.

dst          float16 [...]                         out
src          float32 [...]                         in)";

constexpr const char* kClearDoc = R"(Set a NumPy array to 0, on several threads.

dst          uint8, int16, int32, float16 or float32 [...]     out)";

constexpr const char* kGraphDoc = R"(Work recorded from a stream, to be launched any number of times with one call.

A graph uses the addresses that were recorded: keep the arrays as long as the graph, and change their contents. Its
launches must have ended before it is deleted.)";

constexpr const char* kCaptureDoc = R"(Record the work that `enqueue` puts on a stream, instead of running it.

stream       int                                   handle of a stream of the current GPU, not a default one
enqueue      callable                              called once, without arguments; it must not wait for the GPU

Streams that `enqueue` makes wait for this one, and for which this one waits again, are recorded too. An exception of
`enqueue` is passed on; then nothing is left over, and the stream can be used again.)";

constexpr const char* kEventDoc = R"(Lets streams of the current GPU wait for one another, and allocates nothing for it.

One thread at a time may use an event.)";

constexpr const char* kWaitForDoc = R"(Make `stream` wait, from now on, for all work enqueued on `other` so far.

stream, other  int                                 handles of streams of the current GPU)";

constexpr const char* kChunkDoc = R"(A chunk of slices from host memory to host memory in one call, without the GIL.

stream       int                                   handle of the stream on which the graphs run
hu           any [...]                             pinned memory from which `first` takes the slices
first        Graph                                 from `hu` to `pixels`
pixels       int32 [n] or None                     pinned memory: liver pixels of each slice after `first`
rest         Graph                                 to `labels`; not launched where all `pixels` are 0
labels       any [...]                             pinned memory in which `rest` leaves the labels
threads      int                                   that copy; 0: one for each CPU

The arrays and graphs live as long as the chunk.)";

constexpr const char* kChunkRunDoc = R"(Copy slices in, run the graphs, copy their labels out; 0 where no slice has liver.

hu           any [...]                             in, of the size and dtype of the chunk's `hu`
out          any [...]                             out, of the size and dtype of the chunk's `labels`)";

}  // namespace

void bind_host(py::module_& m) {
  m.def("copy", &py_copy, kCopyDoc, py::arg("dst"), py::arg("src"), py::arg("threads") = 0);
  m.def("to_half", &py_to_half, kToHalfDoc, py::arg("dst"), py::arg("src"), py::arg("threads") = 0);
  m.def("clear", &py_clear, kClearDoc, py::arg("dst"), py::arg("threads") = 0);
  py::class_<Graph>(m, "Graph", kGraphDoc)
      .def_static("capture", &py_capture, kCaptureDoc, py::arg("stream"), py::arg("enqueue"))
      .def("launch", [](Graph& graph, std::uintptr_t stream) { without_gil([&] { graph.launch(stream); }); },
           "Enqueue the recorded work on a stream.", py::arg("stream"))
      .def_property_readonly("nodes", &Graph::nodes, "How many pieces of work the graph has.");
  py::class_<Event>(m, "Event", kEventDoc)
      .def(py::init(&py_event))
      .def("wait_for", [](Event& event, std::uintptr_t stream, std::uintptr_t other) {
        without_gil([&] { event.wait_for(stream, other); });
      }, kWaitForDoc, py::arg("stream"), py::arg("other"));
  py::class_<Chunk>(m, "Chunk", kChunkDoc)
      .def(py::init<std::uintptr_t, py::object, py::object, py::object, py::object, py::object, int>(), py::arg("stream"),
           py::arg("hu"), py::arg("first"), py::arg("pixels"), py::arg("rest"), py::arg("labels"),
           py::arg("threads") = 0)
      .def("run", &Chunk::run, kChunkRunDoc, py::arg("hu"), py::arg("out"));
}

}  // namespace trtseg
