// Python bindings of the CPU's own engine: shapes of weights and slices are checked here, sizes of maps in net.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bind_net.h"
#include "conv.h"
#include "conv_int8.h"
#include "gil.h"
#include "net.h"
#include "ops.h"

namespace py = pybind11;

namespace trtseg {
namespace {

using Floats = py::array_t<float, py::array::c_style>;  // given with noconvert: nothing is converted silently
using Int8 = py::array_t<std::int8_t, py::array::c_style>;
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

void check_memory(const char* name, const py::array& array, bool output) {
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0 || (output && !array.writeable())) {
    throw ArgumentError(std::string(name) + ": got an array that is read-only or not aligned; pass a copy");
  }
}

void check_apart(const char* name, const py::array& output, const char* other_name, const py::array& other) {
  const auto bytes = [](const char* own, const py::array& array) {
    return View{own, const_cast<void*>(array.data()), Type::u8, Device::cpu, 1, {array.nbytes(), 0, 0, 0}};
  };
  trtseg::check_apart(bytes(name, output), {bytes(other_name, other)});
}

template <class T>
const T* checked(const char* name, const py::array_t<T, py::array::c_style>& array,
                 std::initializer_list<std::int64_t> expected) {
  check_shape(name, array, expected);
  check_memory(name, array, false);
  return array.data();
}

constexpr std::array<const conv::Products*, 2> kFp32{&conv::kAvx512, &conv::kUsual};
constexpr std::array<const conv_int8::Layers*, 6> kInt8{
    &conv_int8::kAvx512Vnni, &conv_int8::kAvxVnni,  &conv_int8::kAvx2,
    &conv_int8::kI8mm,       &conv_int8::kAsimddp, &conv_int8::kPortable};

// The names of the instruction sets of `sets` that this processor has, the fastest first.
template <class Sets>
std::vector<std::string> names_of(const Sets& sets) {
  std::vector<std::string> names;
  for (const auto* one : sets) {
    if (one->is_supported()) names.emplace_back(one->name);
  }
  return names;
}

// The instruction set of a name, or the fastest.
template <class Sets>
const auto& chosen(const char* argument, const Sets& sets, const std::optional<std::string>& name) {
  for (const auto* one : sets) {
    if (one->is_supported() && name.value_or(one->name) == one->name) return *one;
  }
  throw ArgumentError(std::string(argument) + ": got '" + name.value_or("") + "', expected one of " + argument +
                      "_instructions()");
}

std::unique_ptr<Net> make_net(int rows, int columns, int classes, const std::optional<std::string>& int8,
                              const std::optional<std::string>& fp32) {
  return std::make_unique<Net>(rows, columns, classes, chosen("fp32", kFp32, fp32), chosen("int8", kInt8, int8));
}

int add_map(Net& net, int rows, int columns, int channels, std::optional<int> zero) {
  return zero ? net.add_bytes(rows, columns, channels, *zero) : net.add_map(rows, columns, channels);
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
  const std::int64_t enlarged = weights.ndim() == 4 ? weights.shape(2) : 0;
  net.add_head(part(src), checked("weights", weights, {src[2], net.classes(), enlarged, enlarged}),
               checked("bias", bias, {net.classes()}), static_cast<int>(enlarged));
}

void add_int8_conv(Net& net, const Span& src, const Span& dst, const std::optional<Span>& pool, const Int8& weights,
                   const Floats& scale, const Floats& bias) {
  const Part maxima = pool ? part(*pool) : Part{};
  net.add_conv(part(src), part(dst), pool ? &maxima : nullptr, checked("weights", weights, {dst[2], src[2], 3, 3}),
               checked("scale", scale, {dst[2]}), checked("bias", bias, {dst[2]}));
}

void add_int8_up(Net& net, const Span& src, const Span& dst, const Int8& weights, const Floats& scale,
                 const Floats& bias) {
  net.add_up(part(src), part(dst), checked("weights", weights, {src[2], dst[2], 2, 2}),
             checked("scale", scale, {dst[2]}), checked("bias", bias, {dst[2]}));
}

void add_int8_head(Net& net, const Span& src, const Int8& weights, const Floats& scale, const Floats& bias) {
  const std::int64_t enlarged = weights.ndim() == 4 ? weights.shape(2) : 0;
  net.add_head(part(src), checked("weights", weights, {src[2], net.classes(), enlarged, enlarged}),
               checked("scale", scale, {net.classes()}), checked("bias", bias, {net.classes()}),
               static_cast<int>(enlarged));
}

void run(Net& net, const Floats& src, Floats& dst, const std::optional<Flags>& wanted, int threads) {
  const std::int64_t n = src.ndim() == 4 ? src.shape(0) : 0;
  const float* from = checked("src", src, {n, 1, net.rows(), net.columns()});
  check_shape("dst", dst, {n, net.classes(), net.rows(), net.columns()});
  if (wanted) check_shape("wanted", *wanted, {n, net.rows(), net.columns()});
  check_memory("dst", dst, true);
  check_apart("dst", dst, "src", src);
  if (wanted) check_apart("dst", dst, "wanted", *wanted);
  float* to = dst.mutable_data();
  const auto* flags = wanted ? reinterpret_cast<const unsigned char*>(wanted->data()) : nullptr;
  without_gil([&] { net.run(from, to, flags, n, threads); });
}

constexpr const char* kNetDoc = R"(A U-Net on the CPU; in FP32, 3x3 convolutions are Winograd's.

Layers run in the order in which they are added, and the head comes last. They read and write parts of maps: `src`,
`dst` and `pool` are (number of the map, first channel, channels), all channels in eights. Weights are laid out as in
ONNX. A ReLU follows each convolution.

Layers with weights of eight bits read and write maps of bytes. Of a sum of products they make ``sum * scale + bias``,
and of that the nearest byte, or a logit. Sums are exact: bytes do not depend on the instructions that compute them.

rows, columns, classes  int                        of slices and logits
int8         str or None                           one of int8_instructions(); by default the fastest
fp32         str or None                           one of fp32_instructions(), likewise)";

constexpr const char* kMapDoc = R"(Add a map and return its number.

rows, columns, channels  int
zero         int or None                           of a map of bytes, which stand for ``byte - zero``)";

constexpr const char* kInt8ConvDoc = R"(Add a quantised 3x3 convolution, padded by 1.

src, dst     (int, int, int)
pool         (int, int, int) or None               gets the largest of each 2x2 pixels of dst
weights      int8 [out, in, 3, 3]
scale, bias  float32 [out])";

constexpr const char* kInt8UpDoc = R"(Add a quantised transposed 2x2 convolution with stride 2, without ReLU.

src, dst     (int, int, int)
weights      int8 [in, out, 2, 2]
scale, bias  float32 [out])";

constexpr const char* kInt8HeadDoc = R"(Add the last layer, a quantised transposed convolution whose stride is its size.

src          (int, int, int)
weights      int8 [in, classes, size, size]
scale, bias  float32 [classes])";

constexpr const char* kFirstDoc = R"(Add a convolution of the slice. A map of bytes gets the nearest ones.

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
weights      float32 [in, classes, size, size]
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
      .def(py::init(&make_net), py::arg("rows"), py::arg("columns"), py::arg("classes"), py::arg("int8") = py::none(),
           py::arg("fp32") = py::none())
      .def_static("int8_instructions", [] { return names_of(kInt8); },
                  "Names of the instruction sets that this processor has for quantised layers, the fastest first.")
      .def_static("fp32_instructions", [] { return names_of(kFp32); },
                  "The same for layers in FP32.")
      .def_static("is_supported", [] { return conv::kUsual.is_supported(); },
                  "Whether this processor has the instructions that every net needs (AVX2 and FMA).")
      .def("add_map", &add_map, kMapDoc, py::arg("rows"), py::arg("columns"), py::arg("channels"),
           py::arg("zero") = py::none())
      .def("add_first", &add_first, kFirstDoc, py::arg("dst"), py::arg("weights").noconvert(),
           py::arg("bias").noconvert(), py::arg("stride"), py::arg("pad"))
      .def("add_conv", &add_conv, kConvDoc, py::arg("src"), py::arg("dst"), py::arg("pool"),
           py::arg("weights").noconvert(), py::arg("bias").noconvert())
      .def("add_up", &add_up, kUpDoc, py::arg("src"), py::arg("dst"), py::arg("weights").noconvert(),
           py::arg("bias").noconvert())
      .def("add_head", &add_head, kHeadDoc, py::arg("src"), py::arg("weights").noconvert(), py::arg("bias").noconvert())
      .def("add_conv", &add_int8_conv, kInt8ConvDoc, py::arg("src"), py::arg("dst"), py::arg("pool"),
           py::arg("weights").noconvert(), py::arg("scale").noconvert(), py::arg("bias").noconvert())
      .def("add_up", &add_int8_up, kInt8UpDoc, py::arg("src"), py::arg("dst"), py::arg("weights").noconvert(),
           py::arg("scale").noconvert(), py::arg("bias").noconvert())
      .def("add_head", &add_int8_head, kInt8HeadDoc, py::arg("src"), py::arg("weights").noconvert(),
           py::arg("scale").noconvert(), py::arg("bias").noconvert())
      .def("reserve", [](Net& net, int slices, int threads) { without_gil([&] { net.reserve(slices, threads); }); },
           "Take the memory that run needs for so many slices at a time.", py::arg("slices"), py::arg("threads"))
      .def("run", &run, kRunDoc, py::arg("src").noconvert(), py::arg("dst").noconvert(),
           py::arg("wanted").noconvert() = py::none(), py::arg("threads") = 0);
}

}  // namespace trtseg
