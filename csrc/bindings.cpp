// Python bindings: the module, its errors, and the ops with their docstrings. ops.cpp checks shapes and numbers.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "bind_arrays.h"
#include "bind_host.h"
#include "bind_net.h"
#include "gil.h"
#include "ops.h"

namespace py = pybind11;
using namespace trtseg;

namespace {

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

Run to_run(std::uintptr_t stream, int threads) {
  check_threads(threads);
  return {stream, threads};
}

void py_frame(py::handle hu, py::handle box, std::uintptr_t stream, int threads) {
  const Frame p{input(hu, "hu", {Type::i16}), output(box, "box", {Type::i32})};
  without_gil([&] { frame(p, to_run(stream, threads)); });
}

void py_thick(py::handle hu, py::handle frame, py::handle rows, py::handle columns, py::handle mask,
              std::uintptr_t stream, int threads) {
  const std::array<int, 4> box = to_frame(frame);
  const Thick p{input(hu, "hu", {Type::i16}), to_samples(box, rows, "rows", 0), to_samples(box, columns, "columns", 1),
                output(mask, "mask", {Type::u8})};
  without_gil([&] { thick(p, to_run(stream, threads)); });
}

void py_prepare(py::handle hu, py::handle fit, py::handle window, py::handle hu_net, py::handle x1,
                std::uintptr_t stream, int threads) {
  const DefaultFloats mode;
  const Prepare p{input(hu, "hu", {Type::i16}), to_fit(fit), to_window(window),
                  output(hu_net, "hu_net", {Type::i16}), output(x1, "x1", kFloats)};
  without_gil([&] { prepare(p, to_run(stream, threads)); });
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
  without_gil([&] { gate(p, to_run(stream, threads)); });
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
  without_gil([&] { label(p, to_run(stream, threads)); });
}

void py_label3(py::handle logits, py::handle fit, py::handle labels, py::handle counts, std::uintptr_t stream,
               int threads) {
  const DefaultFloats mode;
  const Label3 p{input(logits, "logits", kFloats), to_fit(fit), output(labels, "labels", {Type::u8}),
                 output(counts, "counts", {Type::i32})};
  without_gil([&] { label3(p, to_run(stream, threads)); });
}

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
named; nothing is converted or copied. All arrays of a call must be on one device, and no output in the memory of
another array. On CUDA a call enqueues its work on `stream` (an integer handle) and returns; ordering it after the work
that makes its inputs is the caller's part. On the CPU a call uses up to `threads` threads (0: all that the process may
use). Bad arguments raise trtseg.errors.ArgumentError before anything is written.)";

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
  bind_host(m);
  bind_net(m);
  m.def("build_info", &build_info,
        "How this extension was built: {'cuda': bool, 'cuda_version', 'cuda_archs': str or None, 'compiler': str}.");
}
