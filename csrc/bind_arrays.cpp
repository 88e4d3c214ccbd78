#include "bind_arrays.h"

#include <pybind11/numpy.h>

#include <algorithm>

namespace py = pybind11;

namespace trtseg {

std::string text(py::handle value) { return py::cast<std::string>(py::str(value)); }

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
    not_contiguous(v, output ? "allocate it with np.empty" : "use .copy()");
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

View host(View v) {
  if (v.device == Device::cpu) return v;
  throw ArgumentError(std::string(v.name) + ": got an array on a GPU, expected a NumPy array");
}

}  // namespace

View input(py::handle array, const char* name, Types allowed) { return view(array, name, allowed, false); }
View output(py::handle array, const char* name, Types allowed) { return view(array, name, allowed, true); }
View host_input(py::handle array, const char* name, Types allowed) { return host(input(array, name, allowed)); }
View host_output(py::handle array, const char* name, Types allowed) { return host(output(array, name, allowed)); }

}  // namespace trtseg
