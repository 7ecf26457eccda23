// Selective state space of Mamba-1 with resets, float32, forward and backward (see selective_scan.py).
//
// A task is one row of the batch and a range of channels. It walks through time for 64 channels at a time, whose
// states [N, 64] stay in the first-level cache. The forward pass for training also stores the state at the start of
// each stretch of `chunk` steps; the backward pass recomputes a stretch, its states and decays in the cache, and then
// runs through it in reverse.
//
// Arrays are [..., T, B, features]: leading axes come from vmap and are rows like any other.

#include <vector>

#include "ffi.h"

namespace engram {
namespace {

struct Sizes {
  int64_t outer, T, B, D, N, tiles, groups;

  Sizes(const ffi::AnyBuffer::Dimensions& u, int64_t states, int64_t wanted_groups) {
    const size_t rank = u.size();
    outer = 1;
    for (size_t i = 0; i + 3 < rank; ++i) outer *= u[i];
    T = u[rank - 3], B = u[rank - 2], D = u[rank - 1], N = states;
    tiles = (D + kTile - 1) / kTile;
    groups = wanted_groups;
  }
};

// Task `index` of `outer * B * groups`: which arrays, which row, which channels.
struct Place {
  int64_t outer, row, group, first, last;  // channels [first, last)

  Place(const Sizes& s, int64_t index) {
    group = index % s.groups;
    row = index / s.groups % s.B;
    outer = index / s.groups / s.B;
    first = group * s.tiles / s.groups * kTile;
    last = std::min(s.D, (group + 1) * s.tiles / s.groups * kTile);
  }
};

struct Inputs {
  const float *u, *dt, *A, *B, *C;
  const bool* reset;

  Inputs(const Sizes& s, const Place& at, const float* u, const float* dt, const float* A, const float* B,
         const float* C, const bool* reset)
      : u(u + at.outer * s.T * s.B * s.D + at.row * s.D),
        dt(dt + at.outer * s.T * s.B * s.D + at.row * s.D),
        A(A + at.outer * s.N * s.D),
        B(B + at.outer * s.T * s.B * s.N + at.row * s.N),
        C(C + at.outer * s.T * s.B * s.N + at.row * s.N),
        reset(reset + at.outer * s.T * s.B + at.row) {}
};

// [N, 64] floats, padded with zeros beyond `valid` channels.
void LoadTile(Vector* tile, const float* from, int64_t N, int64_t stride, int64_t valid) {
  for (int64_t n = 0; n < N; ++n)
    for (int64_t v = 0; v < kVectors; ++v)
      tile[n * kVectors + v] = Load(from + n * stride + v * kLanes, valid - v * kLanes);
}

void StoreTile(float* to, const Vector* tile, int64_t N, int64_t stride, int64_t valid) {
  for (int64_t n = 0; n < N; ++n)
    for (int64_t v = 0; v < kVectors; ++v)
      Store(to + n * stride + v * kLanes, tile[n * kVectors + v], valid - v * kLanes);
}

// Steps that all channels take before any goes on: a page of the inputs is looked up once for all of them.
constexpr int64_t kStretch = 32;

void Forward(const Sizes& s, const Place& at, const Inputs& in, const float* h0, float* y, float* last, float* starts,
             int64_t chunk) {
  const int64_t tile = s.N * kVectors, tiles = (at.last - at.first + kTile - 1) / kTile;
  std::vector<Vector> buffer(2 * tile * tiles);
  const int64_t row = (at.outer * s.B + at.row) * s.N * s.D, chunks = (s.T + chunk - 1) / chunk;
  y += at.outer * s.T * s.B * s.D + at.row * s.D;
  for (int64_t p = 0; p < tiles; ++p) {
    const int64_t d = at.first + p * kTile;
    Vector *A = &buffer[2 * p * tile], *h = A + tile;
    LoadTile(A, in.A + d, s.N, s.D, s.D - d);
    for (int64_t n = 0; n < tile; ++n) A[n] = A[n] * kLog2E;
    LoadTile(h, h0 + row + d, s.N, s.D, s.D - d);
  }
  const int64_t stretch = starts ? chunk : kStretch;
  for (int64_t begin = 0; begin < s.T; begin += stretch) {
    const int64_t end = std::min(s.T, begin + stretch);
    for (int64_t p = 0; p < tiles; ++p) {
      const int64_t d = at.first + p * kTile, valid = s.D - d;
      Vector *A = &buffer[2 * p * tile], *h = A + tile;
      if (starts)
        StoreTile(starts + ((at.outer * chunks + begin / chunk) * s.B + at.row) * s.N * s.D + d, h, s.N, s.D, valid);
      for (int64_t t = begin; t < end; ++t) {
        if (in.reset[t * s.B]) std::fill(h, h + tile, Vector{});
        const int64_t x = t * s.B * s.D + d;
        const float *B = in.B + t * s.B * s.N, *C = in.C + t * s.B * s.N;
        Vector dt[kVectors], drive[kVectors], out[kVectors] = {};
        for (int64_t v = 0; v < kVectors; ++v) {
          dt[v] = Load(in.dt + x + v * kLanes, valid - v * kLanes);
          drive[v] = dt[v] * Load(in.u + x + v * kLanes, valid - v * kLanes);
        }
        for (int64_t n = 0; n < s.N; ++n) {
          for (int64_t v = 0; v < kVectors; ++v) {
            Vector& state = h[n * kVectors + v];
            state = Exp2(dt[v] * A[n * kVectors + v]) * state + drive[v] * B[n];
            out[v] += state * C[n];
          }
        }
        for (int64_t v = 0; v < kVectors; ++v) Store(y + x + v * kLanes, out[v], valid - v * kLanes);
      }
    }
  }
  for (int64_t p = 0; p < tiles; ++p) {
    const int64_t d = at.first + p * kTile;
    StoreTile(last + row + d, &buffer[(2 * p + 1) * tile], s.N, s.D, s.D - d);
  }
}

struct Gradients {
  float *du, *ddt, *dA, *dB, *dC, *dh0;
};

void Backward(const Sizes& s, const Place& at, const Inputs& in, const float* starts, const float* g,
              const float* g_last, const Gradients& out, int64_t chunk) {
  const int64_t tile = s.N * kVectors, tiles = (at.last - at.first + kTile - 1) / kTile;
  std::vector<Vector> buffer(3 * tile * tiles), stretch(2 * chunk * tile);
  Vector *states = stretch.data(), *decays = states + chunk * tile;
  const int64_t padded = (s.N + kLanes - 1) / kLanes * kLanes;
  std::vector<Vector> products(2 * padded);  // gradients of B[n] and C[n], to be summed over channels
  Vector *dB_rows = products.data(), *dC_rows = dB_rows + padded;
  const int64_t row = (at.outer * s.B + at.row) * s.N * s.D, chunks = (s.T + chunk - 1) / chunk;
  const int64_t sequence = at.outer * s.T * s.B * s.D + at.row * s.D;
  // Groups of channels write sums of their own, [..., groups, T, B, N], which the caller adds up.
  const int64_t sums = (at.outer * s.groups + at.group) * s.T * s.B * s.N + at.row * s.N;
  float *dB = out.dB + sums, *dC = out.dC + sums, *du = out.du + sequence, *ddt = out.ddt + sequence;
  g += sequence;
  for (int64_t t = 0; t < s.T; ++t) {
    std::fill_n(dB + t * s.B * s.N, s.N, 0.0f);
    std::fill_n(dC + t * s.B * s.N, s.N, 0.0f);
  }
  for (int64_t p = 0; p < tiles; ++p) {
    const int64_t d = at.first + p * kTile;
    Vector *A = &buffer[3 * p * tile], *back = A + tile;  // and dA, which starts at 0
    LoadTile(A, in.A + d, s.N, s.D, s.D - d);
    LoadTile(back, g_last + row + d, s.N, s.D, s.D - d);
  }
  for (int64_t c = chunks - 1; c >= 0; --c) {
    const int64_t begin = c * chunk, end = std::min(s.T, begin + chunk);
    for (int64_t p = 0; p < tiles; ++p) {
      const int64_t d = at.first + p * kTile, valid = s.D - d;
      Vector *A = &buffer[3 * p * tile], *back = A + tile, *dA = back + tile;
      LoadTile(states, starts + ((at.outer * chunks + c) * s.B + at.row) * s.N * s.D + d, s.N, s.D, valid);
      for (int64_t t = begin; t < end; ++t) {  // states[t - begin]: what step t starts from, cleared by its reset
        Vector *h = states + (t - begin) * tile, *decay = decays + (t - begin) * tile;
        if (in.reset[t * s.B]) std::fill_n(h, tile, Vector{});
        const int64_t x = t * s.B * s.D + d;
        const float* B = in.B + t * s.B * s.N;
        Vector dt[kVectors], drive[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) {
          const Vector step = Load(in.dt + x + v * kLanes, valid - v * kLanes);
          dt[v] = step * kLog2E;
          drive[v] = step * Load(in.u + x + v * kLanes, valid - v * kLanes);
        }
        for (int64_t n = 0; n < s.N; ++n) {
          for (int64_t v = 0; v < kVectors; ++v) {
            const int64_t i = n * kVectors + v;
            decay[i] = Exp2(dt[v] * A[i]);
            if (t + 1 < end) h[tile + i] = decay[i] * h[i] + drive[v] * B[n];
          }
        }
      }
      for (int64_t t = end - 1; t >= begin; --t) {
        const Vector *h = states + (t - begin) * tile, *decay = decays + (t - begin) * tile;
        const int64_t x = t * s.B * s.D + d;
        const float *B = in.B + t * s.B * s.N, *C = in.C + t * s.B * s.N;
        Vector u[kVectors], dt[kVectors], drive[kVectors], g_t[kVectors], d_drive[kVectors] = {}, d_dt[kVectors] = {};
        for (int64_t v = 0; v < kVectors; ++v) {
          u[v] = Load(in.u + x + v * kLanes, valid - v * kLanes);
          dt[v] = Load(in.dt + x + v * kLanes, valid - v * kLanes);
          g_t[v] = Load(g + x + v * kLanes, valid - v * kLanes);
          drive[v] = dt[v] * u[v];
        }
        for (int64_t n = 0; n < s.N; ++n) {
          Vector dB_n = {}, dC_n = {};
          for (int64_t v = 0; v < kVectors; ++v) {
            const int64_t i = n * kVectors + v;
            const Vector kept = decay[i] * h[i];
            const Vector dh = back[i] + g_t[v] * C[n];
            dC_n += g_t[v] * (kept + drive[v] * B[n]);
            dB_n += dh * drive[v];
            d_drive[v] += dh * B[n];
            const Vector d_exponent = dh * kept;
            d_dt[v] += d_exponent * A[i];
            dA[i] += d_exponent * dt[v];
            back[i] = dh * decay[i];
          }
          dB_rows[n] = dB_n, dC_rows[n] = dC_n;
        }
        for (int64_t n = 0; n < s.N; n += kLanes) {
          float *to_B = dB + t * s.B * s.N + n, *to_C = dC + t * s.B * s.N + n;
          Store(to_B, Load(to_B, s.N - n) + SumEach(dB_rows + n), s.N - n);
          Store(to_C, Load(to_C, s.N - n) + SumEach(dC_rows + n), s.N - n);
        }
        if (in.reset[t * s.B]) std::fill_n(back, tile, Vector{});
        for (int64_t v = 0; v < kVectors; ++v) {
          Store(du + x + v * kLanes, d_drive[v] * dt[v], valid - v * kLanes);
          Store(ddt + x + v * kLanes, d_dt[v] + d_drive[v] * u[v], valid - v * kLanes);
        }
      }
    }
  }
  for (int64_t p = 0; p < tiles; ++p) {
    const int64_t d = at.first + p * kTile;
    StoreTile(out.dA + row + d, &buffer[(3 * p + 2) * tile], s.N, s.D, s.D - d);  // of this row: [..., B, N, D]
    StoreTile(out.dh0 + row + d, &buffer[(3 * p + 1) * tile], s.N, s.D, s.D - d);
  }
}

ffi::Error RunForward(ffi::ThreadPool& pool, const Sizes& s, Floats u, Floats dt, Floats A, Floats B, Floats C, Bools reset,
                      Floats h0, FloatsOut y, FloatsOut last, float* starts, int64_t chunk) {
  return ParallelFor(pool, s.outer * s.B * s.groups, [&](int64_t index) {
    const Place at(s, index);
    const Inputs in(s, at, u.typed_data(), dt.typed_data(), A.typed_data(), B.typed_data(), C.typed_data(),
                    reset.typed_data());
    Forward(s, at, in, h0.typed_data(), y->typed_data(), last->typed_data(), starts, chunk);
  });
}

ffi::Error ForwardHandler(ffi::ThreadPool pool, Floats u, Floats dt, Floats A, Floats B, Floats C, Bools reset,
                          Floats h0, FloatsOut y, FloatsOut last, int64_t groups) {
  const Sizes s(u.dimensions(), B.dimensions().back(), groups);
  return RunForward(pool, s, u, dt, A, B, C, reset, h0, y, last, nullptr, 1);
}

ffi::Error ForwardForTrainingHandler(ffi::ThreadPool pool, Floats u, Floats dt, Floats A, Floats B, Floats C,
                                     Bools reset, Floats h0, FloatsOut y, FloatsOut last, FloatsOut starts,
                                     int64_t groups, int64_t chunk) {
  const Sizes s(u.dimensions(), B.dimensions().back(), groups);
  return RunForward(pool, s, u, dt, A, B, C, reset, h0, y, last, starts->typed_data(), chunk);
}

ffi::Error BackwardHandler(ffi::ThreadPool pool, Floats u, Floats dt, Floats A, Floats B, Floats C, Bools reset,
                           Floats starts, Floats g, Floats g_last, FloatsOut du, FloatsOut ddt, FloatsOut dA,
                           FloatsOut dB, FloatsOut dC, FloatsOut dh0, int64_t groups, int64_t chunk) {
  const Sizes s(u.dimensions(), B.dimensions().back(), groups);
  const Gradients out{du->typed_data(), ddt->typed_data(), dA->typed_data(),
                      dB->typed_data(), dC->typed_data(),  dh0->typed_data()};
  return ParallelFor(pool, s.outer * s.B * s.groups, [&](int64_t index) {
    const Place at(s, index);
    const Inputs in(s, at, u.typed_data(), dt.typed_data(), A.typed_data(), B.typed_data(), C.typed_data(),
                    reset.typed_data());
    Backward(s, at, in, starts.typed_data(), g.typed_data(), g_last.typed_data(), out, chunk);
  });
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

#define ENGRAM_INPUTS                                                                                     \
  Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Bools>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(selective_scan_forward, ForwardHandler,
                              ffi::Ffi::Bind().ENGRAM_INPUTS.Arg<Floats>().Ret<Floats>().Ret<Floats>().Attr<int64_t>(
                                  "groups"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(selective_scan_forward_for_training, ForwardForTrainingHandler,
                              ffi::Ffi::Bind()
                                  .ENGRAM_INPUTS.Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("chunk"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(selective_scan_backward, BackwardHandler,
                              ffi::Ffi::Bind()
                                  .ENGRAM_INPUTS.Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("chunk"));
