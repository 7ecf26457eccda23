// Gated linear attention with resets, float32, forward and backward (see gla_scan.py).
//
// A task is one head of one row of the batch. It walks through time with 64 columns of the state at a time, which stay
// in the first-level cache: K rows of 4 vectors. Columns do not meet in the forward pass, and in the backward pass only
// in sums over them.
//
// The backward pass goes forwards once more, for the gradient of q, and keeps the state every 16 steps. Then it goes
// backwards with the gradient G of the state, which makes those of k and v, and makes the faded states a[t] S[t-1] of 16
// steps again: their product with G is the gradient of the decay. (That gradient also follows from q dq and k dk alone, as a
// running difference. Where decays are strong nothing is left of it in float32.)
//
// Arrays are [..., T, B, heads, features]: leading axes come from vmap and are rows like any other.

#include <vector>

#include "ffi.h"

namespace engram {
namespace {

constexpr int64_t kStretch = 16;

struct Sizes {
  int64_t outer, T, B, H, K, V, keys, decays;  // keys: heads of q and k, 1 or H; decays: 1 or K

  Sizes(const ffi::AnyBuffer::Dimensions& q, const ffi::AnyBuffer::Dimensions& v,
        const ffi::AnyBuffer::Dimensions& log_decay) {
    const size_t rank = v.size();
    outer = 1;
    for (size_t i = 0; i + 4 < rank; ++i) outer *= v[i];
    T = v[rank - 4], B = v[rank - 3], H = v[rank - 2], V = v[rank - 1];
    keys = q[rank - 2], K = q[rank - 1], decays = log_decay[rank - 1];
  }

  int64_t Padded() const { return (K + kLanes - 1) / kLanes * kLanes; }
};

// One head of one row: where each array starts, and how far its steps lie apart.
struct Head {
  const float *q, *k, *v, *log_decay;
  const bool* reset;
  int64_t keys, values, decays, rows;  // strides of a step
  // Offsets of this head in arrays [T, B, H, K], [T, B, H, V], [T, B, H, decays] and [B, H, K, V].
  int64_t own_keys, own_values, own_decays, state;

  Head(const Sizes& s, int64_t index, const float* q, const float* k, const float* v, const float* log_decay,
       const bool* reset) {
    const int64_t h = index % s.H, b = index / s.H % s.B, outer = index / s.H / s.B, first = outer * s.T * s.B + b;
    const int64_t of_keys = (first * s.keys + (s.keys == 1 ? 0 : h)) * s.K;
    own_keys = (first * s.H + h) * s.K, own_values = (first * s.H + h) * s.V;
    own_decays = (first * s.H + h) * s.decays;
    state = ((outer * s.B + b) * s.H + h) * s.K * s.V;
    this->q = q + of_keys, this->k = k + of_keys, this->v = v + own_values;
    this->log_decay = log_decay + own_decays;
    this->reset = reset + first;
    keys = s.B * s.keys * s.K, values = s.B * s.H * s.V, decays = s.B * s.H * s.decays, rows = s.B;
  }
};

// What a tile of columns works on.
struct Tile {
  int64_t K, valid;
  std::vector<Vector> state, sums;
  std::vector<float> decay;

  Tile(const Sizes& s, int64_t first)
      : K(s.K), valid(s.V - first), state(s.K * kVectors), sums(s.Padded()), decay(s.Padded()) {}

  void Load(const float* from, int64_t V) {
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < kVectors; ++j)
        state[i * kVectors + j] = engram::Load(from + i * V + j * kLanes, valid - j * kLanes);
  }

  void Store(float* to, int64_t V) const {
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < kVectors; ++j)
        engram::Store(to + i * V + j * kLanes, state[i * kVectors + j], valid - j * kLanes);
  }

  void LoadColumns(Vector columns[kVectors], const float* from) const {
    for (int64_t j = 0; j < kVectors; ++j) columns[j] = engram::Load(from + j * kLanes, valid - j * kLanes);
  }

  void StoreColumns(float* to, const Vector columns[kVectors]) const {
    for (int64_t j = 0; j < kVectors; ++j) engram::Store(to + j * kLanes, columns[j], valid - j * kLanes);
  }

  void Clear() { std::fill(state.begin(), state.end(), Vector{}); }

  // exp of the step's decays, one for each row of the state.
  void Fade(const Sizes& s, const float* log_decay) {
    if (s.decays == 1) {
      const Vector all = Exp2(Vector{} + *log_decay * kLog2E);
      std::fill(decay.begin(), decay.end(), all[0]);
    } else {
      for (int64_t i = 0; i < K; i += kLanes)
        engram::Store(&decay[i], Exp2(engram::Load(log_decay + i, K - i) * kLog2E), kLanes);
    }
  }

  // to[i] += the sum of the lanes of rows[i].
  void AddSums(const Vector* rows, float* to) const {
    for (int64_t i = 0; i < K; i += kLanes)
      engram::Store(to + i, engram::Load(to + i, K - i) + SumEach(rows + i), K - i);
  }
};

void Forward(const Sizes& s, const Head& at, const float* h0, float* y, float* last) {
  for (int64_t first = 0; first < s.V; first += kTile) {
    Tile tile(s, first);
    Vector* state = tile.state.data();
    tile.Load(h0 + at.state + first, s.V);
    for (int64_t t = 0; t < s.T; ++t) {
      if (at.reset[t * at.rows]) tile.Clear();
      tile.Fade(s, at.log_decay + t * at.decays);
      const float *q = at.q + t * at.keys, *k = at.k + t * at.keys, *decay = tile.decay.data();
      Vector v[kVectors], out[kVectors] = {};
      tile.LoadColumns(v, at.v + t * at.values + first);
      for (int64_t i = 0; i < s.K; ++i) {
        for (int64_t j = 0; j < kVectors; ++j) {
          Vector& cell = state[i * kVectors + j];
          cell = cell * decay[i] + v[j] * k[i];
          out[j] += cell * q[i];
        }
      }
      tile.StoreColumns(y + at.own_values + t * at.values + first, out);
    }
    tile.Store(last + at.state + first, s.V);
  }
}

struct Gradients {
  float *dq, *dk, *dv, *d_log_decay, *dh0;  // of q and k for each head
};

void Backward(const Sizes& s, const Head& at, const float* h0, const float* g, const float* g_last,
              const Gradients& out) {
  float *dq = out.dq + at.own_keys, *dk = out.dk + at.own_keys;
  const int64_t keys = s.B * s.H * s.K;  // stride of a step in them
  for (int64_t t = 0; t < s.T; ++t) {
    std::fill_n(dq + t * keys, s.K, 0.0f);
    std::fill_n(dk + t * keys, s.K, 0.0f);
  }
  float* d_log_decay = out.d_log_decay + at.own_decays;
  for (int64_t t = 0; t < s.T; ++t) std::fill_n(d_log_decay + t * at.decays, s.decays, 0.0f);
  const int64_t cells = s.K * kVectors;
  std::vector<Vector> starts((s.T + kStretch - 1) / kStretch * cells), stretch(kStretch * cells), products(s.Padded());
  for (int64_t first = 0; first < s.V; first += kTile) {
    Tile tile(s, first);
    Vector *state = tile.state.data(), *sums = tile.sums.data();
    tile.Load(h0 + at.state + first, s.V);
    for (int64_t t = 0; t < s.T; ++t) {
      if (t % kStretch == 0) std::copy_n(state, cells, &starts[t / kStretch * cells]);
      if (at.reset[t * at.rows]) tile.Clear();
      tile.Fade(s, at.log_decay + t * at.decays);
      const float *k = at.k + t * at.keys, *decay = tile.decay.data();
      Vector v[kVectors], g_t[kVectors];
      tile.LoadColumns(v, at.v + t * at.values + first);
      tile.LoadColumns(g_t, g + at.own_values + t * at.values + first);
      for (int64_t i = 0; i < s.K; ++i) {
        Vector sum = {};
        for (int64_t j = 0; j < kVectors; ++j) {
          Vector& cell = state[i * kVectors + j];
          cell = cell * decay[i] + v[j] * k[i];
          sum += cell * g_t[j];
        }
        sums[i] = sum;
      }
      tile.AddSums(sums, dq + t * keys);
    }
    tile.Load(g_last + at.state + first, s.V);  // from here on the gradient of the state
    for (int64_t begin = (s.T - 1) / kStretch * kStretch; begin >= 0; begin -= kStretch) {
      const int64_t end = std::min(s.T, begin + kStretch);
      Vector* now = &starts[begin / kStretch * cells];
      for (int64_t t = begin; t < end; ++t) {  // stretch[t - begin]: the state before step t, cleared by its reset, faded
        if (at.reset[t * at.rows]) std::fill_n(now, cells, Vector{});
        tile.Fade(s, at.log_decay + t * at.decays);
        const float *k = at.k + t * at.keys, *decay = tile.decay.data();
        Vector v[kVectors], *faded = &stretch[(t - begin) * cells];
        tile.LoadColumns(v, at.v + t * at.values + first);
        for (int64_t i = 0; i < s.K; ++i) {
          for (int64_t j = 0; j < kVectors; ++j) {
            const int64_t cell = i * kVectors + j;
            faded[cell] = now[cell] * decay[i];
            now[cell] = faded[cell] + v[j] * k[i];
          }
        }
      }
      for (int64_t t = end - 1; t >= begin; --t) {
        tile.Fade(s, at.log_decay + t * at.decays);
        const float *q = at.q + t * at.keys, *k = at.k + t * at.keys, *decay = tile.decay.data();
        const Vector* faded = &stretch[(t - begin) * cells];
        Vector v[kVectors], g_t[kVectors], dv[kVectors] = {}, all = {};
        tile.LoadColumns(v, at.v + t * at.values + first);
        tile.LoadColumns(g_t, g + at.own_values + t * at.values + first);
        for (int64_t i = 0; i < s.K; ++i) {
          Vector sum = {}, product = {};
          for (int64_t j = 0; j < kVectors; ++j) {
            Vector& cell = state[i * kVectors + j];
            const Vector total = cell + g_t[j] * q[i];
            sum += total * v[j];
            product += total * faded[i * kVectors + j];
            dv[j] += total * k[i];
            cell = total * decay[i];
          }
          sums[i] = sum, products[i] = product;
          all += product;
        }
        tile.AddSums(sums, dk + t * keys);
        if (s.decays == 1) {
          for (int64_t lane = 0; lane < kLanes; ++lane) d_log_decay[t * at.decays] += all[lane];
        } else {
          tile.AddSums(products.data(), d_log_decay + t * at.decays);
        }
        tile.StoreColumns(out.dv + at.own_values + t * at.values + first, dv);
        if (at.reset[t * at.rows]) tile.Clear();
      }
    }
    tile.Store(out.dh0 + at.state + first, s.V);
  }
}

ffi::Error ForwardHandler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats log_decay, Bools reset, Floats h0,
                          FloatsOut y, FloatsOut last) {
  const Sizes s(q.dimensions(), v.dimensions(), log_decay.dimensions());
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    const Head at(s, index, q.typed_data(), k.typed_data(), v.typed_data(), log_decay.typed_data(), reset.typed_data());
    Forward(s, at, h0.typed_data(), y->typed_data(), last->typed_data());
  });
}

ffi::Error BackwardHandler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats log_decay, Bools reset, Floats h0,
                           Floats g, Floats g_last, FloatsOut dq, FloatsOut dk, FloatsOut dv, FloatsOut d_log_decay,
                           FloatsOut dh0) {
  const Sizes s(q.dimensions(), v.dimensions(), log_decay.dimensions());
  const Gradients out{dq->typed_data(), dk->typed_data(), dv->typed_data(), d_log_decay->typed_data(),
                      dh0->typed_data()};
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    const Head at(s, index, q.typed_data(), k.typed_data(), v.typed_data(), log_decay.typed_data(), reset.typed_data());
    Backward(s, at, h0.typed_data(), g.typed_data(), g_last.typed_data(), out);
  });
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

#define ENGRAM_INPUTS                                                                                      \
  Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Bools>().Arg<Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(gla_scan_forward, ForwardHandler,
                              ffi::Ffi::Bind().ENGRAM_INPUTS.Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gla_scan_backward, BackwardHandler,
                              ffi::Ffi::Bind()
                                  .ENGRAM_INPUTS.Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
