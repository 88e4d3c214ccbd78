// The ops on the CPU: loops over slices, bands of rows and rows. The arithmetic is in voxel.h, row by row in rows.h.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "host_copy.h"
#include "ops.h"
#include "parallel.h"
#include "rows.h"

namespace trtseg::cpu {
namespace {

constexpr int kBand = 32;     // rows that one thread takes at a time
constexpr std::int64_t kGroup = 8;  // slices that one thread takes at a time, where slices are looked at as a whole
constexpr int kChunk = 2048;  // pixels that stay in the L1 cache on their way through several row loops

int bands_of(int rows) { return (rows + kBand - 1) / kBand; }
std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// ---- frame, thick -----------------------------------------------------------------------------------------------

struct Box {
  int y0, y1, x0, x1;
};

// Makes a box hold all voxels of a slice that are above air. It looks only at voxels that can make the box larger:
// mostly the box is the picture after a few rows.
void grow(Box& b, const std::int16_t* slice, int rows, int columns) {
  const auto row = [&](int y) { return slice + static_cast<std::int64_t>(y) * columns; };
  const auto any = [&](int y, int begin, int end) {
    std::int16_t largest = 0;
    row_max(row(y) + begin, end - begin, &largest);
    return above_air(largest);
  };
  for (int y = 0; y < b.y0; ++y) {
    if (any(y, 0, columns)) b.y0 = y, b.y1 = std::max(b.y1, y + 1);
  }
  if (b.y0 == rows) return;  // air
  for (int y = rows - 1; y >= b.y1; --y) {
    if (any(y, 0, columns)) b.y1 = y + 1;
  }
  for (int y = b.y0; y < b.y1 && (b.x0 > 0 || b.x1 < columns); ++y) {
    const std::int16_t* hu = row(y);
    if (any(y, 0, b.x0)) {
      b.x0 = static_cast<int>(std::find_if(hu, hu + b.x0, above_air) - hu);
      b.x1 = std::max(b.x1, b.x0 + 1);
    }
    if (any(y, b.x1, columns)) {
      int end = columns;
      while (!above_air(hu[end - 1])) --end;
      b.x1 = end;
    }
  }
}

// out[i] = whether `s.thick` samples of the body begin at sample i of a row, which begins with the first sample.
void thick_row(std::uint8_t* out, const std::int16_t* hu, const Samples& s) {
  const int n = s.count(), stride = s.stride, thick = s.thick;
  int run = 0, i = 0;
  for (; i + 1 < thick; ++i) run = (run + 1) & -static_cast<int>(in_body(hu[i * stride]));
  for (; i < n; ++i) {
    run = (run + 1) & -static_cast<int>(in_body(hu[i * stride]));
    *out++ = run >= thick;
  }
}

// ---- prepare ----------------------------------------------------------------------------------------------------

// The Spans of one axis that touch the slice: those of net pixels begin .. begin + n - 1. The weights are [taps][n],
// padded with zeros: their products add nothing.
struct SpanTable {
  int begin, n;
  std::vector<std::int32_t> first;
  std::vector<float> weight;
  int taps = 1;
  int stride = 0;  // distance of consecutive firsts, where it is 1 or 2 throughout

  explicit SpanTable(const Axis& a) : begin(a.offset), n(a.extent) {
    while (n > 0 && prepare_span(a, begin).count == 0) ++begin, --n;
    while (n > 0 && prepare_span(a, begin + n - 1).count == 0) --n;
    for (int i = 0; i < n; ++i) taps = std::max(taps, prepare_span(a, begin + i).count);
    first.resize(size(n));
    weight.resize(size(taps) * size(n));
    for (int i = 0; i < n; ++i) {
      const Span s = prepare_span(a, begin + i);
      first[size(i)] = s.first;
      for (int k = 0; k < s.count; ++k) weight[size(k) * size(n) + size(i)] = s.weight(k);
    }
    for (int step = 1; step <= 2; ++step) {
      bool same = n > 0;
      for (int i = 0; i < n; ++i) same = same && first[size(i)] == first[0] + i * step;
      if (same) stride = step;
    }
  }
};

void collect(float* sum, const float* row, const SpanTable& t) {
  if (t.stride == 1) return row_collect1(sum, row + t.first[0], t.weight.data(), t.taps, t.n);
  if (t.stride == 2 && t.taps == 2) return row_collect2(sum, row + t.first[0], t.weight.data(), t.n);
  row_collect(sum, row, t.first.data(), t.weight.data(), t.taps, t.n);
}

// row = the vertical sums of one net row
void sum_rows(float* row, const std::int16_t* slice, const Span& s, int width) {
  const std::int16_t* a = slice + static_cast<std::int64_t>(s.first) * width;
  int k = s.count == 1 ? 1 : 2;
  if (k == 1) row_start(row, a, s.weight(0), width);
  else row_start2(row, a, s.weight(0), a + width, s.weight(1), width);
  for (; k < s.count; ++k) row_add(row, a + static_cast<std::int64_t>(k) * width, s.weight(k), width);
}

void window_row(const View& out, std::int64_t at, const std::int16_t* hu, const Window& w, int n) {
  if (out.type == Type::f32) return row_window(out.as<float>() + at, hu, w.lo, w.width, n);
  float t[kChunk];
  for (int x = 0; x < n; x += kChunk) {
    const int m = std::min(kChunk, n - x);
    row_window(t, hu + x, w.lo, w.width, m);
    row_to_half(out.as<std::uint16_t>() + at + x, t, m);
  }
}

// ---- logits -----------------------------------------------------------------------------------------------------

// Rows of margins of one channel. It keeps the last two: neighbouring native rows lie between the same net rows.
class MarginRows {
 public:
  struct Row {
    int index = -1;
    int first = 0, last = -1;  // the positive margins lie between these pixels
    std::vector<float> d;
  };

  MarginRows(const View& logits, std::int64_t channel, float threshold)
      : logits_(logits), threshold_(threshold), width_(static_cast<int>(logits.shape[3])),
        start_(channel * logits.shape[2] * logits.shape[3]) {
    for (Row& r : rows_) r.d.resize(size(width_));
    if (logits.type == Type::f16) wide_.resize(size(width_));
  }

  const Row& get(int index) {
    Row& r = rows_[index & 1];
    if (r.index == index) return r;
    const std::int64_t at = start_ + static_cast<std::int64_t>(index) * width_;
    const float* l = nullptr;
    if (logits_.type == Type::f16) {
      row_from_half(wide_.data(), logits_.as<std::uint16_t>() + at, width_);
      l = wide_.data();
    } else {
      l = logits_.as<float>() + at;
    }
    std::int32_t any = 0;
    row_margin(r.d.data(), l, threshold_, width_, &any);
    r.index = index, r.first = width_, r.last = -1;
    if (any) {
      r.first = 0, r.last = width_ - 1;
      while (!(r.d[size(r.first)] > 0.0f)) ++r.first;
      while (!(r.d[size(r.last)] > 0.0f)) --r.last;
    }
    return r;
  }

 private:
  const View& logits_;
  float threshold_;
  int width_;
  std::int64_t start_;
  Row rows_[2];
  std::vector<float> wide_;
};

// The Lerps of one axis, as arrays.
struct LerpTable {
  std::vector<std::int32_t> i;
  std::vector<float> g, f;
  int pairs = 0;  // native pixels 1 + 2k and 2 + 2k, k < pairs, lie between net pixels i[1] + k and i[1] + k + 1

  explicit LerpTable(const Axis& a) : i(size(a.native)), g(size(a.native)), f(size(a.native)) {
    for (int x = 0; x < a.native; ++x) {
      const Lerp l = label_lerp(a, x);
      i[size(x)] = l.i, g[size(x)] = l.g, f[size(x)] = l.f;
    }
    while (2 * pairs + 2 < a.native && i[size(2 * pairs + 1)] == i[1] + pairs &&
           i[size(2 * pairs + 2)] == i[1] + pairs) {
      ++pairs;
    }
  }

  // value[x] = column at native pixel x for begin <= x < end; it may write beside them, but inside the row.
  void apply(float* value, const float* column, int begin, int end) const {
    const int first = std::min(pairs, std::max(0, begin - 1) / 2), last = std::max(first, std::min(pairs, end / 2));
    const int left = 1 + 2 * first, right = 1 + 2 * last;  // pixels of the pairs in between
    if (begin < left) single(value, column, begin, std::min(end, left));
    if (left < right) {
      row_lerp2(value + left, column + i[1] + first, g.data() + left, f.data() + left, last - first);
    }
    if (right < end) single(value, column, std::max(begin, right), end);
  }

 private:
  void single(float* value, const float* column, int begin, int end) const {
    row_lerp(value + begin, column, i.data() + begin, g.data() + begin, f.data() + begin, end - begin);
  }
};

// Runs fn(slice, first row, end row, counts of this band) over all bands, and sums the counts of each slice.
template <typename Fn>
void label_bands(const View& labels, const View& counts, int threads, Fn fn) {
  const int rows = static_cast<int>(labels.shape[1]), bands = bands_of(rows);
  const std::int64_t n = labels.shape[0];
  std::vector<std::int32_t> partial(size(n * bands * 2));
  parallel_for(n * bands, threads, n * rows * labels.shape[2], [&](std::int64_t unit) {
    const DefaultFloats mode;
    const int begin = static_cast<int>(unit % bands) * kBand;
    fn(unit / bands, begin, std::min(rows, begin + kBand), &partial[size(unit * 2)]);
  });
  std::int32_t* out = counts.as<std::int32_t>();
  std::fill(out, out + n * 2, 0);
  for (std::int64_t u = 0; u < n * bands * 2; ++u) out[u / (bands * 2) * 2 + u % 2] += partial[size(u)];
}

}  // namespace

void frame(const Frame& p, int threads) {
  const std::int64_t n = p.hu.shape[0];
  const int rows = static_cast<int>(p.hu.shape[1]), columns = static_cast<int>(p.hu.shape[2]);
  const auto slice = [&](std::int64_t z) { return p.hu.as<std::int16_t>() + z * rows * columns; };
  Box box{rows, 0, columns, 0};
  const auto inside = [&] { return static_cast<std::int64_t>(box.y1 - box.y0) * (box.x1 - box.x0); };
  const std::int64_t first = std::min(n, kGroup), pixels = static_cast<std::int64_t>(rows) * columns;
  for (std::int64_t z = 0; z < first && (box.y1 == 0 || inside() < pixels); ++z) grow(box, slice(z), rows, columns);
  const std::int64_t outside = box.y1 == 0 ? pixels : pixels - inside();
  if (outside > 0) {
    std::mutex access;  // to the box, which is the same in whatever order threads grow it
    parallel_for((n - first + kGroup - 1) / kGroup, threads, (n - first) * outside, [&](std::int64_t unit) {
      std::unique_lock<std::mutex> lock(access);
      Box mine = box;
      lock.unlock();
      const std::int64_t begin = first + unit * kGroup, end = std::min(n, begin + kGroup);
      for (std::int64_t z = begin; z < end; ++z) grow(mine, slice(z), rows, columns);
      lock.lock();
      box = {std::min(box.y0, mine.y0), std::max(box.y1, mine.y1), std::min(box.x0, mine.x0),
             std::max(box.x1, mine.x1)};
    });
  }
  const std::int32_t out[] = {box.y0, box.y1, box.x0, box.x1};
  std::copy(out, out + 4, p.box.as<std::int32_t>());
}

void thick(const Thick& p, int threads) {
  const Samples &y = p.y, &x = p.x;
  const std::int64_t n = p.hu.shape[0], width = p.hu.shape[2], native = p.hu.shape[1] * width;
  const int starts = x.starts(), samples = y.count();
  std::uint8_t* mask = p.mask.as<std::uint8_t>();
  std::fill(mask, mask + p.mask.bytes(), std::uint8_t{0});
  std::mutex access;  // to the mask, which is the same in whatever order threads add to it
  const std::int64_t work = n * samples * (x.end - x.begin);
  parallel_for((n + kGroup - 1) / kGroup, threads, work, [&](std::int64_t unit) {
    std::vector<std::uint8_t> found(p.mask.bytes()), row(size(starts));
    std::vector<std::uint16_t> run(size(starts));
    for (std::int64_t z = unit * kGroup, end = std::min(n, z + kGroup); z < end; ++z) {
      std::fill(run.begin(), run.end(), std::uint16_t{0});
      for (int j = 0; j < samples; ++j) {
        const std::int16_t* hu = p.hu.as<std::int16_t>() + z * native + (y.begin + j * y.stride) * width + x.begin;
        if (j + 1 < samples) {  // too far away for the processor to fetch by itself
          const char* next = reinterpret_cast<const char*>(hu + y.stride * width);
          for (int at = 0; at < (x.end - x.begin) * 2; at += 64) __builtin_prefetch(next + at);
        }
        thick_row(row.data(), hu, x);
        row_run(run.data(), row.data(), starts);
        const int start = j + 1 - y.thick;
        if (start < 0) continue;
        row_mark(found.data() + start * starts, run.data(), static_cast<std::uint16_t>(y.thick), starts);
      }
    }
    const std::lock_guard<std::mutex> lock(access);
    row_or(mask, found.data(), starts * y.starts());
  });
}

void prepare(const Prepare& p, int threads) {
  const Axis &y = p.fit.y, &x = p.fit.x;
  const SpanTable columns(x);
  const int bands = bands_of(y.net);
  const std::int64_t n = p.hu.shape[0], native = static_cast<std::int64_t>(y.native) * x.native;
  const std::int64_t work = n * std::max(native, static_cast<std::int64_t>(y.net) * x.net);
  parallel_for(n * bands, threads, work, [&](std::int64_t unit) {
    const DefaultFloats mode;
    const std::int16_t* slice = p.hu.as<std::int16_t>() + unit / bands * native;
    std::vector<float> row(size(x.native) + size(columns.taps)), value(size(columns.n));
    const int begin = static_cast<int>(unit % bands) * kBand, end = std::min(y.net, begin + kBand);
    for (int i = begin; i < end; ++i) {
      const std::int64_t at = (unit / bands * y.net + i) * x.net;
      std::int16_t* hu = p.hu_net.as<std::int16_t>() + at;
      const Span span = prepare_span(y, i);
      if (span.count == 0 || columns.n == 0) {
        std::fill(hu, hu + x.net, kAirHu);
      } else {
        sum_rows(row.data(), slice, span, x.native);
        collect(value.data(), row.data(), columns);
        std::fill(hu, hu + columns.begin, kAirHu);
        row_round(hu + columns.begin, value.data(), columns.n);
        std::fill(hu + columns.begin + columns.n, hu + x.net, kAirHu);
      }
      window_row(p.x1, at, hu, p.window, x.net);
    }
  });
}

void gate(const Gate& p, int threads) {
  const std::int64_t n = p.hu_net.shape[0], pixels = p.hu_net.shape[1] * p.hu_net.shape[2];
  constexpr std::int64_t kPart = 16 * kChunk;  // pixels that one thread takes at a time
  const std::int64_t parts = (pixels + kPart - 1) / kPart;
  std::vector<std::int32_t> partial(size(n * parts));
  parallel_for(n * parts, threads, n * pixels, [&](std::int64_t unit) {
    const DefaultFloats mode;
    const std::int64_t start = unit / parts * pixels, begin = start + unit % parts * kPart;
    const std::int64_t end = std::min(start + pixels, begin + kPart);
    float wide[kChunk], gated[kChunk];
    for (std::int64_t at = begin; at < end; at += kChunk) {
      const int m = static_cast<int>(std::min<std::int64_t>(kChunk, end - at));
      const bool half_in = p.l1.type == Type::f16, half_out = p.x2.type == Type::f16;
      if (half_in) row_from_half(wide, p.l1.as<std::uint16_t>() + at, m);
      std::int32_t count = 0;
      row_gate(half_out ? gated : p.x2.as<float>() + at, half_in ? wide : p.l1.as<float>() + at,
               p.hu_net.as<std::int16_t>() + at, p.threshold, p.window.lo, p.window.width, m, &count);
      if (half_out) row_to_half(p.x2.as<std::uint16_t>() + at, gated, m);
      partial[size(unit)] += count;
    }
  });
  std::int32_t* out = p.liver_voxels.as<std::int32_t>();
  std::fill(out, out + n, 0);
  for (std::int64_t u = 0; u < n * parts; ++u) out[u / parts] += partial[size(u)];
}

void label(const Label& p, int threads) {
  const Axis &y = p.fit.y, &x = p.fit.x;
  const LerpTable table(x);
  label_bands(p.labels, p.counts, threads, [&](std::int64_t n, int begin, int end, std::int32_t* counts) {
    MarginRows liver(p.l1, n, p.threshold1), tumour(p.l2, n, p.threshold2);
    std::vector<float> column(size(x.net) + 1), v1(size(x.native)), v2(size(x.native));
    for (int row = begin; row < end; ++row) {
      std::uint8_t* out = p.labels.as<std::uint8_t>() + (n * y.native + row) * x.native;
      const Lerp l = label_lerp(y, row);
      const int next = std::min(l.i + 1, y.net - 1);
      const auto &a = liver.get(l.i), &b = liver.get(next);
      // Only native pixels beside a net column with a positive margin can be liver (see cascade_class).
      const int first = std::min(a.first, b.first) - 1, last = std::max(a.last, b.last);
      const auto x0 = std::lower_bound(table.i.begin(), table.i.end(), first) - table.i.begin();
      const auto x1 = std::upper_bound(table.i.begin(), table.i.end(), last) - table.i.begin();
      if (last < 0 || x0 >= x1) {
        std::memset(out, 0, size(x.native));
        continue;
      }
      const int left = static_cast<int>(x0), right = static_cast<int>(x1);
      row_mix(column.data(), a.d.data(), b.d.data(), l.g, l.f, x.net);
      table.apply(v1.data(), column.data(), left, right);
      row_mix(column.data(), tumour.get(l.i).d.data(), tumour.get(next).d.data(), l.g, l.f, x.net);
      table.apply(v2.data(), column.data(), left, right);
      std::memset(out, 0, size(left));
      row_cascade(out + left, v1.data() + left, v2.data() + left, right - left);
      std::memset(out + right, 0, size(x.native - right));
      row_count(out + left, right - left, counts);
    }
  });
}

void label3(const Label3& p, int threads) {
  const Axis &y = p.fit.y, &x = p.fit.x;
  const LerpTable table(x);
  label_bands(p.labels, p.counts, threads, [&](std::int64_t n, int begin, int end, std::int32_t* counts) {
    MarginRows rows[3] = {{p.logits, n * 3, 0.0f}, {p.logits, n * 3 + 1, 0.0f}, {p.logits, n * 3 + 2, 0.0f}};
    std::vector<float> column(size(x.net) + 1), v[3];
    for (auto& value : v) value.resize(size(x.native));
    for (int row = begin; row < end; ++row) {
      std::uint8_t* out = p.labels.as<std::uint8_t>() + (n * y.native + row) * x.native;
      const Lerp l = label_lerp(y, row);
      const int next = std::min(l.i + 1, y.net - 1);
      for (int c = 0; c < 3; ++c) {
        row_mix(column.data(), rows[c].get(l.i).d.data(), rows[c].get(next).d.data(), l.g, l.f, x.net);
        table.apply(v[c].data(), column.data(), 0, x.native);
      }
      row_largest(out, v[0].data(), v[1].data(), v[2].data(), x.native);
      row_count(out, x.native, counts);
    }
  });
}

}  // namespace trtseg::cpu

namespace trtseg {

void host_to_half(std::uint16_t* dst, const float* src, std::size_t count, int threads) {
  in_pieces(count, threads, [&](std::size_t first, std::size_t n) {
    row_to_half(dst + first, src + first, static_cast<int>(n));
  });
}

}  // namespace trtseg
