// Every check of the ops, and the switch between devices.
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace trtseg {
namespace {

constexpr std::int64_t kMaxAxis = 32767;            // rows * columns then fit the int32 counters
constexpr std::int64_t kMaxSlices = 2147483647;
constexpr int kMaxOrigin = 1 << 24;                 // native pixels beside the slice
constexpr std::int64_t kAny = -1;

std::string shape_text(const std::int64_t* shape, int ndim) {
  std::ostringstream s;
  s << '(';
  for (int i = 0; i < ndim; ++i) {
    if (i) s << ", ";
    if (shape[i] == kAny) s << 'n';
    else s << shape[i];
  }
  s << (ndim == 1 ? ",)" : ")");
  return s.str();
}

// `why` says where the expected shape comes from.
void check_shape(const View& a, std::initializer_list<std::int64_t> expected, const char* why) {
  bool same = a.ndim == static_cast<int>(expected.size());
  if (same) {
    const std::int64_t* got = a.shape;
    for (const std::int64_t e : expected) {
      same = same && (e == kAny || e == *got);
      ++got;
    }
  }
  if (same) return;
  throw ArgumentError(std::string(a.name) + ": got shape " + shape_text(a.shape, a.ndim) + ", expected " +
                      shape_text(expected.begin(), static_cast<int>(expected.size())) + " (" + why +
                      "); pass an array of that shape");
}

void check_axis(const Axis& a, const char* axis) {
  std::ostringstream s;
  if (a.native < 1 || a.net < 1 || a.native > kMaxAxis || a.net > kMaxAxis) {
    s << "fit: got " << a.native << " native and " << a.net << " net pixels along " << axis << ", expected 1 to "
      << kMaxAxis;
  } else if (!std::isfinite(a.step) || !(a.step > 0)) {
    s << "fit: got step " << a.step << " along " << axis << ", expected a positive number";
  } else if (a.offset < 0 || a.extent < 1 || a.extent > a.net || a.offset > a.net - a.extent) {
    s << "fit: got offset " << a.offset << " and extent " << a.extent << " along " << axis
      << ", expected a range inside the net's " << a.net << " pixels";
  } else if (a.origin < -kMaxOrigin || a.origin > kMaxOrigin || !(a.extent * a.step < kMaxOrigin)) {
    s << "fit: got origin " << a.origin << " and " << a.extent << " net pixels of " << a.step << " native ones along "
      << axis << ", expected all within " << kMaxOrigin << " native pixels";
  } else {
    return;
  }
  throw ArgumentError(s.str() + "; build it with a function of trtseg.fit");
}

void check_fit(const Fit& fit) {
  check_axis(fit.y, "y");
  check_axis(fit.x, "x");
}

std::int64_t check_slices(const View& a) {
  if (a.ndim > 0 && a.shape[0] > kMaxSlices) {
    throw ArgumentError(std::string(a.name) + ": got " + std::to_string(a.shape[0]) + " slices, expected at most " +
                        std::to_string(kMaxSlices) + "; process the volume in chunks");
  }
  return a.ndim > 0 ? a.shape[0] : kAny;
}

// Shape and size of slices [n, Y, X]; returns n.
std::int64_t check_any_slices(const View& a) {
  const std::int64_t n = check_slices(a);
  check_shape(a, {kAny, kAny, kAny}, "slices, rows, columns");
  const std::int64_t* s = a.shape;
  if (s[1] < 1 || s[2] < 1 || s[1] > kMaxAxis || s[2] > kMaxAxis) {
    throw ArgumentError(std::string(a.name) + ": got slices of " + std::to_string(s[1]) + "x" + std::to_string(s[2]) +
                        ", expected 1 to " + std::to_string(kMaxAxis) + " rows and columns");
  }
  return n;
}

void check_samples(const Samples& s, std::int64_t native, const char* name, const char* axis) {
  std::ostringstream text;
  if (s.begin < 0 || s.begin >= s.end || s.end > native) {
    text << "frame: got " << s.begin << " to " << s.end << " along " << axis << ", expected a part of the slice's "
         << native << " pixels; take it from `frame`";
  } else if (s.stride < 1 || s.thick < 1 || s.thick > s.count()) {
    text << name << ": got " << s.thick << " samples of every " << s.stride << " pixels, expected 1 or more of each "
         << "and no more samples than lie in the frame's " << s.end - s.begin << " pixels";
  } else {
    return;
  }
  throw ArgumentError(text.str());
}

const char* device_text(Device d) { return d == Device::cpu ? "a CPU array" : "a CUDA array"; }

void check_devices(std::initializer_list<View> arrays) {
  const View& first = *arrays.begin();
  for (const View& a : arrays) {
    if (a.device == first.device) continue;
    throw ArgumentError(std::string(a.name) + ": got " + device_text(a.device) + ", but " + first.name + " is " +
                        device_text(first.device) + "; put all arrays of a call on one device");
  }
}

// Runs `on_cpu` or `on_cuda`, whichever the arrays (checked to agree) call for.
template <typename Op, typename Cpu, typename Cuda>
void dispatch(const Op& p, Device device, const Run& run, Cpu on_cpu, [[maybe_unused]] Cuda on_cuda) {
  switch (device) {
    case Device::cpu:
      return on_cpu(p, run.threads);
    case Device::cuda:
#ifdef TRTSEG_CUDA
      return on_cuda(p, run.stream);
#else
      throw DeviceError(
          "got CUDA arrays, but this build of trtseg runs on the CPU only; rebuild it with nvcc "
          "(TRTSEG_CUDA=1 pip install .) or pass NumPy arrays");
#endif
  }
}

#ifdef TRTSEG_CUDA
#define TRTSEG_ON_CUDA(op) cuda::op
#else
#define TRTSEG_ON_CUDA(op) nullptr
#endif

}  // namespace

Window make_window(double lo, double hi) {
  const float lower = static_cast<float>(lo), width = static_cast<float>(hi) - lower;
  if (!std::isfinite(lower) || !std::isfinite(width) || !(width > 0.0f)) {
    std::ostringstream s;
    s << "window: got (" << lo << ", " << hi << "), expected two finite numbers of HU, the lower one first";
    throw ArgumentError(s.str());
  }
  return {lower, width};
}

float make_threshold(const char* name, double value) {
  const float threshold = static_cast<float>(value);
  if (std::isfinite(threshold)) return threshold;
  std::ostringstream s;
  s << name << ": got " << value << ", expected a finite logit; a probability p is log(p / (1 - p))";
  throw ArgumentError(s.str());
}

void check_threads(int threads) {
  if (threads >= 0) return;
  throw ArgumentError("threads: got " + std::to_string(threads) +
                      ", expected 0 (one for each CPU that this process may use) or more");
}

void check_apart(const View& output, std::initializer_list<View> others) {
  const auto begin = [](const View& a) { return reinterpret_cast<std::uintptr_t>(a.data); };
  const auto end = [&](const View& a) { return begin(a) + a.bytes(); };
  for (const View& other : others) {
    if (std::max(begin(output), begin(other)) >= std::min(end(output), end(other))) continue;
    throw ArgumentError(std::string(output.name) + ": got an array in the memory of " + other.name +
                        ", expected memory of its own; allocate it anew");
  }
}

void frame(const Frame& p, const Run& run) {
  check_devices({p.hu, p.box});
  check_any_slices(p.hu);
  check_shape(p.box, {4}, "begin and end of the rows, begin and end of the columns");
  check_apart(p.box, {p.hu});
  dispatch(p, p.hu.device, run, cpu::frame, TRTSEG_ON_CUDA(frame));
}

void thick(const Thick& p, const Run& run) {
  check_devices({p.hu, p.mask});
  check_any_slices(p.hu);
  check_samples(p.y, p.hu.shape[1], "rows", "y");
  check_samples(p.x, p.hu.shape[2], "columns", "x");
  check_shape(p.mask, {p.y.starts(), p.x.starts()}, "the samples at which something thick may begin");
  check_apart(p.mask, {p.hu});
  dispatch(p, p.hu.device, run, cpu::thick, TRTSEG_ON_CUDA(thick));
}

void prepare(const Prepare& p, const Run& run) {
  check_devices({p.hu, p.hu_net, p.x1});
  check_fit(p.fit);
  const std::int64_t n = check_slices(p.hu);
  check_shape(p.hu, {kAny, p.fit.y.native, p.fit.x.native}, "n slices of fit.native");
  check_shape(p.hu_net, {n, p.fit.y.net, p.fit.x.net}, "hu's slices of fit.net");
  check_shape(p.x1, {n, 1, p.fit.y.net, p.fit.x.net}, "hu's slices, one channel of fit.net");
  check_apart(p.hu_net, {p.hu, p.x1});
  check_apart(p.x1, {p.hu});
  if (n > 0) dispatch(p, p.hu.device, run, cpu::prepare, TRTSEG_ON_CUDA(prepare));
}

void gate(const Gate& p, const Run& run) {
  check_devices({p.l1, p.hu_net, p.x2, p.liver_voxels});
  const std::int64_t n = check_any_slices(p.hu_net);
  const std::int64_t* s = p.hu_net.shape;
  check_shape(p.l1, {n, 1, s[1], s[2]}, "one channel of hu_net's slices");
  check_shape(p.x2, {n, 1, s[1], s[2]}, "one channel of hu_net's slices");
  check_shape(p.liver_voxels, {n}, "one counter per slice");
  check_apart(p.x2, {p.l1, p.hu_net, p.liver_voxels});
  check_apart(p.liver_voxels, {p.l1, p.hu_net});
  if (n > 0) dispatch(p, p.l1.device, run, cpu::gate, TRTSEG_ON_CUDA(gate));
}

void label(const Label& p, const Run& run) {
  check_devices({p.l1, p.l2, p.labels, p.counts});
  check_fit(p.fit);
  const std::int64_t n = check_slices(p.l1);
  check_shape(p.l1, {kAny, 1, p.fit.y.net, p.fit.x.net}, "n slices, one channel of fit.net");
  check_shape(p.l2, {n, 1, p.fit.y.net, p.fit.x.net}, "l1's slices, one channel of fit.net");
  check_shape(p.labels, {n, p.fit.y.native, p.fit.x.native}, "l1's slices of fit.native");
  check_shape(p.counts, {n, 2}, "two counters per slice");
  check_apart(p.labels, {p.l1, p.l2, p.counts});
  check_apart(p.counts, {p.l1, p.l2});
  if (n > 0) dispatch(p, p.l1.device, run, cpu::label, TRTSEG_ON_CUDA(label));
}

void label3(const Label3& p, const Run& run) {
  check_devices({p.logits, p.labels, p.counts});
  check_fit(p.fit);
  const std::int64_t n = check_slices(p.logits);
  check_shape(p.logits, {kAny, 3, p.fit.y.net, p.fit.x.net}, "n slices, three channels of fit.net");
  check_shape(p.labels, {n, p.fit.y.native, p.fit.x.native}, "the logits' slices of fit.native");
  check_shape(p.counts, {n, 2}, "two counters per slice");
  check_apart(p.labels, {p.logits, p.counts});
  check_apart(p.counts, {p.logits});
  if (n > 0) dispatch(p, p.logits.device, run, cpu::label3, TRTSEG_ON_CUDA(label3));
}

}  // namespace trtseg
