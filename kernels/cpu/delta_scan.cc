// The delta rule with resets, float32, forward and backward (see delta_scan.py).
//
// A task is one head of one row of the batch. It walks through time with up to 64 columns of the state at a time, which
// stay in the first-level cache. Columns meet only in the backward pass, in sums over them.
//
// The forward pass for a gradient also hands out the state before every stretch of some updates. The backward pass takes
// the stretches from the last to the first: it makes the states of one again, and then walks backwards through it with
// the gradient G of the state.
//
// Arrays are [..., T, B, updates, heads, features]: leading axes come from vmap and are rows like any other.

#include <vector>

#include "ffi.h"

namespace engram {
namespace {

constexpr int64_t kUnrolled = 4;  // rows of the state that are taken together, in sums of their own

struct Sizes {
  int64_t outer, T, B, n, H, K, V, decays, stretch;  // n: updates a step; decays: none, 1 or K; stretch: steps
  bool tied;                                         // keys are read where they are written

  Sizes(const ffi::AnyBuffer::Dimensions& k, const ffi::AnyBuffer::Dimensions& v,
        const ffi::AnyBuffer::Dimensions& log_decay, const ffi::AnyBuffer::Dimensions& read, int64_t stretch)
      : stretch(stretch) {
    const size_t rank = v.size();
    outer = 1;
    for (size_t i = 0; i + 5 < rank; ++i) outer *= v[i];
    T = v[rank - 5], B = v[rank - 4], n = v[rank - 3], H = v[rank - 2], V = v[rank - 1];
    K = k[rank - 1], decays = log_decay[log_decay.size() - 1], tied = read[rank - 1] == 0;
  }

  int64_t Rows() const { return (K + kUnrolled - 1) / kUnrolled * kUnrolled; }
  int64_t Padded() const { return (K + kLanes - 1) / kLanes * kLanes; }
  int64_t Stretches() const { return (T + stretch - 1) / stretch; }
};

// One head of one row: offsets of its first entries, and how far entries of the following steps and updates lie apart.
struct Head {
  struct Place {
    int64_t first, step, update;

    int64_t At(int64_t t, int64_t i = 0) const { return first + t * step + i * update; }
  };
  Place query, key, out, value, beta, decay, reset, start;  // `out`: y; `start`: states before stretches, by stretch
  int64_t state;

  Head(const Sizes& s, int64_t index) {
    const int64_t h = index % s.H, b = index / s.H % s.B, outer = index / s.H / s.B, row = outer * s.T * s.B + b;
    const auto place = [&](int64_t updates, int64_t size) {
      return Place{(row * updates * s.H + h) * size, s.B * updates * s.H * size, s.H * size};
    };
    query = place(1, s.K), out = place(1, s.V), decay = place(1, s.decays);
    key = place(s.n, s.K), value = place(s.n, s.V), beta = place(s.n, 1);
    reset = {row, s.B, 0};
    const int64_t size = s.K * s.V;
    state = ((outer * s.B + b) * s.H + h) * size;
    start = {((outer * s.Stretches() * s.B + b) * s.H + h) * size, s.B * s.H * size, 0};
  }
};

struct Inputs {
  const float *q, *k, *v, *beta, *log_decay, *read;
  const bool* reset;
  const float* h0;

  Inputs(const Sizes& s, Floats q, Floats k, Floats v, Floats beta, Floats log_decay, Floats read, Bools reset, Floats h0)
      : q(q.typed_data()),
        k(k.typed_data()),
        v(v.typed_data()),
        beta(beta.typed_data()),
        log_decay(log_decay.typed_data()),
        read(s.tied ? this->k : read.typed_data()),
        reset(reset.typed_data()),
        h0(h0.typed_data()) {}
};

// `K` numbers in a place of their own, with zeros behind them.
struct Padded {
  std::vector<Vector> vectors;

  explicit Padded(const Sizes& s) : vectors(s.Padded() / kLanes) {}

  const float* Take(const float* from, int64_t K) {
    for (int64_t i = 0; i < K; i += kLanes) vectors[i / kLanes] = engram::Load(from + i, K - i);
    return reinterpret_cast<const float*>(vectors.data());
  }
};

// exp of a step's decays, one for each row of the state.
void Fade(const Sizes& s, const float* log_decay, float* decay) {
  if (s.decays == 0) {
    std::fill_n(decay, s.Padded(), 1.0f);
  } else if (s.decays == 1) {
    std::fill_n(decay, s.Padded(), Exp2(Vector{} + *log_decay * kLog2E)[0]);
  } else {
    for (int64_t i = 0; i < s.K; i += kLanes) {
      engram::Store(decay + i, Exp2(engram::Load(log_decay + i, s.K - i) * kLog2E), kLanes);
    }
  }
}

// Adds to to[i] the sum of the lanes of rows[i].
void AddSums(const Sizes& s, const Vector* rows, float* to) {
  for (int64_t i = 0; i < s.K; i += kLanes)
    engram::Store(to + i, engram::Load(to + i, s.K - i) + SumEach(rows + i), s.K - i);
}

float Sum(Vector v) {
  float sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// N vectors of columns: what a step works on.
template <int N>
struct Columns {
  Vector of[N];

  void Load(const float* from, int64_t valid) {
    for (int j = 0; j < N; ++j) of[j] = engram::Load(from + j * kLanes, valid - j * kLanes);
  }

  void Store(float* to, int64_t valid) const {
    for (int j = 0; j < N; ++j) engram::Store(to + j * kLanes, of[j], valid - j * kLanes);
  }

  Vector Times(const Columns& other) const {
    Vector sum = of[0] * other.of[0];
    for (int j = 1; j < N; ++j) sum += of[j] * other.of[j];
    return sum;
  }
};

// What sums over rows are collected in: chains of additions that do not wait for each other.
template <int N>
struct Sums {
  Columns<N> chains[kUnrolled] = {};

  void Add(int chain, const Columns<N>& row, float factor) {
    for (int j = 0; j < N; ++j) chains[chain].of[j] += row.of[j] * factor;
  }

  Columns<N> Total() const {
    Columns<N> total;
    for (int j = 0; j < N; ++j) total.of[j] = (chains[0].of[j] + chains[1].of[j]) + (chains[2].of[j] + chains[3].of[j]);
    return total;
  }
};

// Runs body(row, chain) over the rows of a state, several together.
template <typename Body>
inline __attribute__((always_inline)) void EachRow(int64_t rows, const Body& body) {
  for (int64_t i = 0; i < rows; i += kUnrolled) {
    body(i, 0), body(i + 1, 1), body(i + 2, 2), body(i + 3, 3);
  }
}

template <int N>
void LoadState(const Sizes& s, const float* from, int64_t valid, Columns<N>* state) {
  for (int64_t i = 0; i < s.K; ++i) state[i].Load(from + i * s.V, valid);
}

template <int N>
void StoreState(const Sizes& s, const Columns<N>* state, float* to, int64_t valid) {
  for (int64_t i = 0; i < s.K; ++i) state[i].Store(to + i * s.V, valid);
}

// Rows beyond K are 0 from the start, and no key adds to them.
template <int N>
using State = std::vector<Columns<N>>;

template <int N>
void Forward(const Sizes& s, const Head& at, const Inputs& x, int64_t first, float* y, float* last, float* starts) {
  const int64_t rows = s.Rows(), valid = s.V - first;
  State<N> storage(rows);
  Columns<N>* state = storage.data();
  Padded query(s), key(s), read_key(s), decays(s);
  float* decay = reinterpret_cast<float*>(decays.vectors.data());
  LoadState<N>(s, x.h0 + at.state + first, valid, state);
  for (int64_t t = 0; t < s.T; ++t) {
    if (starts && t % s.stretch == 0) StoreState<N>(s, state, starts + at.start.At(t / s.stretch) + first, valid);
    if (x.reset[at.reset.At(t)]) std::fill_n(state, rows, Columns<N>{});
    Fade(s, x.log_decay + at.decay.At(t), decay);
    const float* q = query.Take(x.q + at.query.At(t), s.K);
    Columns<N> out;
    for (int64_t i = 0; i < s.n; ++i) {
      const float* k = key.Take(x.k + at.key.At(t, i), s.K);
      const float* p = s.tied ? k : read_key.Take(x.read + at.key.At(t, i), s.K);
      const float beta = x.beta[at.beta.At(t, i)];
      Sums<N> held, seen;
      if (i == 0) {
        EachRow(rows, [&](int64_t r, int chain) {
          for (int j = 0; j < N; ++j) state[r].of[j] *= decay[r];
          held.Add(chain, state[r], p[r]);
        });
      } else {
        EachRow(rows, [&](int64_t r, int chain) { held.Add(chain, state[r], p[r]); });
      }
      Columns<N> write;
      write.Load(x.v + at.value.At(t, i) + first, valid);
      const Columns<N> old = held.Total();
      for (int j = 0; j < N; ++j) write.of[j] = beta * (write.of[j] - old.of[j]);
      EachRow(rows, [&](int64_t r, int chain) {
        for (int j = 0; j < N; ++j) state[r].of[j] += write.of[j] * k[r];
        seen.Add(chain, state[r], q[r]);
      });
      out = seen.Total();
    }
    out.Store(y + at.out.At(t) + first, valid);
  }
  StoreState<N>(s, state, last + at.state + first, valid);
}

struct Gradients {
  float *dq, *dk, *dv, *dbeta, *d_log_decay, *dread, *dh0;  // where keys are tied, `dread` is `dk`
};

template <int N>
void Backward(const Sizes& s, const Head& at, const Inputs& x, int64_t first, const float* starts, const float* g,
              const float* g_last, const Gradients& out) {
  const int64_t rows = s.Rows(), valid = s.V - first, updates = s.stretch * s.n;
  State<N> gradient(rows), now_storage(rows), before(updates * rows);  // `before`: the state that each update finds
  State<N> errors(updates);                                            // v - S^T p
  Columns<N>*G = gradient.data(), *now = now_storage.data();
  std::vector<Vector> by_key(s.Padded()), by_read(s.Padded()), by_query(s.Padded()), by_decay(s.Padded());
  std::vector<float> decays(s.stretch * s.Padded());
  Padded query(s), key(s), read_key(s);
  LoadState<N>(s, g_last + at.state + first, valid, G);
  for (int64_t stretch = s.Stretches() - 1; stretch >= 0; --stretch) {
    const int64_t begin = stretch * s.stretch, end = std::min(s.T, begin + s.stretch);
    LoadState<N>(s, starts + at.start.At(stretch) + first, valid, now);
    for (int64_t t = begin; t < end; ++t) {
      if (x.reset[at.reset.At(t)]) std::fill_n(now, rows, Columns<N>{});
      float* decay = &decays[(t - begin) * s.Padded()];
      Fade(s, x.log_decay + at.decay.At(t), decay);
      for (int64_t i = 0; i < s.n; ++i) {
        const int64_t update = (t - begin) * s.n + i;
        const float* k = key.Take(x.k + at.key.At(t, i), s.K);
        const float* p = s.tied ? k : read_key.Take(x.read + at.key.At(t, i), s.K);
        const float beta = x.beta[at.beta.At(t, i)];
        Columns<N>* found = &before[update * rows];
        Sums<N> held;
        if (i == 0) {
          EachRow(rows, [&](int64_t r, int chain) {
            for (int j = 0; j < N; ++j) found[r].of[j] = now[r].of[j] * decay[r];
            held.Add(chain, found[r], p[r]);
          });
        } else {
          EachRow(rows, [&](int64_t r, int chain) { held.Add(chain, found[r] = now[r], p[r]); });
        }
        Columns<N>& error = errors[update];
        error.Load(x.v + at.value.At(t, i) + first, valid);
        const Columns<N> old = held.Total();
        for (int j = 0; j < N; ++j) error.of[j] -= old.of[j];
        EachRow(rows, [&](int64_t r, int) {
          for (int j = 0; j < N; ++j) now[r].of[j] = found[r].of[j] + error.of[j] * beta * k[r];
        });
      }
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      const float* q = query.Take(x.q + at.query.At(t), s.K);
      const float* decay = &decays[(t - begin) * s.Padded()];
      float *dq = out.dq + at.query.At(t), *d_log_decay = out.d_log_decay + at.decay.At(t);
      Columns<N> g_t;
      g_t.Load(g + at.out.At(t) + first, valid);
      for (int64_t i = s.n - 1; i >= 0; --i) {
        const int64_t update = (t - begin) * s.n + i;
        const float* k = key.Take(x.k + at.key.At(t, i), s.K);
        const float* p = s.tied ? k : read_key.Take(x.read + at.key.At(t, i), s.K);
        const float beta = x.beta[at.beta.At(t, i)];
        const Columns<N>*found = &before[update * rows], &error = errors[update];
        Sums<N> d_write;
        if (i == s.n - 1) {  // y[t] = (found + k beta error^T)^T q
          const float of_write = beta * Sum(g_t.Times(error));
          EachRow(rows, [&](int64_t r, int chain) {
            for (int j = 0; j < N; ++j) G[r].of[j] += g_t.of[j] * q[r];
            d_write.Add(chain, G[r], k[r]);
            by_key[r] = G[r].Times(error) * beta;
            by_query[r] = found[r].Times(g_t);
          });
          AddSums(s, by_query.data(), dq);
          for (int64_t r = 0; r < s.K; ++r) dq[r] += k[r] * of_write;
        } else {
          EachRow(rows, [&](int64_t r, int chain) {
            d_write.Add(chain, G[r], k[r]);
            by_key[r] = G[r].Times(error) * beta;
          });
        }
        AddSums(s, by_key.data(), out.dk + at.key.At(t, i));
        Columns<N> d_error = d_write.Total();
        out.dbeta[at.beta.At(t, i)] += Sum(d_error.Times(error));
        for (int j = 0; j < N; ++j) d_error.of[j] *= beta;
        d_error.Store(out.dv + at.value.At(t, i) + first, valid);
        EachRow(rows, [&](int64_t r, int) {
          for (int j = 0; j < N; ++j) G[r].of[j] -= d_error.of[j] * p[r];
          by_read[r] = -found[r].Times(d_error);
        });
        AddSums(s, by_read.data(), out.dread + at.key.At(t, i));
        if (i > 0 || s.decays == 0) continue;
        EachRow(rows, [&](int64_t r, int) {
          by_decay[r] = G[r].Times(found[r]);
          for (int j = 0; j < N; ++j) G[r].of[j] *= decay[r];
        });
        if (s.decays == 1) {
          Vector all = {};
          for (int64_t r = 0; r < s.K; ++r) all += by_decay[r];
          *d_log_decay += Sum(all);
        } else {
          AddSums(s, by_decay.data(), d_log_decay);
        }
      }
      if (x.reset[at.reset.At(t)]) std::fill_n(G, rows, Columns<N>{});
    }
  }
  StoreState<N>(s, G, out.dh0 + at.state + first, valid);
}

// Runs pass(N, first) for every tile of columns, as many vectors wide as it needs; N is an integral_constant.
template <typename Pass>
void EachTile(const Sizes& s, const Pass& pass) {
  for (int64_t first = 0; first < s.V; first += kTile) {
    switch ((std::min(s.V - first, kTile) + kLanes - 1) / kLanes) {
      case 1: pass(std::integral_constant<int, 1>(), first); break;
      case 2: pass(std::integral_constant<int, 2>(), first); break;
      case 3: pass(std::integral_constant<int, 3>(), first); break;
      default: pass(std::integral_constant<int, 4>(), first);
    }
  }
}

ffi::Error ForwardHandler(ffi::ThreadPool pool, int64_t stretch, Floats q, Floats k, Floats v, Floats beta,
                          Floats log_decay, Floats read, Bools reset, Floats h0, FloatsOut y, FloatsOut last,
                          FloatsOut starts) {
  const Sizes s(k.dimensions(), v.dimensions(), log_decay.dimensions(), read.dimensions(), stretch);
  const Inputs x(s, q, k, v, beta, log_decay, read, reset, h0);
  float* kept = starts->element_count() ? starts->typed_data() : nullptr;
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    const Head at(s, index);
    EachTile(s, [&](auto n, int64_t first) {
      Forward<decltype(n)::value>(s, at, x, first, y->typed_data(), last->typed_data(), kept);
    });
  });
}

ffi::Error BackwardHandler(ffi::ThreadPool pool, int64_t stretch, Floats q, Floats k, Floats v, Floats beta,
                           Floats log_decay, Floats read, Bools reset, Floats h0, Floats starts, Floats g,
                           Floats g_last, FloatsOut dq, FloatsOut dk, FloatsOut dv, FloatsOut dbeta,
                           FloatsOut d_log_decay, FloatsOut dread, FloatsOut dh0) {
  const Sizes s(k.dimensions(), v.dimensions(), log_decay.dimensions(), read.dimensions(), stretch);
  const Inputs x(s, q, k, v, beta, log_decay, read, reset, h0);
  const Gradients out{dq->typed_data(),
                      dk->typed_data(),
                      dv->typed_data(),
                      dbeta->typed_data(),
                      d_log_decay->typed_data(),
                      s.tied ? dk->typed_data() : dread->typed_data(),
                      dh0->typed_data()};
  return ParallelFor(pool, s.outer * s.B * s.H, [&](int64_t index) {
    const Head at(s, index);
    for (int64_t t = 0; t < s.T; ++t) {  // what tiles add to
      std::fill_n(out.dq + at.query.At(t), s.K, 0.0f);
      std::fill_n(out.d_log_decay + at.decay.At(t), s.decays, 0.0f);
      for (int64_t i = 0; i < s.n; ++i) {
        std::fill_n(out.dk + at.key.At(t, i), s.K, 0.0f);
        std::fill_n(out.dread + at.key.At(t, i), s.K, 0.0f);
        out.dbeta[at.beta.At(t, i)] = 0;
      }
    }
    EachTile(s, [&](auto n, int64_t first) {
      Backward<decltype(n)::value>(s, at, x, first, starts.typed_data(), g.typed_data(), g_last.typed_data(), out);
    });
  });
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

#define ENGRAM_INPUTS            \
  Ctx<ffi::ThreadPool>()         \
      .Attr<int64_t>("stretch")  \
      .Arg<Floats>()             \
      .Arg<Floats>()             \
      .Arg<Floats>()             \
      .Arg<Floats>()             \
      .Arg<Floats>()             \
      .Arg<Floats>()             \
      .Arg<Bools>()              \
      .Arg<Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(delta_scan_forward, ForwardHandler,
                              ffi::Ffi::Bind().ENGRAM_INPUTS.Ret<Floats>().Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(delta_scan_backward, BackwardHandler,
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
                                  .Ret<Floats>());
