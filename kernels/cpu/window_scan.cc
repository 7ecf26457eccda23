// Attention over a window of steps, with resets, float32: steps, and sequences forward and backward (see window_scan.py).
//
// A task of a sequence is one head of one row of the batch. Its keys and values lie feature by feature, the steps side
// by side, those of the state before those of the sequence: step t is column W + t. So products over a window go 16
// steps at a time, and only what a step sees is ever touched. A column is filled when its step comes, and emptied on the
// way back: what lies after a step is 0, and the last 16 of a window need no select but that of their weights.
//
// A step of the actor reads the window and writes one place of it; the state stays where it is.
//
// Arrays are [..., T, B, heads, features]: leading axes come from vmap and are rows like any other.

#include <limits>
#include <vector>

#include "ffi.h"

namespace engram {
namespace {

using Ints = ffi::Buffer<ffi::S32>;
using IntsOut = ffi::ResultBuffer<ffi::S32>;

constexpr int64_t kRows = 4;  // rows of a task of the actor

inline int64_t Padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline Vector LoadWhole(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void StoreWhole(float* to, const Vector& v) { std::memcpy(to, &v, sizeof(v)); }

// A stretch of numbers in whole vectors: its first `before` lanes and those from `end` on are not of it.
struct Stretch {
  int64_t before, end;

  // `v`, the lanes from `j` on, and `other` where they are not of the stretch.
  Vector Own(const Vector& v, int64_t j, float other) const {
    if (j >= before && j + kLanes <= end) return v;
    const IntVector lanes = IntVector{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(j);
    return (lanes >= static_cast<int32_t>(before)) & (lanes < static_cast<int32_t>(end)) ? v : Vector{} + other;
  }
};

// The sum of the lanes, or the largest, in all lanes.
template <typename Combine>
inline Vector Reduce(Vector v, const Combine& combine) {
  v = combine(v, ENGRAM_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = combine(v, ENGRAM_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = combine(v, ENGRAM_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return combine(v, ENGRAM_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
}

inline Vector Sum(const Vector& v) {
  return Reduce(v, [](const Vector& a, const Vector& b) { return a + b; });
}

inline Vector Largest(const Vector& v) {
  return Reduce(v, [](const Vector& a, const Vector& b) { return a > b ? a : b; });
}

// The place of a state that is written next, and how many of the newest entries are of this episode.
struct Place {
  int64_t next, length;

  Place(int64_t code, int64_t W) {
    const int64_t all = W * (W + 1), inside = ((code % all) + all) % all;
    next = inside / (W + 1), length = inside % (W + 1);
  }

  int32_t Code(int64_t W) const { return static_cast<int32_t>(next * (W + 1) + length); }
};

// exp(x - max) / sum in place; lanes that are not of the stretch become 0.
void Softmax(float* x, const Stretch& stretch) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Vector top = Vector{} + lowest, sum = {};
  for (int64_t j = 0; j < stretch.end; j += kLanes) {
    const Vector v = stretch.Own(LoadWhole(x + j), j, lowest);
    top = v > top ? v : top;
  }
  const Vector max = Largest(top) * kLog2E;
  for (int64_t j = 0; j < stretch.end; j += kLanes) {
    const Vector v = stretch.Own(Exp2(LoadWhole(x + j) * kLog2E - max), j, 0);
    StoreWhole(x + j, v);
    sum += v;
  }
  const Vector scale = 1.0f / Sum(sum);
  for (int64_t j = 0; j < stretch.end; j += kLanes) StoreWhole(x + j, LoadWhole(x + j) * scale);
}

struct Sizes {
  int64_t outer, T, B, H, D, W;

  // `x` is [..., T, B, H, D], or for a step [..., B, H, D]; `bias` is [..., H, W + 1].
  Sizes(const ffi::AnyBuffer::Dimensions& x, const ffi::AnyBuffer::Dimensions& bias, bool step) {
    const size_t rank = x.size(), own = step ? 3 : 4;
    outer = 1;
    for (size_t i = 0; i + own < rank; ++i) outer *= x[i];
    T = step ? 1 : x[rank - 4], B = x[rank - 3], H = x[rank - 2], D = x[rank - 1];
    W = bias[bias.size() - 1] - 1;
  }
};

// One head of one row: offsets in arrays [T, B, H, D], [T, B], [B, W, H, D], [B] and [H, W + 1], and strides.
struct Head {
  int64_t h, steps, flags, state, row, bias, per_step, per_place, rows;

  Head(const Sizes& s, int64_t index) {
    h = index % s.H;
    const int64_t b = index / s.H % s.B, outer = index / s.H / s.B;
    flags = outer * s.T * s.B + b;
    steps = (flags * s.H + h) * s.D;
    row = outer * s.B + b;
    state = (row * s.W * s.H + h) * s.D;
    bias = (outer * s.H + h) * (s.W + 1);
    per_place = s.H * s.D, per_step = s.B * per_place, rows = s.B;
  }
};

// Columns [D, columns] of one head, at multiples of whole vectors: a load across two lines takes as long as two.
struct Columns {
  int64_t D, columns;
  std::vector<Vector> memory;
  float* numbers;

  explicit Columns(const Sizes& s)
      : D(s.D), columns(Padded(s.W + s.T)), memory(D * columns / kLanes), numbers(reinterpret_cast<float*>(memory.data())) {}

  void Set(int64_t column, const float* from) {
    for (int64_t i = 0; i < D; ++i) numbers[i * columns + column] = from[i];
  }
  void Add(int64_t column, const float* from) {
    for (int64_t i = 0; i < D; ++i) numbers[i * columns + column] += from[i];
  }
  void Get(int64_t column, float* to) const {
    for (int64_t i = 0; i < D; ++i) to[i] = numbers[i * columns + column];
  }
  void Clear(int64_t column) {
    for (int64_t i = 0; i < D; ++i) numbers[i * columns + column] = 0;
  }

  // to[j] = the sum over features of x times column first + j.
  void Dots(const float* x, int64_t first, const Stretch& stretch, float* to) const {
    for (int64_t j = 0; j < stretch.end; j += kLanes) {
      Vector even = {}, odd = {};  // two chains of sums, each waits for its last one
      const float* from = numbers + first + j;
      int64_t i = 0;
      for (; i + 1 < D; i += 2) {
        even += LoadWhole(from + i * columns) * x[i];
        odd += LoadWhole(from + (i + 1) * columns) * x[i + 1];
      }
      if (i < D) even += LoadWhole(from + i * columns) * x[i];
      StoreWhole(to + j, even + odd);
    }
  }

  // to = the sum of the columns from `first` on times their weights, which are 0 where they are not of the stretch.
  void Mix(const float* weights, int64_t first, const Stretch& stretch, float* to) const {
    for (int64_t i = 0; i < D; i += kLanes) {
      Vector sums[kLanes] = {};
      const int64_t features = std::min(kLanes, D - i);
      const float* from = numbers + i * columns + first;
      if (features == kLanes) {
        for (int64_t j = 0; j < stretch.end; j += kLanes) {
          const Vector w = LoadWhole(weights + j);
          for (int64_t f = 0; f < kLanes; ++f) sums[f] += LoadWhole(from + f * columns + j) * w;
        }
      } else {
        for (int64_t j = 0; j < stretch.end; j += kLanes) {
          const Vector w = LoadWhole(weights + j);
          for (int64_t f = 0; f < features; ++f) sums[f] += LoadWhole(from + f * columns + j) * w;
        }
      }
      Store(to + i, SumEach(sums), features);
    }
  }

  // Columns from `first` on += weights times x. Those behind the stretch, up to a whole vector, are no longer looked at.
  void AddOuter(const float* weights, const float* x, int64_t first, const Stretch& stretch) {
    for (int64_t j = 0; j < stretch.end; j += kLanes) {
      const Vector w = LoadWhole(weights + j);
      float* to = numbers + first + j;
      if (j < stretch.before) {
        for (int64_t i = 0; i < D; ++i)
          StoreWhole(to + i * columns, LoadWhole(to + i * columns) + stretch.Own(w * x[i], j, 0));
      } else {
        for (int64_t i = 0; i < D; ++i) StoreWhole(to + i * columns, LoadWhole(to + i * columns) + w * x[i]);
      }
    }
  }
};

// What one head of a sequence works on.
struct Window {
  const Sizes& s;
  const Head at;
  const float *q, *k, *v, *old_keys, *old_values;
  const bool* reset;
  Place place;
  Columns keys, values;
  std::vector<float> bias;     // newest last, after a vector of zeros: that of distance W - x at kLanes + x
  std::vector<float> weights;  // of the columns that a step sees
  // That window: its first column, in whole vectors, and what lies there.
  int64_t first = 0;
  Stretch stretch{0, 0};

  Window(const Sizes& s, int64_t index, const float* q, const float* k, const float* v, const float* biases,
         const bool* reset, const float* old_keys, const float* old_values, const int32_t* places)
      : s(s), at(s, index), q(q), k(k), v(v), old_keys(old_keys), old_values(old_values), reset(reset),
        place(places[at.row], s.W), keys(s), values(s), bias(s.W + 1 + 2 * kLanes), weights(Padded(s.W + kLanes)) {
    for (int64_t x = 0; x <= s.W; ++x) bias[kLanes + x] = biases[at.bias + s.W - x];
  }

  bool Opens(int64_t t) const { return reset[at.flags + t * at.rows]; }
  int64_t Of(int64_t t) const { return at.steps + t * at.per_step; }
  // Where the j-th oldest entry of a state lies.
  int64_t Entry(const Place& of, int64_t j) const { return at.state + (of.next + j) % s.W * at.per_place; }

  // Fills the column of a step, below 0 of the state's.
  void Fill(int64_t t) {
    if (t >= 0) {
      keys.Set(s.W + t, k + Of(t)), values.Set(s.W + t, v + Of(t));
    } else {
      keys.Set(s.W + t, old_keys + Entry(place, s.W + t)), values.Set(s.W + t, old_values + Entry(place, s.W + t));
    }
  }

  void Clear(int64_t t) { keys.Clear(s.W + t), values.Clear(s.W + t); }

  // The part of an array like `bias` that belongs to the window.
  float* OfWindow(std::vector<float>& array) const { return &array[kLanes + s.W + 1 - stretch.end]; }

  // The weights with which step t sees those from `oldest` on.
  void Weigh(int64_t t, int64_t oldest) {
    first = (s.W + oldest) / kLanes * kLanes;
    stretch.before = s.W + oldest - first, stretch.end = s.W + t + 1 - first;
    keys.Dots(q + Of(t), first, stretch, weights.data());
    const float* biases = OfWindow(bias);
    for (int64_t j = 0; j < stretch.end; j += kLanes)
      StoreWhole(&weights[j], LoadWhole(&weights[j]) + LoadWhole(biases + j));
    Softmax(weights.data(), stretch);
  }

  // The state after the sequence, whose last episode opened at `opened` (below 0: before it).
  Place After(int64_t opened) const {
    Place after(0, s.W);
    after.next = (opened >= 0 ? s.T - opened : place.next + s.T) % s.W, after.length = std::min(s.T - opened, s.W);
    return after;
  }
};

void Forward(Window& window, float* y, float* last_keys, float* last_values, int32_t* last_place) {
  const Sizes& s = window.s;
  int64_t opened = -window.place.length, oldest = opened;
  for (int64_t t = opened; t < 0; ++t) window.Fill(t);
  for (int64_t t = 0; t < s.T; ++t) {
    if (window.Opens(t)) opened = t;
    for (const int64_t now = std::max(t - s.W, opened); oldest < now; ++oldest) window.Clear(oldest);
    window.Fill(t);
    window.Weigh(t, oldest);
    window.values.Mix(window.weights.data(), window.first, window.stretch, y + window.Of(t));
  }
  const Place after = window.After(opened);
  if (window.at.h == 0) last_place[window.at.row] = after.Code(s.W);
  for (int64_t j = 0; j < s.W; ++j) {  // what is not of the episode was cleared
    const int64_t to = window.Entry(after, j);
    window.keys.Get(s.T + j, last_keys + to), window.values.Get(s.T + j, last_values + to);
  }
}

struct Gradients {
  float *dq, *dk, *dv, *d_bias, *d_keys, *d_values;  // d_bias for each row
};

void Backward(Window& window, const float* g, const float* g_keys, const float* g_values, const Gradients& out) {
  const Sizes& s = window.s;
  const Head& at = window.at;
  Columns d_keys(s), d_values(s);
  std::vector<float> d_bias(s.W + 1 + 2 * kLanes), d_logits(Padded(s.W + kLanes));
  std::vector<int64_t> oldest(s.T);
  int64_t opened = -window.place.length;
  for (int64_t t = 0; t < s.T; ++t) {
    if (window.Opens(t)) opened = t;
    oldest[t] = std::max(t - s.W, opened);
  }
  const Place after = window.After(opened);
  for (int64_t j = s.W - after.length; j < s.W; ++j) {
    const int64_t from = window.Entry(after, j);
    d_keys.Add(s.T + j, g_keys + from), d_values.Add(s.T + j, g_values + from);
  }
  int64_t filled = s.T;  // columns from here to that of the step are filled, and no others
  for (int64_t t = s.T - 1; t >= 0; --t) {
    while (filled > oldest[t]) window.Fill(--filled);
    window.Weigh(t, oldest[t]);
    const Stretch& stretch = window.stretch;
    const int64_t first = window.first, now = window.Of(t);
    const float* weights = window.weights.data();
    window.values.Dots(g + now, first, stretch, d_logits.data());
    Vector sum = {};
    for (int64_t j = 0; j < stretch.end; j += kLanes)
      sum += stretch.Own(LoadWhole(weights + j) * LoadWhole(&d_logits[j]), j, 0);
    const Vector mean = Sum(sum);
    float* d_window = window.OfWindow(d_bias);
    for (int64_t j = 0; j < stretch.end; j += kLanes) {
      const Vector d = stretch.Own(LoadWhole(weights + j) * (LoadWhole(&d_logits[j]) - mean), j, 0);
      StoreWhole(&d_logits[j], d);
      StoreWhole(d_window + j, LoadWhole(d_window + j) + d);
    }
    window.keys.Mix(d_logits.data(), first, stretch, out.dq + now);
    d_keys.AddOuter(d_logits.data(), window.q + now, first, stretch);
    d_values.AddOuter(weights, g + now, first, stretch);
    d_keys.Get(s.W + t, out.dk + now), d_values.Get(s.W + t, out.dv + now);
    window.Clear(t);
  }
  for (int64_t j = 0; j < s.W; ++j) {
    const int64_t to = window.Entry(window.place, j);
    d_keys.Get(j, out.d_keys + to), d_values.Get(j, out.d_values + to);
  }
  float* of_row = out.d_bias + (at.row * s.H + at.h) * (s.W + 1);
  for (int64_t x = 0; x <= s.W; ++x) of_row[s.W - x] = d_bias[kLanes + x];
}

// One step of one row; the state is at `keys`, `values` and `code`.
void Step(const Sizes& s, int64_t row, const float* q, const float* k, const float* v, const float* biases, bool reset,
          float* keys, float* values, int32_t* code, float* y, float* logits) {
  const int64_t features = s.H * s.D;
  Place place(*code, s.W);
  if (reset) {
    place.next = place.length = 0;
    std::fill_n(keys, s.W * features, 0.0f), std::fill_n(values, s.W * features, 0.0f);
  }
  const int64_t n = place.length, oldest = (place.next - n + s.W) % s.W;
  for (int64_t h = 0; h < s.H; ++h) {
    const float *query = q + h * s.D, *bias = biases + (row / s.B * s.H + h) * (s.W + 1);
    auto dots = [&](const float* const entries[], int64_t count) {
      Vector sums[kLanes] = {};
      for (int64_t i = 0; i < s.D; i += kLanes) {
        const Vector part = Load(query + i, s.D - i);
        for (int64_t j = 0; j < count; ++j) sums[j] += Load(entries[j] + i, s.D - i) * part;
      }
      return SumEach(sums);
    };
    int64_t from = oldest;
    for (int64_t j = 0; j <= n; j += kLanes) {
      const float* entries[kLanes];
      const int64_t count = std::min(kLanes, n + 1 - j);
      for (int64_t i = 0; i < count; ++i) {
        entries[i] = (j + i == n ? k : keys + from * features) + h * s.D;
        from = from + 1 == s.W ? 0 : from + 1;
      }
      StoreWhole(logits + j, dots(entries, count));
    }
    for (int64_t j = 0; j <= n; ++j) logits[j] += bias[n - j];
    Softmax(logits, Stretch{0, n + 1});
    for (int64_t i = 0; i < s.D; i += kLanes) {
      const int64_t valid = s.D - i;
      Vector even = Load(v + h * s.D + i, valid) * logits[n], odd = {};
      int64_t at = oldest;
      for (int64_t j = 0; j < n; ++j) {
        const Vector entry = Load(values + at * features + h * s.D + i, valid) * logits[j];
        at = at + 1 == s.W ? 0 : at + 1;
        if (j & 1) odd += entry;
        else even += entry;
      }
      Store(y + h * s.D + i, even + odd, valid);
    }
  }
  std::copy_n(k, features, keys + place.next * features);
  std::copy_n(v, features, values + place.next * features);
  place.next = (place.next + 1) % s.W, place.length = std::min(n + 1, s.W);
  *code = place.Code(s.W);
}

ffi::Error ForwardHandler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats bias, Bools reset, Floats keys,
                          Floats values, Ints place, FloatsOut y, FloatsOut last_keys, FloatsOut last_values,
                          IntsOut last_place) {
  const Sizes s(q.dimensions(), bias.dimensions(), false);
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    Window window(s, index, q.typed_data(), k.typed_data(), v.typed_data(), bias.typed_data(), reset.typed_data(),
                  keys.typed_data(), values.typed_data(), place.typed_data());
    Forward(window, y->typed_data(), last_keys->typed_data(), last_values->typed_data(), last_place->typed_data());
  });
}

ffi::Error BackwardHandler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats bias, Bools reset, Floats keys,
                           Floats values, Ints place, Floats g, Floats g_keys, Floats g_values, FloatsOut dq,
                           FloatsOut dk, FloatsOut dv, FloatsOut d_bias, FloatsOut d_keys, FloatsOut d_values) {
  const Sizes s(q.dimensions(), bias.dimensions(), false);
  const Gradients out{dq->typed_data(),     dk->typed_data(),     dv->typed_data(),
                      d_bias->typed_data(), d_keys->typed_data(), d_values->typed_data()};
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    Window window(s, index, q.typed_data(), k.typed_data(), v.typed_data(), bias.typed_data(), reset.typed_data(),
                  keys.typed_data(), values.typed_data(), place.typed_data());
    Backward(window, g.typed_data(), g_keys.typed_data(), g_values.typed_data(), out);
  });
}

// The state is written where it lies; XLA copies it first where the old one is needed still.
ffi::Error StepHandler(ffi::ThreadPool pool, Floats keys, Floats values, Ints place, Floats q, Floats k, Floats v,
                       Floats bias, Bools reset, FloatsOut next_keys, FloatsOut next_values, IntsOut next_place,
                       FloatsOut y) {
  const Sizes s(q.dimensions(), bias.dimensions(), true);
  const int64_t rows = s.outer * s.B, features = s.H * s.D, cache = s.W * features;
  return ParallelFor(pool, (rows + kRows - 1) / kRows, [&](int64_t task) {
    std::vector<float> logits(Padded(s.W + 1));
    for (int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row) {
      float *own_keys = next_keys->typed_data() + row * cache, *own_values = next_values->typed_data() + row * cache;
      int32_t* code = next_place->typed_data() + row;
      if (next_keys->typed_data() != keys.typed_data()) std::copy_n(keys.typed_data() + row * cache, cache, own_keys);
      if (next_values->typed_data() != values.typed_data())
        std::copy_n(values.typed_data() + row * cache, cache, own_values);
      *code = place.typed_data()[row];
      Step(s, row, q.typed_data() + row * features, k.typed_data() + row * features, v.typed_data() + row * features,
           bias.typed_data(), reset.typed_data()[row], own_keys, own_values, code, y->typed_data() + row * features,
           logits.data());
    }
  });
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

#define ENGRAM_SEQUENCE  \
  Ctx<ffi::ThreadPool>() \
      .Arg<Floats>()     \
      .Arg<Floats>()     \
      .Arg<Floats>()     \
      .Arg<Floats>()     \
      .Arg<Bools>()      \
      .Arg<Floats>()     \
      .Arg<Floats>()     \
      .Arg<Ints>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(window_scan_forward, ForwardHandler,
                              ffi::Ffi::Bind()
                                  .ENGRAM_SEQUENCE.Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Ints>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(window_scan_backward, BackwardHandler,
                              ffi::Ffi::Bind()
                                  .ENGRAM_SEQUENCE.Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(window_scan_step, StepHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Bools>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Ints>()
                                  .Ret<Floats>());
