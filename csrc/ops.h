// The ops: their parameters, and an entry point for each. README.md has the formulas.
#pragma once

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "voxel.h"

namespace trtseg {

struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : DeviceError {
  using DeviceError::DeviceError;
};

enum class Device : std::uint8_t { cpu, cuda };
enum class Type : std::uint8_t { u8, i16, i32, f16, f32 };

// A C-contiguous array that somebody else owns. `name` is the argument's, for messages.
struct View {
  const char* name;
  void* data;
  Type type;
  Device device;
  int ndim;
  std::int64_t shape[4];

  template <typename T>
  HOST_DEVICE T* as() const { return static_cast<T*>(data); }

  std::size_t bytes() const {
    constexpr std::size_t kSizes[] = {1, 2, 4, 2, 4};  // of each Type
    std::size_t size = kSizes[static_cast<int>(type)];
    for (int i = 0; i < ndim; ++i) size *= static_cast<std::size_t>(shape[i]);
    return size;
  }
};

// trtseg.fit.Fit, one Axis per dimension of a slice.
struct Fit {
  Axis y, x;
};

// While it lives, this thread rounds to nearest and keeps subnormals, whatever the process has set (libraries built with
// fast-math change the mode of a whole process). New threads inherit the mode on Linux; elsewhere they start with the
// default.
class DefaultFloats {
 public:
  DefaultFloats() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&saved_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t saved_;
};

// HU that map to 0 and 1, as float: width = hi - lo.
struct Window {
  float lo, width;
};

// Where and how a call runs.
struct Run {
  std::uintptr_t stream;  // CUDA stream handle (0: the legacy default stream); not used on the CPU
  int threads;            // CPU threads, 0: all that this process may use; not used on CUDA
};

struct Frame {
  View hu;       // in:  int16 [n, Y, X]
  View box;      // out: int32 [4], begin and end of the rows and of the columns with voxels above air; Y, 0, X, 0: none
};

struct Thick {
  View hu;       // in:  int16 [n, Y, X]
  Samples y, x;
  View mask;     // out: uint8 [y.starts(), x.starts()], 1 where something thick begins in any slice
};

struct Prepare {
  View hu;       // in:  int16 [n, Y, X]
  Fit fit;       //      (Y, X) -> (H, W)
  Window window;
  View hu_net;   // out: int16 [n, H, W]
  View x1;       // out: f32 | f16 [n, 1, H, W]
};

struct Gate {
  View l1;             // in:  f32 | f16 [n, 1, H, W]
  View hu_net;         // in:  int16 [n, H, W]
  float threshold;     //      of the liver, as a logit
  Window window;       //      of the tumour net
  View x2;             // out: f32 | f16 [n, 1, H, W]
  View liver_voxels;   // out: int32 [n]
};

struct Label {
  View l1, l2;         // in:  f32 | f16 [n, 1, H, W]
  float threshold1, threshold2;  // as logits
  Fit fit;
  View labels;         // out: uint8 [n, Y, X]
  View counts;         // out: int32 [n, 2], voxels labelled 1 and 2
};

struct Label3 {
  View logits;         // in:  f32 | f16 [n, 3, H, W]
  Fit fit;
  View labels;         // out: uint8 [n, Y, X]
  View counts;         // out: int32 [n, 2]
};

// Check and convert a HU window. Throws ArgumentError.
Window make_window(double lo, double hi);
// Check and convert a logit threshold called `name`. Throws ArgumentError.
float make_threshold(const char* name, double value);

// Refuse a number of threads that is none. Throws ArgumentError.
void check_threads(int threads);

// Refuse an output in the memory of another array of the call. Throws ArgumentError.
void check_apart(const View& output, std::initializer_list<View> others);

// Each checks its parameters, then runs on the device of the arrays. Each throws ArgumentError before any output is
// written, and DeviceError when the device fails. On CUDA an op only enqueues work on the stream.
void frame(const Frame& p, const Run& run);
void thick(const Thick& p, const Run& run);
void prepare(const Prepare& p, const Run& run);
void gate(const Gate& p, const Run& run);
void label(const Label& p, const Run& run);
void label3(const Label3& p, const Run& run);

namespace cpu {  // ops_cpu.cpp; arguments are checked already
void frame(const Frame& p, int threads);
void thick(const Thick& p, int threads);
void prepare(const Prepare& p, int threads);
void gate(const Gate& p, int threads);
void label(const Label& p, int threads);
void label3(const Label3& p, int threads);
}  // namespace cpu

namespace cuda {  // ops_cuda.cu; arguments are checked already, but not on which GPU the arrays are
void frame(const Frame& p, std::uintptr_t stream);
void thick(const Thick& p, std::uintptr_t stream);
void prepare(const Prepare& p, std::uintptr_t stream);
void gate(const Gate& p, std::uintptr_t stream);
void label(const Label& p, std::uintptr_t stream);
void label3(const Label3& p, std::uintptr_t stream);
}  // namespace cuda

}  // namespace trtseg
