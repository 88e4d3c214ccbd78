// Python bindings of the CPU's own engine: shapes of weights and slices are checked here, sizes of maps in net.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <string>

#include "bind_net.h"
#include "conv.h"
#include "net.h"
#include "ops.h"

namespace py = pybind11;

namespace trtseg {
namespace {

using Floats = py::array_t<float, py::array::c_style>;  // given with noconvert: nothing is converted silently
using Flags = py::array_t<bool, py::array::c_style>;
using Span = std::array<int, 3>;                        // map, first channel, channels

Part part(const Span& span) { return {span[0], span[1], span[2]}; }

void check_shape(const char* name, const py::array& array, std::initializer_list<std::int64_t> expected) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(expected.size());
  py::ssize_t axis = 0;
  for (const std::int64_t length : expected) fits = fits && array.shape(axis++) == length;
  if (fits) return;
  const std::string got = py::cast<std::string>(py::str(array.attr("shape")));
  std::string wanted;
  for (const std::int64_t length : expected) wanted += (wanted.empty() ? "" : ", ") + std::to_string(length);
  throw ArgumentError(std::string(name) + ": got shape " + got + ", expected [" + wanted + "]");
}

void check_memory(const char* name, const Floats& array, bool output) {
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0 || (output && !array.writeable())) {
    throw ArgumentError(std::string(name) + ": got an array that is read-only or not aligned; pass a copy");
  }
}

const float* checked(const char* name, const Floats& array, std::initializer_list<std::int64_t> expected) {
  check_shape(name, array, expected);
  check_memory(name, array, false);
  return array.data();
}

void add_first(Net& net, const Span& dst, const Floats& weights, const Floats& bias, int stride, int pad) {
  const std::int64_t size = weights.ndim() == 4 ? weights.shape(2) : 0;
  net.add_first(part(dst), checked("weights", weights, {dst[2], 1, size, size}), checked("bias", bias, {dst[2]}),
                static_cast<int>(size), stride, pad);
}

void add_conv(Net& net, const Span& src, const Span& dst, const std::optional<Span>& pool, const Floats& weights,
              const Floats& bias) {
  const Part maxima = pool ? part(*pool) : Part{};
  net.add_conv(part(src), part(dst), pool ? &maxima : nullptr, checked("weights", weights, {dst[2], src[2], 3, 3}),
               checked("bias", bias, {dst[2]}));
}

void add_up(Net& net, const Span& src, const Span& dst, const Floats& weights, const Floats& bias) {
  net.add_up(part(src), part(dst), checked("weights", weights, {src[2], dst[2], 2, 2}),
             checked("bias", bias, {dst[2]}));
}

void add_head(Net& net, const Span& src, const Floats& weights, const Floats& bias) {
  const std::int64_t scale = weights.ndim() == 4 ? weights.shape(2) : 0;
  net.add_head(part(src), checked("weights", weights, {src[2], net.classes(), scale, scale}),
               checked("bias", bias, {net.classes()}), static_cast<int>(scale));
}

void run(Net& net, const Floats& src, Floats& dst, const std::optional<Flags>& wanted, int threads) {
  const std::int64_t n = src.ndim() == 4 ? src.shape(0) : 0;
  const float* from = checked("src", src, {n, 1, net.rows(), net.columns()});
  check_shape("dst", dst, {n, net.classes(), net.rows(), net.columns()});
  if (wanted) check_shape("wanted", *wanted, {n, net.rows(), net.columns()});
  check_memory("dst", dst, true);
  float* to = dst.mutable_data();
  const auto* flags = wanted ? reinterpret_cast<const unsigned char*>(wanted->data()) : nullptr;
  const py::gil_scoped_release release;
  net.run(from, to, flags, n, threads);
}

constexpr const char* kNetDoc = R"(A U-Net in FP32 on the CPU; 3x3 convolutions are Winograd's.

Layers run in the order in which they are added, and the head comes last. They read and write parts of maps: `src`,
`dst` and `pool` are (number of the map, first channel, channels), all channels in eights. Weights are float32, laid out
as in ONNX. A ReLU follows each convolution.)";

constexpr const char* kFirstDoc = R"(Add a convolution of the slice.

dst          (int, int, int)
weights      float32 [out, 1, size, size]
bias         float32 [out]
stride, pad  int                                   pixels between outputs; zeros on each side)";

constexpr const char* kConvDoc = R"(Add a 3x3 convolution, padded by 1.

src, dst     (int, int, int)
pool         (int, int, int) or None               gets the largest of each 2x2 pixels of dst
weights      float32 [out, in, 3, 3]
bias         float32 [out])";

constexpr const char* kUpDoc = R"(Add a transposed 2x2 convolution with stride 2, without ReLU.

src, dst     (int, int, int)
weights      float32 [in, out, 2, 2]
bias         float32 [out])";

constexpr const char* kHeadDoc = R"(Add the last layer, a transposed convolution whose stride is its size, without ReLU.

src          (int, int, int)
weights      float32 [in, classes, scale, scale]
bias         float32 [classes])";

constexpr const char* kRunDoc = R"(Compute logits. One call at a time.

They depend neither on the number of threads nor on the other slices.

src          float32 [n, 1, H, W]                  in
dst          float32 [n, classes, H, W]            out
wanted       bool [n, H, W] or None                the logits that count; the others are -65504, or what they would be
threads      int                                   0: all processors that this process may use)";

}  // namespace

void bind_net(py::module_& m) {
  py::class_<Net>(m, "Net", kNetDoc)
      .def(py::init<int, int, int>(), py::arg("rows"), py::arg("columns"), py::arg("classes"))
      .def_static("is_supported", &conv::is_supported, "Whether this processor has the instructions (AVX2 and FMA).")
      .def("add_map", &Net::add_map, "Add a map and return its number.", py::arg("rows"), py::arg("columns"),
           py::arg("channels"))
      .def("add_first", &add_first, kFirstDoc, py::arg("dst"), py::arg("weights").noconvert(),
           py::arg("bias").noconvert(), py::arg("stride"), py::arg("pad"))
      .def("add_conv", &add_conv, kConvDoc, py::arg("src"), py::arg("dst"), py::arg("pool"),
           py::arg("weights").noconvert(), py::arg("bias").noconvert())
      .def("add_up", &add_up, kUpDoc, py::arg("src"), py::arg("dst"), py::arg("weights").noconvert(),
           py::arg("bias").noconvert())
      .def("add_head", &add_head, kHeadDoc, py::arg("src"), py::arg("weights").noconvert(), py::arg("bias").noconvert())
      .def("reserve", &Net::reserve, "Take the memory that run needs for so many slices at a time.", py::arg("slices"),
           py::arg("threads"))
      .def("run", &run, kRunDoc, py::arg("src").noconvert(), py::arg("dst").noconvert(),
           py::arg("wanted").noconvert() = py::none(), py::arg("threads") = 0);
}

}  // namespace trtseg
