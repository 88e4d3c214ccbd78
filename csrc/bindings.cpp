// Python bindings: the kind, dtype and layout of array arguments, docstrings, and the GIL. ops.cpp checks shapes and
// numbers. No array is copied or converted: an array that does not fit is an error.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <string>

#include "bind_net.h"
#include "graph.h"
#include "host_copy.h"
#include "ops.h"

namespace py = pybind11;
using namespace trtseg;

namespace {

struct TypeName {
  Type type;
  const char* name;
  char kind;
  int bytes;
};
constexpr TypeName kTypes[] = {{Type::u8, "uint8", 'u', 1},
                               {Type::i16, "int16", 'i', 2},
                               {Type::i32, "int32", 'i', 4},
                               {Type::f16, "float16", 'f', 2},
                               {Type::f32, "float32", 'f', 4}};
using Types = std::initializer_list<Type>;

std::string text(py::handle value) { return py::cast<std::string>(py::str(value)); }

// `kind` and `bytes` as in NumPy's type strings; the byte order has been checked. `got` makes text of the dtype, which
// takes longer than all the rest of a call.
template <typename Got>
Type find_type(const char* name, char kind, py::ssize_t bytes, Types allowed, Got got) {
  std::string expected;
  for (const Type a : allowed) {
    for (const TypeName& t : kTypes) {
      if (t.type != a) continue;
      if (t.kind == kind && t.bytes == bytes) return a;
      expected += (expected.empty() ? "" : " or ") + std::string(t.name);
    }
  }
  throw ArgumentError(std::string(name) + ": got dtype " + got() + ", expected " + expected +
                      "; convert it with .astype(...) (nothing is converted silently)");
}

void set_shape(View& v, const py::tuple& shape) {
  if (shape.size() > 4) {
    throw ArgumentError(std::string(v.name) + ": got shape " + text(shape) + ", expected at most 4 dimensions");
  }
  v.ndim = static_cast<int>(shape.size());
  for (int i = 0; i < v.ndim; ++i) v.shape[i] = shape[static_cast<std::size_t>(i)].cast<std::int64_t>();
}

[[noreturn]] void not_contiguous(const View& v, const char* how) {
  throw ArgumentError(std::string(v.name) + ": got an array that is not C-contiguous and aligned, expected one that is; " + how);
}

[[noreturn]] void read_only(const View& v) {
  throw ArgumentError(std::string(v.name) + ": got a read-only array, expected a writeable one; it is an output: pass "
                      "an array that may be overwritten");
}

View numpy_view(const py::array& a, const char* name, Types allowed, bool output) {
  const py::dtype type = a.dtype();
  const char order = type.byteorder();
  constexpr char kHere = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';  // nibabel names it: "<i2"
  const bool native = order == '=' || order == '|' || order == kHere;
  const auto got = [&] { return text(type); };
  View v{name, nullptr, find_type(name, native ? type.kind() : '?', type.itemsize(), allowed, got),
         Device::cpu, 0, {0, 0, 0, 0}};
  if (a.ndim() > 4) set_shape(v, a.attr("shape"));  // refuses it
  v.ndim = static_cast<int>(a.ndim());
  std::copy(a.shape(), a.shape() + v.ndim, v.shape);
  constexpr int kLayout = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((a.flags() & kLayout) != kLayout) {
    not_contiguous(v, output ? "allocate it with np.empty" : "use np.ascontiguousarray");
  }
  if (output && !a.writeable()) read_only(v);
  v.data = const_cast<void*>(a.data());  // inputs are only read
  return v;
}

// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, versions 2 and 3
View cuda_view(const py::dict& interface, const char* name, Types allowed, bool output) {
  const auto typestr = interface["typestr"].cast<std::string>();
  const bool native = typestr.size() == 3 && (typestr[0] == '<' || typestr[0] == '|');
  const int bytes = native ? typestr[2] - '0' : 0;
  const auto got = [&] { return "'" + typestr + "'"; };
  View v{name, nullptr, find_type(name, native ? typestr[1] : '?', bytes, allowed, got), Device::cuda, 0, {0, 0, 0, 0}};
  set_shape(v, interface["shape"]);
  // Every library gives None for a C-contiguous array; trtseg/cuda/arrays.py looks at strides that are there.
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    not_contiguous(v, "make it contiguous (PyTorch: .contiguous(), CuPy: cupy.ascontiguousarray)");
  }
  const py::tuple data = interface["data"];
  v.data = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  if (reinterpret_cast<std::uintptr_t>(v.data) % static_cast<std::uintptr_t>(bytes) != 0) {
    not_contiguous(v, "copy it to newly allocated memory");
  }
  if (output && data[1].cast<bool>()) read_only(v);
  return v;
}

View view(py::handle array, const char* name, Types allowed, bool output) {
  if (py::isinstance<py::array>(array)) {
    return numpy_view(py::reinterpret_borrow<py::array>(array), name, allowed, output);
  }
  if (py::hasattr(array, "__cuda_array_interface__")) {
    py::dict interface;
    try {
      interface = array.attr("__cuda_array_interface__");
      return cuda_view(interface, name, allowed, output);
    } catch (const py::error_already_set& e) {
      throw ArgumentError(std::string(name) + ": got a malformed __cuda_array_interface__ (" + e.what() +
                          "), expected version 2 or 3 of it");
    } catch (const py::cast_error& e) {
      throw ArgumentError(std::string(name) + ": got a malformed __cuda_array_interface__ (" + e.what() +
                          "), expected version 2 or 3 of it");
    }
  }
  throw ArgumentError(std::string(name) + ": got " + text(py::type::of(array).attr("__name__")) +
                      ", expected a NumPy array, or an object with __cuda_array_interface__ for CUDA; convert it");
}

View input(py::handle array, const char* name, Types allowed) { return view(array, name, allowed, false); }
View output(py::handle array, const char* name, Types allowed) { return view(array, name, allowed, true); }

template <typename T>
std::pair<T, T> pair_of(py::handle value, const char* name, const char* expected) {
  try {
    return py::cast<std::pair<T, T>>(value);
  } catch (const py::cast_error&) {
    throw ArgumentError(std::string(name) + ": got " + text(py::repr(value)) + ", expected " + expected +
                        "; pass a tuple of two numbers");
  }
}

Fit to_fit(py::handle fit) {
  for (const char* field : {"native", "net", "step", "offset", "extent", "origin"}) {
    if (!py::hasattr(fit, field)) {
      throw ArgumentError("fit: got " + text(py::type::of(fit).attr("__name__")) + ", expected a trtseg.fit.Fit; build "
                          "it with a function of trtseg.fit");
    }
  }
  const auto native = pair_of<int>(fit.attr("native"), "fit.native", "(rows, columns)");
  const auto net = pair_of<int>(fit.attr("net"), "fit.net", "(rows, columns)");
  const auto step = pair_of<double>(fit.attr("step"), "fit.step", "native pixels per net pixel, (y, x)");
  const auto offset = pair_of<int>(fit.attr("offset"), "fit.offset", "net pixels, (y, x)");
  const auto extent = pair_of<int>(fit.attr("extent"), "fit.extent", "net pixels, (y, x)");
  const auto origin = pair_of<int>(fit.attr("origin"), "fit.origin", "native pixels, (y, x)");
  return {{native.first, net.first, step.first, offset.first, extent.first, origin.first},
          {native.second, net.second, step.second, offset.second, extent.second, origin.second}};
}

Window to_window(py::handle window) {
  const auto w = pair_of<double>(window, "window", "(lower, upper) in HU");
  return make_window(w.first, w.second);
}

// Rows or columns that `thick` looks at.
Samples to_samples(const std::array<int, 4>& frame, py::handle value, const char* name, int axis) {
  const auto s = pair_of<int>(value, name, "(pixels from sample to sample, samples that are thick)");
  return {frame[static_cast<std::size_t>(2 * axis)], frame[static_cast<std::size_t>(2 * axis + 1)], s.first, s.second};
}

std::array<int, 4> to_frame(py::handle frame) {
  try {
    return py::cast<std::array<int, 4>>(frame);
  } catch (const py::cast_error&) {
    throw ArgumentError("frame: got " + text(py::repr(frame)) + ", expected begin and end of the rows, begin and end of "
                        "the columns; pass four integers");
  }
}

void py_frame(py::handle hu, py::handle box, std::uintptr_t stream, int threads) {
  const Frame p{input(hu, "hu", {Type::i16}), output(box, "box", {Type::i32})};
  const py::gil_scoped_release release;
  frame(p, {stream, threads});
}

void py_thick(py::handle hu, py::handle frame, py::handle rows, py::handle columns, py::handle mask,
              std::uintptr_t stream, int threads) {
  const std::array<int, 4> box = to_frame(frame);
  const Thick p{input(hu, "hu", {Type::i16}), to_samples(box, rows, "rows", 0), to_samples(box, columns, "columns", 1),
                output(mask, "mask", {Type::u8})};
  const py::gil_scoped_release release;
  thick(p, {stream, threads});
}

constexpr Types kFloats = {Type::f32, Type::f16};

void py_prepare(py::handle hu, py::handle fit, py::handle window, py::handle hu_net, py::handle x1,
                std::uintptr_t stream, int threads) {
  const DefaultFloats mode;
  const Prepare p{input(hu, "hu", {Type::i16}), to_fit(fit), to_window(window),
                  output(hu_net, "hu_net", {Type::i16}), output(x1, "x1", kFloats)};
  const py::gil_scoped_release release;
  prepare(p, {stream, threads});
}

void py_gate(py::handle l1, py::handle hu_net, double logit_threshold, py::handle window, py::handle x2,
             py::handle liver_voxels, std::uintptr_t stream, int threads) {
  const DefaultFloats mode;
  const Gate p{input(l1, "l1", kFloats),
               input(hu_net, "hu_net", {Type::i16}),
               make_threshold("logit_threshold", logit_threshold),
               to_window(window),
               output(x2, "x2", kFloats),
               output(liver_voxels, "liver_voxels", {Type::i32})};
  const py::gil_scoped_release release;
  gate(p, {stream, threads});
}

void py_label(py::handle l1, py::handle l2, py::handle logit_thresholds, py::handle fit, py::handle labels,
              py::handle counts, std::uintptr_t stream, int threads) {
  const DefaultFloats mode;
  const auto t = pair_of<double>(logit_thresholds, "logit_thresholds", "(liver, tumour) as logits");
  const Label p{input(l1, "l1", kFloats),
                input(l2, "l2", kFloats),
                make_threshold("logit_thresholds[0]", t.first),
                make_threshold("logit_thresholds[1]", t.second),
                to_fit(fit),
                output(labels, "labels", {Type::u8}),
                output(counts, "counts", {Type::i32})};
  const py::gil_scoped_release release;
  label(p, {stream, threads});
}

void py_label3(py::handle logits, py::handle fit, py::handle labels, py::handle counts, std::uintptr_t stream,
               int threads) {
  const DefaultFloats mode;
  const Label3 p{input(logits, "logits", kFloats), to_fit(fit), output(labels, "labels", {Type::u8}),
                 output(counts, "counts", {Type::i32})};
  const py::gil_scoped_release release;
  label3(p, {stream, threads});
}

constexpr Types kAll = {Type::u8, Type::i16, Type::i32, Type::f16, Type::f32};

View host(View v) {
  if (v.device == Device::cpu) return v;
  throw ArgumentError(std::string(v.name) + ": got an array on a GPU, expected a NumPy array");
}
View host_input(py::handle array, const char* name) { return host(input(array, name, kAll)); }
View host_output(py::handle array, const char* name) { return host(output(array, name, kAll)); }

// Two arrays of one size and dtype; the error is about the first one.
void check_same(const View& given, const View& expected) {
  if (given.bytes() == expected.bytes() && given.type == expected.type) return;
  throw ArgumentError(std::string(given.name) + ": got " + std::to_string(given.bytes()) + " bytes, expected the " +
                      std::to_string(expected.bytes()) + " bytes of " + expected.name + " and its dtype; pass arrays " +
                      "of one shape");
}

void py_copy(py::handle dst, py::handle src, int threads) {
  const View to = host_output(dst, "dst"), from = host_input(src, "src");
  check_same(from, to);
  const py::gil_scoped_release release;
  host_copy(to.data, from.data, to.bytes(), threads);
}

void py_clear(py::handle dst, int threads) {
  const View to = host_output(dst, "dst");
  const py::gil_scoped_release release;
  host_clear(to.data, to.bytes(), threads);
}

// A chunk of slices from host memory to host memory in one call, see kChunkDoc. It keeps its arrays and graphs alive.
class Chunk {
 public:
  Chunk(std::uintptr_t stream, py::object hu, py::object first, py::object pixels, py::object rest, py::object labels)
      : kept_{hu, first, pixels, rest, labels}, stream_(stream), hu_(host_output(hu, "hu")),
        labels_(host_input(labels, "labels")), first_(first.cast<Graph&>()), rest_(rest.cast<Graph&>()) {
    if (pixels.is_none()) return;
    const View view = host(input(pixels, "pixels", {Type::i32}));
    pixels_ = static_cast<const std::int32_t*>(view.data);
    slices_ = view.bytes() / sizeof(std::int32_t);
  }

  void run(py::handle hu, py::handle out) {
    const View from = host_input(hu, "hu"), to = host_output(out, "out");
    check_same(from, hu_);
    check_same(to, labels_);
    const py::gil_scoped_release release;
    host_copy(hu_.data, from.data, from.bytes(), 0);
    first_.run(stream_);
    if (pixels_ && std::all_of(pixels_, pixels_ + slices_, [](std::int32_t n) { return n == 0; })) {
      host_clear(to.data, to.bytes(), 0);
      return;
    }
    rest_.run(stream_);
    host_copy(to.data, labels_.data, to.bytes(), 0);
  }

 private:
  std::array<py::object, 5> kept_;
  std::uintptr_t stream_;
  View hu_, labels_;
  Graph &first_, &rest_;
  const std::int32_t* pixels_ = nullptr;
  std::size_t slices_ = 0;
};

#ifdef TRTSEG_CUDA
std::unique_ptr<Graph> py_capture(std::uintptr_t stream, const py::function& enqueue) {
  const py::gil_scoped_release release;
  return cuda::capture(stream, [&enqueue] {
    const py::gil_scoped_acquire acquire;
    enqueue();
  });
}

std::unique_ptr<Event> py_event() {
  const py::gil_scoped_release release;
  return cuda::make_event();
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

py::dict build_info() {
  py::dict info;
#ifdef TRTSEG_CUDA
  info["cuda"] = true;
  info["cuda_version"] = TRTSEG_CUDA_VERSION;
  info["cuda_archs"] = TRTSEG_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = py::none();
#endif
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "g++ " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  return info;
}

// The Python class trtseg.errors.<name>; imported when first needed, so that this module can be imported alone.
py::object error_class(const char* name) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> errors;
  return errors.call_once_and_store_result([] { return py::object(py::module_::import("trtseg.errors")); })
      .get_stored()
      .attr(name);
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const ArgumentError& e) {
    py::set_error(error_class("ArgumentError"), e.what());
  } catch (const OutOfMemory& e) {
    py::set_error(error_class("OutOfMemoryError"), e.what());
  } catch (const DeviceError& e) {
    py::set_error(error_class("DeviceError"), e.what());
  }
}

constexpr const char* kModuleDoc = R"(The fused ops: NumPy arrays run on the CPU, CUDA arrays on their GPU.

Every output is allocated by the caller and written completely. Arrays must be C-contiguous and of exactly the dtype
named; nothing is converted or copied. All arrays of a call must be on one device. On CUDA a call enqueues its work on
`stream` (an integer handle) and returns; ordering it after the work that makes its inputs is the caller's part. On the
CPU a call uses up to `threads` threads (0: all that the process may use). Bad arguments raise
trtseg.errors.ArgumentError before anything is written.)";

constexpr const char* kFrameDoc = R"(Find the box of all voxels above -1000 HU, over all slices.

hu           int16 [n, Y, X]                       in, Hounsfield units
box          int32 [4]                             out, begin and end of the rows, begin and end of the columns;
                                                   (Y, 0, X, 0) where there is no such voxel)";

constexpr const char* kThickDoc = R"(Find where something thick above -400 HU begins in any slice.

hu           int16 [n, Y, X]                       in, Hounsfield units
frame        (int, int, int, int)                  the box that is looked at, as of `frame`
rows         (int, int)                            pixels from sample to sample, from the frame's begin; how many
                                                   samples in a row are thick
columns      (int, int)                            the same along the other axis
mask         uint8 [j, i]                          out, 1 where all samples from (j, i) on are above -400 HU that are
                                                   thick; there are ceil(frame / pixels) - thick + 1 along an axis)";

constexpr const char* kPrepareDoc = R"(Lay CT slices on the net's grid and map a HU window to [0, 1].

hu           int16 [n, Y, X]                       in, Hounsfield units; (Y, X) == fit.native
fit          trtseg.fit.Fit
window       (float, float)                        HU that map to 0 and 1
hu_net       int16 [n, H, W]                       out; (H, W) == fit.net; air outside the field of view
x1           float32 or float16 [n, 1, H, W]       out, clamp((hu_net - lo) / (hi - lo), 0, 1))";

constexpr const char* kGateDoc = R"(Window the slices for the tumour net and blank everything outside the liver.

l1               float32 or float16 [n, 1, H, W]   in, logits of the liver net; NaN is background
hu_net           int16 [n, H, W]                   in, from prepare
logit_threshold  float                             a pixel is liver where its logit is larger
window           (float, float)                    HU that map to 0 and 1 for the tumour net
x2               float32 or float16 [n, 1, H, W]   out, 0 outside the liver
liver_voxels     int32 [n]                         out, liver pixels per slice)";

constexpr const char* kLabelDoc = R"(Bring the logits of both nets back to the native grid and label its voxels.

l1, l2            float32 or float16 [n, 1, H, W]  in, logits of the liver and the tumour net; l2 of a slice whose
                                                   liver_voxels are 0 is never looked at
logit_thresholds  (float, float)                   of liver and tumour
fit               trtseg.fit.Fit                   the same as for prepare
labels            uint8 [n, Y, X]                  out, 0 background, 1 liver, 2 tumour
counts            int32 [n, 2]                     out, voxels labelled 1 and 2)";

constexpr const char* kLabel3Doc = R"(Label native voxels by the largest of three interpolated logits.

logits       float32 or float16 [n, 3, H, W]       in, background, liver, tumour; NaN is the lowest
fit          trtseg.fit.Fit                        the same as for prepare
labels       uint8 [n, Y, X]                       out, 0 background, 1 liver, 2 tumour; the lowest class on ties
counts       int32 [n, 2]                          out, voxels labelled 1 and 2)";

constexpr const char* kCopyDoc = R"(Copy one NumPy array over another of the same size and dtype, on several threads.

dst          any [...]                             out
src          any [...]                             in)";

constexpr const char* kClearDoc = R"(Set a NumPy array to 0, on several threads.

dst          any [...]                             out)";

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

The arrays and graphs live as long as the chunk.)";

constexpr const char* kChunkRunDoc = R"(Copy slices in, run the graphs, copy their labels out; 0 where no slice has liver.

hu           any [...]                             in, of the size and dtype of the chunk's `hu`
out          any [...]                             out, of the size and dtype of the chunk's `labels`)";

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = kModuleDoc;
  py::register_exception_translator(&translate);
  m.def("frame", &py_frame, kFrameDoc, py::arg("hu"), py::arg("box"), py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("thick", &py_thick, kThickDoc, py::arg("hu"), py::arg("frame"), py::arg("rows"), py::arg("columns"),
        py::arg("mask"), py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("prepare", &py_prepare, kPrepareDoc, py::arg("hu"), py::arg("fit"), py::arg("window"), py::arg("hu_net"),
        py::arg("x1"), py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("gate", &py_gate, kGateDoc, py::arg("l1"), py::arg("hu_net"), py::arg("logit_threshold"), py::arg("window"),
        py::arg("x2"), py::arg("liver_voxels"), py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("label", &py_label, kLabelDoc, py::arg("l1"), py::arg("l2"), py::arg("logit_thresholds"), py::arg("fit"),
        py::arg("labels"), py::arg("counts"), py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("label3", &py_label3, kLabel3Doc, py::arg("logits"), py::arg("fit"), py::arg("labels"), py::arg("counts"),
        py::arg("stream") = 0, py::arg("threads") = 0);
  m.def("copy", &py_copy, kCopyDoc, py::arg("dst"), py::arg("src"), py::arg("threads") = 0);
  m.def("clear", &py_clear, kClearDoc, py::arg("dst"), py::arg("threads") = 0);
  py::class_<Graph>(m, "Graph", kGraphDoc)
      .def_static("capture", &py_capture, kCaptureDoc, py::arg("stream"), py::arg("enqueue"))
      .def("launch", &Graph::launch, "Enqueue the recorded work on a stream.", py::arg("stream"),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("nodes", &Graph::nodes, "How many pieces of work the graph has.");
  py::class_<Event>(m, "Event", kEventDoc)
      .def(py::init(&py_event))
      .def("wait_for", &Event::wait_for, kWaitForDoc, py::arg("stream"), py::arg("other"),
           py::call_guard<py::gil_scoped_release>());
  py::class_<Chunk>(m, "Chunk", kChunkDoc)
      .def(py::init<std::uintptr_t, py::object, py::object, py::object, py::object, py::object>(), py::arg("stream"),
           py::arg("hu"), py::arg("first"), py::arg("pixels"), py::arg("rest"), py::arg("labels"))
      .def("run", &Chunk::run, kChunkRunDoc, py::arg("hu"), py::arg("out"));
  bind_net(m);
  m.def("build_info", &build_info,
        "How this extension was built: {'cuda': bool, 'cuda_version', 'cuda_archs': str or None, 'compiler': str}.");
}
