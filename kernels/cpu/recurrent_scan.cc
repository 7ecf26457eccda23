// GRU and LSTM with resets, float32, forward and backward (see gru_scan.py and lstm_scan.py).
//
// A task is some rows of the batch. It walks through time with their state, which stays in the first-level cache, as the
// recurrent weights stay in the cache behind it: packed once a call, in the order in which products read them. The gates
// of a step are computed at once after its product.
//
// The forward pass for a gradient also hands out the gates. The backward pass walks back through time with the gradient
// of the state, and then sums outer products over all steps, which gives the gradient of the weights; there a task is some
// rows of the weights.
//
// Arrays are [..., T, B, features]: leading axes come from vmap. Features of gates lie side by side; in buffers of a task
// each gate is padded to whole vectors, with weights of 0. No result depends on how the work is divided.

#include <vector>

#include "ffi.h"

namespace engram {
namespace {

// What a product keeps in registers: the sums of some rows and columns. Vectors are as wide as registers: GCC moves those of
// 16 floats through memory where registers are narrower.
#if defined(__AVX512F__)
constexpr int kRows = 8, kColumns = 2, kWidth = 16;
#elif defined(__AVX__)
constexpr int kRows = 4, kColumns = 2, kWidth = 8;
#elif defined(__aarch64__)
constexpr int kRows = 4, kColumns = 4, kWidth = 4;
#else
constexpr int kRows = 4, kColumns = 2, kWidth = 4;
#endif
typedef float Register __attribute__((vector_size(4 * kWidth)));
constexpr int64_t kPanel = kColumns * kWidth;
constexpr int64_t kLeastRows = 4;  // of the batch, in a task that is not the last
constexpr int64_t kMostRows = 16;
constexpr int64_t kSteps = 32;  // outer products that are summed together: what they read stays in the cache

int64_t Padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline Register Get(const float* from, int64_t valid) {
  Register x = {};
  if (valid >= kWidth) {
    std::memcpy(&x, from, sizeof(x));
  } else {
    std::memcpy(&x, from, sizeof(float) * valid);
  }
  return x;
}

inline void Put(float* to, const Register& x, int64_t valid) {
  if (valid >= kWidth) {
    std::memcpy(to, &x, sizeof(x));
  } else {
    std::memcpy(to, &x, sizeof(float) * valid);
  }
}

// tanh as XLA computes it: a rational function, to a few units in the last place. NaN stays NaN.
inline Register Tanh(Register x) {
  x = x < -7.90531110763549805f ? Register{} - 7.90531110763549805f : x;  // NaN fails both comparisons and passes
  x = x > 7.90531110763549805f ? Register{} + 7.90531110763549805f : x;
  const Register square = x * x;
  Register p = square * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * square - 8.60467152213735e-11f;
  p = p * square + 5.12229709037114e-08f;
  p = p * square + 1.48572235717979e-05f;
  p = p * square + 6.37261928875436e-04f;
  p = p * square + 4.89352455891786e-03f;
  Register q = square * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * square + 2.26843463243900e-03f;
  q = q * square + 4.89352518554385e-03f;
  return x * p / q;
}

inline Register Sigmoid(Register x) { return 0.5f * Tanh(0.5f * x) + 0.5f; }

// out[r, c] = sum over k of in[r, k] panel[k, c], for R rows and C registers of columns.
template <int R, int C>
inline void Tile(const float* in, int64_t K, const float* panel, float* out, int64_t out_row) {
  Register sum[R][C] = {};
  for (int64_t k = 0; k < K; ++k) {
    Register weight[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) weight[c] = Get(panel + (k * C + c) * kWidth, kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float factor = in[r * K + k];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] += weight[c] * factor;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) Put(out + r * out_row + c * kWidth, sum[r][c], kWidth);
  }
}

template <int R, int C>
inline void Rows(int64_t& rows, const float*& in, int64_t K, const float* panel, float*& out, int64_t out_row) {
  for (; rows >= R; rows -= R, in += R * K, out += R * out_row) Tile<R, C>(in, K, panel, out, out_row);
}

template <int C>
void Panel(int64_t rows, const float* in, int64_t K, const float* panel, float* out, int64_t out_row) {
  Rows<kRows, C>(rows, in, K, panel, out, out_row);
  Rows<4, C>(rows, in, K, panel, out, out_row);
  Rows<2, C>(rows, in, K, panel, out, out_row);
  Rows<1, C>(rows, in, K, panel, out, out_row);
}

// A matrix [K, N] in panels of some columns, N padded to whole vectors; zeros until something is written.
struct Packed {
  int64_t K, N;
  std::vector<Vector> vectors;

  Packed(int64_t K, int64_t N) : K(K), N(N), vectors(K * N / kLanes) {}

  // Columns of the panel that begins with column `first`.
  int64_t Width(int64_t first) const { return N - first >= kPanel ? kPanel : kWidth; }

  // Where column n of row k lies; entry n of row k + i lies `stride` i behind.
  float* At(int64_t k, int64_t n, int64_t* stride) {
    const int64_t first = n / kPanel * kPanel;
    *stride = Width(first);
    return reinterpret_cast<float*>(vectors.data()) + K * first + k * *stride + n - first;
  }

  // out[rows, N] = in[rows, K] times this.
  void Product(int64_t rows, const float* in, float* out) const {
    const float* panel = reinterpret_cast<const float*>(vectors.data());
    for (int64_t first = 0; first < N; first += Width(first)) {
      if (Width(first) == kPanel) {
        Panel<kColumns>(rows, in, K, panel + K * first, out + first, N);
      } else {
        Panel<1>(rows, in, K, panel + K * first, out + first, N);
      }
    }
  }
};

// Numbers of a task, in whole vectors.
struct Buffer {
  std::vector<Vector> vectors;

  explicit Buffer(int64_t size) : vectors(size / kLanes) {}

  operator float*() { return reinterpret_cast<float*>(vectors.data()); }
};

struct Sizes {
  int64_t outer = 1, T, B, W, padded, gates;

  // By the states of all steps [..., T, B, W].
  Sizes(const ffi::AnyBuffer::Dimensions& h, int64_t gates) : gates(gates) {
    const size_t rank = h.size();
    for (size_t i = 0; i + 3 < rank; ++i) outer *= h[i];
    T = h[rank - 3], B = h[rank - 2], W = h[rank - 1], padded = Padded(W);
  }
};

// Runs task(o, b, rows) for some rows of the batch from row b on, of each o of the leading axes: enough tasks for all
// threads, and whole tiles.
template <typename Task>
ffi::Error EachTask(ffi::ThreadPool& pool, const Sizes& s, const Task& task) {
  const int64_t each = (s.outer * s.B + pool.num_threads() - 1) / pool.num_threads();
  const int64_t most = std::min(kMostRows, (each + kLeastRows - 1) / kLeastRows * kLeastRows), tasks = (s.B + most - 1) / most;
  return ParallelFor(pool, s.outer * tasks, [&](int64_t index) {
    const int64_t b = index % tasks * most;
    task(index / tasks, b, std::min(most, s.B - b));
  });
}

// The recurrent weights U of each o [W, gates W], for h U.
std::vector<Packed> Pack(const Sizes& s, const float* U) {
  std::vector<Packed> packed(s.outer, Packed(s.padded, s.gates * s.padded));
  int64_t stride;
  for (Packed& matrix : packed) {
    for (int64_t k = 0; k < s.W; ++k) {
      for (int64_t gate = 0; gate < s.gates; ++gate, U += s.W) {
        for (int64_t j = 0; j < s.W; j += kWidth)
          std::copy_n(U + j, std::min<int64_t>(kWidth, s.W - j), matrix.At(k, gate * s.padded + j, &stride));
      }
    }
  }
  return packed;
}

// The same transposed, for the gradient of h.
std::vector<Packed> PackTransposed(const Sizes& s, const float* U) {
  std::vector<Packed> packed(s.outer, Packed(s.gates * s.padded, s.padded));
  int64_t stride;
  for (Packed& matrix : packed) {
    for (int64_t n = 0; n < s.W; ++n) {
      for (int64_t gate = 0; gate < s.gates; ++gate, U += s.W) {
        float* to = matrix.At(gate * s.padded, n, &stride);
        for (int64_t j = 0; j < s.W; ++j) to[j * stride] = U[j];
      }
    }
  }
  return packed;
}

// Rows of numbers [rows, W] into a buffer, and back.
void Take(const Sizes& s, int64_t rows, const float* from, float* buffer) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * s.W, s.W, buffer + r * s.padded);
}

void Give(const Sizes& s, int64_t rows, const float* buffer, float* to) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(buffer + r * s.padded, s.W, to + r * s.W);
}

// ------------------------------------------------------------------------------------------------ gradient of weights

// A step of a row of the batch: the state that it found and the gradients of what U adds to.
struct Pair {
  const float *h, *d;
};

// to[r, c] += sum over pairs of h[r] d[c], for R rows and C registers of columns, of which the last has `valid` numbers.
template <int R, int C>
inline void OuterTile(const Pair* pairs, int64_t count, int64_t row, int64_t column, int64_t valid, float* to,
                      int64_t to_row) {
  Register sum[R][C] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float *h = pairs[i].h + row, *d = pairs[i].d + column;
    Register of_gates[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) of_gates[c] = Get(d + c * kWidth, c == C - 1 ? valid : kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float factor = h[r];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] += of_gates[c] * factor;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const int64_t numbers = c == C - 1 ? valid : kWidth;
      float* at = to + r * to_row + c * kWidth;
      Put(at, Get(at, numbers) + sum[r][c], numbers);
    }
  }
}

// to[rows first to last, N] += sum over pairs of h^T d. Columns come first: what they read of `d` stays in the cache.
template <int C>
void OuterColumns(const Pair* pairs, int64_t count, int64_t first, int64_t last, int64_t column, int64_t valid, float* to,
                  int64_t to_row) {
  int64_t row = first;
  for (; last - row >= kRows; row += kRows)
    OuterTile<kRows, C>(pairs, count, row, column, valid, to + row * to_row + column, to_row);
  for (; row < last; ++row) OuterTile<1, C>(pairs, count, row, column, valid, to + row * to_row + column, to_row);
}

void Outer(const std::vector<Pair>& pairs, int64_t first, int64_t last, int64_t N, float* to, int64_t to_row) {
  for (size_t i = 0; i < pairs.size(); i += kSteps) {
    const int64_t count = std::min<int64_t>(kSteps, pairs.size() - i);
    int64_t column = 0;
    for (; N - column >= kPanel; column += kPanel)
      OuterColumns<kColumns>(&pairs[i], count, first, last, column, kWidth, to, to_row);
    for (; column < N; column += kWidth) OuterColumns<1>(&pairs[i], count, first, last, column, N - column, to, to_row);
  }
}

// The gradient of U: sums over steps of outer products of the states that they found and the gradients of what U adds to.
// These lie in `d` [..., T, B, gates W] or, those of the last `apart` columns, in `more` [..., T, B, apart].
ffi::Error WeightGradients(ffi::ThreadPool& pool, const Sizes& s, const bool* reset, const float* h0, const float* h,
                           const float* d, const float* more, int64_t apart, float* dU) {
  const int64_t all = s.gates * s.W, each = (s.outer * s.W + pool.num_threads() - 1) / pool.num_threads();
  const int64_t rows = (each + kRows - 1) / kRows * kRows, tasks = (s.W + rows - 1) / rows;
  return ParallelFor(pool, s.outer * tasks, [&](int64_t index) {
    const int64_t o = index / tasks, first = index % tasks * rows, last = std::min(s.W, first + rows);
    float* to = dU + o * s.W * all;
    std::fill(to + first * all, to + last * all, 0.0f);
    std::vector<Pair> pairs, others;
    for (int64_t t = 0; t < s.T; ++t) {
      for (int64_t b = 0; b < s.B; ++b) {
        const int64_t at = (o * s.T + t) * s.B + b;
        if (reset[at]) continue;
        const float* found = t ? h + (at - s.B) * s.W : h0 + (o * s.B + b) * s.W;
        pairs.push_back({found, d + at * all});
        if (apart) others.push_back({found, more + at * apart});
      }
    }
    Outer(pairs, first, last, all - apart, to, all);
    Outer(others, first, last, apart, to + all - apart, all);
  });
}

// ---------------------------------------------------------------------------------------------------------------- GRU

// For a gradient: r, z and n of each step side by side, and q.
ffi::Error GruForward(ffi::ThreadPool pool, Floats xproj, Floats Wh, Floats bh, Bools reset, Floats h0, FloatsOut h,
                      FloatsOut gates, FloatsOut q) {
  const Sizes s(h->dimensions(), 3);
  const int64_t W = s.W, padded = s.padded;
  const std::vector<Packed> packed = Pack(s, Wh.typed_data());
  const bool keep = q->element_count();
  return EachTask(pool, s, [&](int64_t o, int64_t b, int64_t rows) {
    Buffer state(rows * padded), product(rows * 3 * padded);
    Take(s, rows, h0.typed_data() + (o * s.B + b) * W, state);
    for (int64_t t = 0; t < s.T; ++t) {
      const int64_t at = (o * s.T + t) * s.B + b;
      for (int64_t r = 0; r < rows; ++r) {
        if (reset.typed_data()[at + r]) std::fill_n(state + r * padded, padded, 0.0f);
      }
      packed[o].Product(rows, state, product);
      for (int64_t r = 0; r < rows; ++r) {
        const float *x = xproj.typed_data() + (at + r) * 3 * W, *p = product + r * 3 * padded;
        float *now = state + r * padded, *kept = gates->typed_data() + (at + r) * 3 * W;
        for (int64_t j = 0; j < W; j += kWidth, p += kWidth) {
          const int64_t valid = W - j;
          const Register open = Sigmoid(Get(x + j, valid) + Get(p, kWidth));  // r, which is a row here
          const Register z = Sigmoid(Get(x + W + j, valid) + Get(p + padded, kWidth));
          const Register inner = Get(p + 2 * padded, kWidth) + Get(bh.typed_data() + o * W + j, valid);  // q
          const Register n = Tanh(Get(x + 2 * W + j, valid) + open * inner);
          const Register next = (1.0f - z) * n + z * Get(now + j, kWidth);
          Put(now + j, next, kWidth);
          Put(h->typed_data() + (at + r) * W + j, next, valid);
          if (!keep) continue;
          Put(kept + j, open, valid), Put(kept + W + j, z, valid), Put(kept + 2 * W + j, n, valid);
          Put(q->typed_data() + (at + r) * W + j, inner, valid);
        }
      }
    }
  });
}

// The gradients `dxproj` and `dq` may lie where `gates` and `q` are.
ffi::Error GruBackward(ffi::ThreadPool pool, Floats Wh, Bools reset, Floats h0, Floats h, Floats gates, Floats q,
                       Floats g, Floats g_last, FloatsOut dxproj, FloatsOut dWh, FloatsOut dq, FloatsOut dh0) {
  const Sizes s(h.dimensions(), 3);
  const int64_t W = s.W, padded = s.padded;
  const std::vector<Packed> packed = PackTransposed(s, Wh.typed_data());
  const ffi::Error error = EachTask(pool, s, [&](int64_t o, int64_t b, int64_t rows) {
    Buffer back(rows * padded), product(rows * padded), ds(rows * 3 * padded);
    Take(s, rows, g_last.typed_data() + (o * s.B + b) * W, back);
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const int64_t at = (o * s.T + t) * s.B + b;
      const float* found = t ? h.typed_data() + (at - s.B) * W : h0.typed_data() + (o * s.B + b) * W;
      for (int64_t r = 0; r < rows; ++r) {
        const bool opens = reset.typed_data()[at + r];
        const float* kept = gates.typed_data() + (at + r) * 3 * W;
        float *dx = dxproj->typed_data() + (at + r) * 3 * W, *d = ds + r * 3 * padded, *dh_now = back + r * padded;
        for (int64_t j = 0; j < W; j += kWidth, d += kWidth) {
          const int64_t valid = W - j;
          const Register open = Get(kept + j, valid), z = Get(kept + W + j, valid), n = Get(kept + 2 * W + j, valid);
          const Register inner = Get(q.typed_data() + (at + r) * W + j, valid);
          const Register before = Get(found + r * W + j, opens ? 0 : valid);
          const Register dh = Get(g.typed_data() + (at + r) * W + j, valid) + Get(dh_now + j, kWidth);
          const Register dx_n = dh * (1.0f - z) * (1.0f - n * n), dq_now = dx_n * open;
          const Register dx_r = dx_n * inner * open * (1.0f - open), dx_z = dh * (before - n) * z * (1.0f - z);
          Put(dx + j, dx_r, valid), Put(dx + W + j, dx_z, valid), Put(dx + 2 * W + j, dx_n, valid);
          Put(dq->typed_data() + (at + r) * W + j, dq_now, valid);
          Put(d, dx_r, kWidth), Put(d + padded, dx_z, kWidth), Put(d + 2 * padded, dq_now, kWidth);
          Put(dh_now + j, dh * z, kWidth);
        }
      }
      packed[o].Product(rows, ds, product);
      for (int64_t r = 0; r < rows; ++r) {
        const bool opens = reset.typed_data()[at + r];
        float *dh_now = back + r * padded, *p = product + r * padded;
        for (int64_t j = 0; j < padded; j += kWidth)
          Put(dh_now + j, opens ? Register{} : Get(dh_now + j, kWidth) + Get(p + j, kWidth), kWidth);
      }
    }
    Give(s, rows, back, dh0->typed_data() + (o * s.B + b) * W);
  });
  if (error.failure()) return error;
  return WeightGradients(pool, s, reset.typed_data(), h0.typed_data(), h.typed_data(), dxproj->typed_data(),
                         dq->typed_data(), W, dWh->typed_data());
}

// --------------------------------------------------------------------------------------------------------------- LSTM

// For a gradient: i, f, g and o of each step side by side, and c.
ffi::Error LstmForward(ffi::ThreadPool pool, Floats xproj, Floats Wh, Bools reset, Floats c0, Floats h0, FloatsOut h,
                       FloatsOut last, FloatsOut gates, FloatsOut cells) {
  const Sizes s(h->dimensions(), 4);
  const int64_t W = s.W, padded = s.padded;
  const std::vector<Packed> packed = Pack(s, Wh.typed_data());
  const bool keep = cells->element_count();
  return EachTask(pool, s, [&](int64_t o, int64_t b, int64_t rows) {
    Buffer cell(rows * padded), state(rows * padded), product(rows * 4 * padded);
    Take(s, rows, c0.typed_data() + (o * s.B + b) * W, cell);
    Take(s, rows, h0.typed_data() + (o * s.B + b) * W, state);
    for (int64_t t = 0; t < s.T; ++t) {
      const int64_t at = (o * s.T + t) * s.B + b;
      for (int64_t r = 0; r < rows; ++r) {
        if (!reset.typed_data()[at + r]) continue;
        std::fill_n(cell + r * padded, padded, 0.0f), std::fill_n(state + r * padded, padded, 0.0f);
      }
      packed[o].Product(rows, state, product);
      for (int64_t r = 0; r < rows; ++r) {
        const float *x = xproj.typed_data() + (at + r) * 4 * W, *p = product + r * 4 * padded;
        float *now = cell + r * padded, *kept = gates->typed_data() + (at + r) * 4 * W;
        for (int64_t j = 0; j < W; j += kWidth, p += kWidth) {
          const int64_t valid = W - j;
          const Register in = Sigmoid(Get(x + j, valid) + Get(p, kWidth));
          const Register forget = Sigmoid(Get(x + W + j, valid) + Get(p + padded, kWidth));
          const Register write = Tanh(Get(x + 2 * W + j, valid) + Get(p + 2 * padded, kWidth));
          const Register out = Sigmoid(Get(x + 3 * W + j, valid) + Get(p + 3 * padded, kWidth));
          const Register c = forget * Get(now + j, kWidth) + in * write, next = out * Tanh(c);
          Put(now + j, c, kWidth);
          Put(state + r * padded + j, next, kWidth);
          Put(h->typed_data() + (at + r) * W + j, next, valid);
          if (!keep) continue;
          Put(kept + j, in, valid), Put(kept + W + j, forget, valid), Put(kept + 2 * W + j, write, valid);
          Put(kept + 3 * W + j, out, valid), Put(cells->typed_data() + (at + r) * W + j, c, valid);
        }
      }
    }
    Give(s, rows, cell, last->typed_data() + (o * s.B + b) * W);
  });
}

// The gradient `dxproj` may lie where `gates` are.
ffi::Error LstmBackward(ffi::ThreadPool pool, Floats Wh, Bools reset, Floats c0, Floats h0, Floats h, Floats gates,
                        Floats cells, Floats g, Floats g_last_c, Floats g_last_h, FloatsOut dxproj, FloatsOut dWh, FloatsOut dc0,
                        FloatsOut dh0) {
  const Sizes s(h.dimensions(), 4);
  const int64_t W = s.W, padded = s.padded;
  const std::vector<Packed> packed = PackTransposed(s, Wh.typed_data());
  const ffi::Error error = EachTask(pool, s, [&](int64_t o, int64_t b, int64_t rows) {
    Buffer back_c(rows * padded), back_h(rows * padded), ds(rows * 4 * padded);
    Take(s, rows, g_last_c.typed_data() + (o * s.B + b) * W, back_c);
    Take(s, rows, g_last_h.typed_data() + (o * s.B + b) * W, back_h);
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const int64_t at = (o * s.T + t) * s.B + b;
      for (int64_t r = 0; r < rows; ++r) {
        const bool opens = reset.typed_data()[at + r];
        const float *kept = gates.typed_data() + (at + r) * 4 * W, *c = cells.typed_data() + (at + r) * W;
        const float* found = t ? c - s.B * W : c0.typed_data() + (o * s.B + b + r) * W;
        float *dx = dxproj->typed_data() + (at + r) * 4 * W, *d = ds + r * 4 * padded, *dc_now = back_c + r * padded;
        for (int64_t j = 0; j < W; j += kWidth, d += kWidth) {
          const int64_t valid = W - j;
          const Register in = Get(kept + j, valid), forget = Get(kept + W + j, valid);
          const Register write = Get(kept + 2 * W + j, valid), out = Get(kept + 3 * W + j, valid);
          const Register squashed = Tanh(Get(c + j, valid)), before = Get(found + j, opens ? 0 : valid);
          const Register dh = Get(g.typed_data() + (at + r) * W + j, valid) + Get(back_h + r * padded + j, kWidth);
          const Register dc = Get(dc_now + j, kWidth) + dh * out * (1.0f - squashed * squashed);
          const Register d_in = dc * write * in * (1.0f - in), d_forget = dc * before * forget * (1.0f - forget);
          const Register d_write = dc * in * (1.0f - write * write), d_out = dh * squashed * out * (1.0f - out);
          Put(dx + j, d_in, valid), Put(dx + W + j, d_forget, valid);
          Put(dx + 2 * W + j, d_write, valid), Put(dx + 3 * W + j, d_out, valid);
          Put(d, d_in, kWidth), Put(d + padded, d_forget, kWidth);
          Put(d + 2 * padded, d_write, kWidth), Put(d + 3 * padded, d_out, kWidth);
          Put(dc_now + j, opens ? Register{} : dc * forget, kWidth);
        }
      }
      packed[o].Product(rows, ds, back_h);
      for (int64_t r = 0; r < rows; ++r) {
        if (reset.typed_data()[at + r]) std::fill_n(back_h + r * padded, padded, 0.0f);
      }
    }
    Give(s, rows, back_c, dc0->typed_data() + (o * s.B + b) * W);
    Give(s, rows, back_h, dh0->typed_data() + (o * s.B + b) * W);
  });
  if (error.failure()) return error;
  return WeightGradients(pool, s, reset.typed_data(), h0.typed_data(), h.typed_data(), dxproj->typed_data(), nullptr, 0,
                         dWh->typed_data());
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

XLA_FFI_DEFINE_HANDLER_SYMBOL(gru_scan_forward, GruForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Bools>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gru_scan_backward, GruBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Bools>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_scan_forward, LstmForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Bools>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_scan_backward, LstmBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Bools>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
