// The ops on CUDA: kernels, in which each thread finds its voxel and writes it, and launchers. The arithmetic is in
// voxel.h. One thread per voxel of the output, in `frame` per pixel of the slices; slices along z. The maps of an axis
// need doubles, which many GPUs compute slowly, so a block computes the maps of its 32 columns and 8 rows once.
#include <algorithm>
#include <initializer_list>

#include "cuda_util.h"
#include "ops.h"

namespace trtseg::cuda {
namespace {

constexpr int kColumns = 32, kRows = 8, kThreads = kColumns * kRows;

__device__ float load(const View& a, std::int64_t i) {
  return a.type == Type::f16 ? half_to_float(a.as<std::uint16_t>()[i]) : a.as<float>()[i];
}

__device__ void store(const View& a, std::int64_t i, float value) {
  if (a.type == Type::f16) a.as<std::uint16_t>()[i] = float_to_half(value);
  else a.as<float>()[i] = value;
}

__global__ void frame_start_kernel(Frame p) {
  std::int32_t* box = p.box.as<std::int32_t>();
  box[0] = static_cast<std::int32_t>(p.hu.shape[1]), box[1] = 0;
  box[2] = static_cast<std::int32_t>(p.hu.shape[2]), box[3] = 0;
}

// Each thread looks at one pixel of all slices, until a slice has something there: in most CTs the first slices do.
__global__ void __launch_bounds__(kThreads) frame_kernel(Frame p) {
  __shared__ std::int32_t box[4];
  const std::int64_t n = p.hu.shape[0], rows = p.hu.shape[1], columns = p.hu.shape[2];
  const int x = static_cast<int>(blockIdx.x * kColumns + threadIdx.x);
  const int y = static_cast<int>(blockIdx.y * kRows + threadIdx.y);
  const bool leads = threadIdx.x == 0 && threadIdx.y == 0;
  if (leads) box[0] = 32767, box[1] = 0, box[2] = 32767, box[3] = 0;
  __syncthreads();
  bool any = false;
  if (x < columns && y < rows) {
    const std::int16_t* pixel = p.hu.as<std::int16_t>() + y * columns + x;
    constexpr int kAtOnce = 8;  // loads that are on their way at the same time
    for (std::int64_t z = 0; z < n && !any; z += kAtOnce) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) any |= above_air(pixel[(z + k < n ? z + k : n - 1) * rows * columns]);
    }
  }
  if (any) {
    atomicMin(box, y);
    atomicMax(box + 1, y + 1);
    atomicMin(box + 2, x);
    atomicMax(box + 3, x + 1);
  }
  __syncthreads();
  if (leads && box[1] > 0) {
    std::int32_t* out = p.box.as<std::int32_t>();
    atomicMin(out, box[0]);
    atomicMax(out + 1, box[1]);
    atomicMin(out + 2, box[2]);
    atomicMax(out + 3, box[3]);
  }
}

__global__ void __launch_bounds__(kThreads) thick_kernel(Thick p) {
  const std::int64_t width = p.hu.shape[2], native = p.hu.shape[1] * width;
  const int i = static_cast<int>(blockIdx.x * kColumns + threadIdx.x);
  const int j = static_cast<int>(blockIdx.y * kRows + threadIdx.y);
  if (i >= p.x.starts() || j >= p.y.starts()) return;
  for (std::int64_t n = blockIdx.z; n < p.hu.shape[0]; n += gridDim.z) {
    const std::int16_t* slice = p.hu.as<std::int16_t>() + n * native;
    if (!thick_at(slice, static_cast<int>(width), p.y, p.x, j, i)) continue;
    p.mask.as<std::uint8_t>()[static_cast<std::int64_t>(j) * p.x.starts() + i] = 1;  // so do threads of other slices
    return;
  }
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(Prepare p) {
  __shared__ Span columns[kColumns], rows[kRows];
  const int x = static_cast<int>(blockIdx.x * kColumns + threadIdx.x);
  const int y = static_cast<int>(blockIdx.y * kRows + threadIdx.y);
  if (threadIdx.y == 0) columns[threadIdx.x] = prepare_span(p.fit.x, x);
  if (threadIdx.x == 0) rows[threadIdx.y] = prepare_span(p.fit.y, y);
  __syncthreads();
  if (x >= p.fit.x.net || y >= p.fit.y.net) return;
  const Span column = columns[threadIdx.x], row = rows[threadIdx.y];
  const bool inside = column.count > 0 && row.count > 0;
  const std::int64_t native = static_cast<std::int64_t>(p.fit.y.native) * p.fit.x.native;
  for (std::int64_t n = blockIdx.z; n < p.hu.shape[0]; n += gridDim.z) {
    const std::int16_t* slice = p.hu.as<std::int16_t>() + n * native;
    const std::int16_t hu = inside ? round_hu(prepare_value(slice, p.fit.x.native, row, column)) : kAirHu;
    const std::int64_t at = (n * p.fit.y.net + y) * p.fit.x.net + x;
    p.hu_net.as<std::int16_t>()[at] = hu;
    store(p.x1, at, window_hu(hu, p.window.lo, p.window.width));
  }
}

__global__ void __launch_bounds__(kThreads) gate_kernel(Gate p) {
  const std::int64_t pixels = p.hu_net.shape[1] * p.hu_net.shape[2];
  const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t n = blockIdx.y; n < p.hu_net.shape[0]; n += gridDim.y) {
    const std::int64_t at = n * pixels + pixel;
    bool liver = false;
    if (pixel < pixels) {
      liver = above(load(p.l1, at), p.threshold);
      const float t = window_hu(p.hu_net.as<std::int16_t>()[at], p.window.lo, p.window.width);
      store(p.x2, at, liver ? t : 0.0f);
    }
    const int count = __syncthreads_count(liver);
    if (threadIdx.x == 0 && count > 0) atomicAdd(p.liver_voxels.as<std::int32_t>() + n, count);
  }
}

// The margins of one channel, interpolated at a native voxel.
__device__ float interpolate(const View& logits, std::int64_t channel, float threshold, const Lerp& y, const Lerp& x) {
  const std::int64_t height = logits.shape[2], width = logits.shape[3];
  const std::int64_t top = (channel * height + y.i) * width, bottom = y.i + 1 < height ? top + width : top;
  const int right = x.i + 1 < width ? x.i + 1 : x.i;
  const float d00 = margin(load(logits, top + x.i), threshold), d10 = margin(load(logits, bottom + x.i), threshold);
  const float d01 = margin(load(logits, top + right), threshold), d11 = margin(load(logits, bottom + right), threshold);
  return mix(x.g, mix(y.g, d00, y.f, d10), x.f, mix(y.g, d01, y.f, d11));
}

__device__ std::uint8_t classify(const Label& p, std::int64_t n, const Lerp& y, const Lerp& x) {
  const float liver = interpolate(p.l1, n, p.threshold1, y, x);
  return liver > 0.0f ? cascade_class(liver, interpolate(p.l2, n, p.threshold2, y, x)) : std::uint8_t{0};
}

__device__ std::uint8_t classify(const Label3& p, std::int64_t n, const Lerp& y, const Lerp& x) {
  return largest_class(interpolate(p.logits, n * 3, 0.0f, y, x), interpolate(p.logits, n * 3 + 1, 0.0f, y, x),
                       interpolate(p.logits, n * 3 + 2, 0.0f, y, x));
}

// Op: Label or Label3
template <typename Op>
__global__ void __launch_bounds__(kThreads) label_kernel(Op p) {
  __shared__ Lerp columns[kColumns], rows[kRows];
  const int x = static_cast<int>(blockIdx.x * kColumns + threadIdx.x);
  const int y = static_cast<int>(blockIdx.y * kRows + threadIdx.y);
  if (threadIdx.y == 0) columns[threadIdx.x] = label_lerp(p.fit.x, x);
  if (threadIdx.x == 0) rows[threadIdx.y] = label_lerp(p.fit.y, y);
  __syncthreads();
  const Lerp column = columns[threadIdx.x], row = rows[threadIdx.y];
  for (std::int64_t n = blockIdx.z; n < p.labels.shape[0]; n += gridDim.z) {
    std::uint8_t c = 0;
    if (x < p.fit.x.native && y < p.fit.y.native) {
      c = classify(p, n, row, column);
      p.labels.template as<std::uint8_t>()[(n * p.fit.y.native + y) * p.fit.x.native + x] = c;
    }
    const int ones = __syncthreads_count(c == 1), twos = __syncthreads_count(c == 2);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      std::int32_t* counts = p.counts.template as<std::int32_t>() + n * 2;
      if (ones > 0) atomicAdd(counts, ones);
      if (twos > 0) atomicAdd(counts + 1, twos);
    }
  }
}

int device_of(const View& a) {
  cudaPointerAttributes attributes{};
  CUDA_CHECK(cudaPointerGetAttributes(&attributes, a.data));
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
    throw ArgumentError(std::string(a.name) + ": got an address that is not GPU memory, expected an array on a GPU; "
                        "copy it there");
  }
  return attributes.device;
}

// The GPU that all arrays are on.
int device_of(std::initializer_list<View> arrays) {
  const View& first = *arrays.begin();
  const int device = device_of(first);
  for (const View& a : arrays) {
    const int other = device_of(a);
    if (other == device) continue;
    throw ArgumentError(std::string(a.name) + ": got an array on GPU " + std::to_string(other) + ", but " + first.name +
                        " is on GPU " + std::to_string(device) + "; put all arrays of a call on one GPU");
  }
  return device;
}

unsigned blocks(std::int64_t n, int size) { return static_cast<unsigned>((n + size - 1) / size); }
unsigned slices(std::int64_t n) { return static_cast<unsigned>(std::min<std::int64_t>(n, 65535)); }

// One thread per pixel of [n, rows, columns].
dim3 grid_of(std::int64_t n, int rows, int columns) {
  return {blocks(columns, kColumns), blocks(rows, kRows), slices(n)};
}

template <typename Op>
void launch(void (*kernel)(Op), const Op& p, dim3 grid, dim3 block, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

void clear(const View& a, cudaStream_t stream) { CUDA_CHECK(cudaMemsetAsync(a.data, 0, a.bytes(), stream)); }

}  // namespace

void frame(const Frame& p, std::uintptr_t stream) {
  const std::int64_t n = p.hu.shape[0];
  const OnDevice device(n > 0 ? device_of({p.hu, p.box}) : device_of(p.box));
  launch(frame_start_kernel, p, {1}, {1}, stream_of(stream));
  if (n == 0) return;
  const auto rows = static_cast<int>(p.hu.shape[1]), columns = static_cast<int>(p.hu.shape[2]);
  launch(frame_kernel, p, grid_of(1, rows, columns), {kColumns, kRows}, stream_of(stream));
}

void thick(const Thick& p, std::uintptr_t stream) {
  const std::int64_t n = p.hu.shape[0];
  const OnDevice device(n > 0 ? device_of({p.hu, p.mask}) : device_of(p.mask));
  clear(p.mask, stream_of(stream));
  if (n == 0) return;
  launch(thick_kernel, p, grid_of(n, p.y.starts(), p.x.starts()), {kColumns, kRows}, stream_of(stream));
}

void prepare(const Prepare& p, std::uintptr_t stream) {
  const OnDevice device(device_of({p.hu, p.hu_net, p.x1}));
  launch(prepare_kernel, p, grid_of(p.hu.shape[0], p.fit.y.net, p.fit.x.net), {kColumns, kRows}, stream_of(stream));
}

void gate(const Gate& p, std::uintptr_t stream) {
  const OnDevice device(device_of({p.l1, p.hu_net, p.x2, p.liver_voxels}));
  const std::int64_t n = p.hu_net.shape[0], pixels = p.hu_net.shape[1] * p.hu_net.shape[2];
  clear(p.liver_voxels, stream_of(stream));
  launch(gate_kernel, p, {blocks(pixels, kThreads), slices(n)}, {kThreads}, stream_of(stream));
}

void label(const Label& p, std::uintptr_t stream) {
  const OnDevice device(device_of({p.l1, p.l2, p.labels, p.counts}));
  clear(p.counts, stream_of(stream));
  const dim3 grid = grid_of(p.labels.shape[0], p.fit.y.native, p.fit.x.native);
  launch(label_kernel<Label>, p, grid, {kColumns, kRows}, stream_of(stream));
}

void label3(const Label3& p, std::uintptr_t stream) {
  const OnDevice device(device_of({p.logits, p.labels, p.counts}));
  clear(p.counts, stream_of(stream));
  const dim3 grid = grid_of(p.labels.shape[0], p.fit.y.native, p.fit.x.native);
  launch(label_kernel<Label3>, p, grid, {kColumns, kRows}, stream_of(stream));
}

}  // namespace trtseg::cuda
