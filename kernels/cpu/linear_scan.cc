// Diagonal linear recurrence with resets, float32 and complex64, forward and backward (see linear_scan.py).
//
// The recurrence does one multiplication per number it moves, so memory is all that counts. A task is a span of whole
// rows of the batch: at each step it reads and writes one contiguous piece of every array, and its state stays in the
// cache.
//
// Arrays are [..., T, B, D]: leading axes come from vmap and are rows like any other. Complex numbers are pairs of
// floats.

#include <type_traits>
#include <vector>

#include "ffi.h"

namespace engram {
namespace {

constexpr int64_t kLarge = 16 << 20;  // bytes

// How the numbers of a row lie in memory. `Number` is what one step of a loop over them works on, `TimesPlus(a, b, c)`
// is a * b + c. Cotangents of complex numbers follow JAX's convention, in which products are not conjugated; those of two
// real planes are the gradient itself, the conjugate of that.
struct RealNumbers {
  using Number = Vector;
  static Number Load(const float* row, int64_t d, int64_t width) { return engram::Load(row + d, width - d); }
  static void Store(float* row, int64_t d, int64_t width, const Number& v) { engram::Store(row + d, v, width - d); }
  static void Stream(float* row, int64_t d, int64_t, const Number& v) { engram::Stream(row + d, v); }
  static Number Conjugate(const Number& v) { return v; }
  static Number Plus(const Number& a, const Number& b) { return a + b; }
  static Number TimesPlus(const Number& a, const Number& b, const Number& c) { return a * b + c; }
};

// Pairs (re, im, re, im, ...): complex64.
struct ComplexNumbers : RealNumbers {
  static Number TimesPlus(const Number& a, const Number& b, const Number& c) {
    constexpr Vector signs = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    const Vector re = ENGRAM_SHUFFLE(a, a, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
    const Vector im = ENGRAM_SHUFFLE(a, a, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
    const Vector swapped = ENGRAM_SHUFFLE(b, b, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return im * signs * swapped + (re * b + c);
  }
};

// All real parts, then all imaginary parts: what a matrix product of real matrices makes.
struct Planes {
  struct Number {
    Vector re, im;
  };
  static Number Load(const float* row, int64_t d, int64_t width) {
    return {engram::Load(row + d, width / 2 - d), engram::Load(row + width / 2 + d, width / 2 - d)};
  }
  static void Store(float* row, int64_t d, int64_t width, const Number& v) {
    engram::Store(row + d, v.re, width / 2 - d);
    engram::Store(row + width / 2 + d, v.im, width / 2 - d);
  }
  static void Stream(float* row, int64_t d, int64_t width, const Number& v) {
    engram::Stream(row + d, v.re);
    engram::Stream(row + width / 2 + d, v.im);
  }
  static Number Conjugate(const Number& v) { return {v.re, -v.im}; }
  static Number Plus(const Number& a, const Number& b) { return {a.re + b.re, a.im + b.im}; }
  static Number TimesPlus(const Number& a, const Number& b, const Number& c) {
    return {a.re * b.re - a.im * b.im + c.re, a.re * b.im + a.im * b.re + c.im};
  }
};

struct Sizes {
  int64_t outer, T, B, D, spans;  // D: floats of a row
  bool large;  // too large for what is written to be in the cache when it is read

  template <typename Dimensions>
  Sizes(const Dimensions& x, int64_t floats, int64_t threads) {
    const size_t rank = x.size();
    outer = 1;
    for (size_t i = 0; i + 3 < rank; ++i) outer *= x[i];
    T = x[rank - 3], B = x[rank - 2], D = x[rank - 1] * floats;
    large = outer * T * B * D * static_cast<int64_t>(sizeof(float)) >= kLarge;
    // Two spans a thread: one that is held up does not hold up the rest.
    spans = std::max<int64_t>(1, std::min(B, (2 * threads + outer - 1) / outer));
  }
};

struct Span {
  int64_t outer, first, last;  // rows [first, last)

  Span(const Sizes& s, int64_t index) {
    outer = index / s.spans;
    first = index % s.spans * s.B / s.spans;
    last = (index % s.spans + 1) * s.B / s.spans;
  }
};

// Whether rows of an array can be streamed: whole vectors, on their boundaries.
template <typename N>
bool Streams(const Sizes& s, const float* array) {
  const int64_t whole = std::is_same_v<N, Planes> ? 2 * kLanes : kLanes;
  return s.large && s.D % whole == 0 && reinterpret_cast<uintptr_t>(array) % sizeof(Vector) == 0;
}

// Stores a number, streaming it if `stream`.
template <typename N, bool stream>
void Put(float* row, int64_t d, int64_t width, const typename N::Number& v) {
  if (stream) {
    N::Stream(row, d, width, v);
  } else {
    N::Store(row, d, width, v);
  }
}

template <typename N, bool constant, bool stream>
void Forward(const Sizes& s, const Span& at, const float* a, const float* x, const bool* reset, const float* h0,
             float* h, float* last) {
  const int64_t sequence = at.outer * s.T * s.B * s.D, state = (at.outer * s.B + at.first) * s.D;
  const int64_t step = std::is_same_v<N, Planes> ? s.D / 2 : s.D;
  a += at.outer * (constant ? s.D : s.T * s.B * s.D);
  x += sequence, h += sequence, reset += at.outer * s.T * s.B;
  const int64_t ahead = s.B * s.D;
  std::copy_n(h0 + state, (at.last - at.first) * s.D, last + state);  // `last` is the state from step to step
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t b = at.first; b < at.last; ++b) {
      const int64_t row = (t * s.B + b) * s.D;
      float* now = last + (at.outer * s.B + b) * s.D;
      if (reset[t * s.B + b]) std::fill_n(now, s.D, 0.0f);
      const float* decay = constant ? a : a + row;
      for (int64_t d = 0; d < step; d += kLanes) {
        if (stream) __builtin_prefetch(x + row + ahead + d);
        const auto next = N::TimesPlus(N::Load(decay, d, s.D), N::Load(now, d, s.D), N::Load(x + row, d, s.D));
        N::Store(now, d, s.D, next);
        Put<N, stream>(h + row, d, s.D, next);
      }
    }
  }
  if (stream) FinishStreams();
}

// dx[t] = g[t] + back; then back = a[t] dx[t], 0 at a reset; da[t] = dx[t] h[t-1], summed over time if `a` is constant.
template <typename N, bool constant, bool stream>
void Backward(const Sizes& s, const Span& at, const float* a, const bool* reset, const float* h0, const float* h,
              const float* g, const float* g_last, float* da, float* dx, float* dh0) {
  using Number = typename N::Number;
  const int64_t sequence = at.outer * s.T * s.B * s.D, state = (at.outer * s.B + at.first) * s.D;
  const int64_t count = (at.last - at.first) * s.D, step = std::is_same_v<N, Planes> ? s.D / 2 : s.D;
  a += at.outer * (constant ? s.D : s.T * s.B * s.D);
  h += sequence, g += sequence, dx += sequence, reset += at.outer * s.T * s.B;
  if (!constant) da += sequence;
  const std::vector<float> nothing(s.D, 0.0f);
  const int64_t ahead = s.B * s.D;
  std::copy_n(g_last + state, count, dh0 + state);
  if (constant) std::fill_n(da + state, count, 0.0f);
  for (int64_t t = s.T - 1; t >= 0; --t) {
    for (int64_t b = at.first; b < at.last; ++b) {
      const int64_t row = (t * s.B + b) * s.D, own = (at.outer * s.B + b) * s.D;
      const bool cut = reset[t * s.B + b];
      const float* before = cut ? nothing.data() : t ? h + row - s.B * s.D : h0 + own;
      const float* decay = constant ? a : a + row;
      float *back = dh0 + own, *sum = da + own;
      for (int64_t d = 0; d < step; d += kLanes) {
        if (stream) {
          __builtin_prefetch(g + row - ahead + d);
          __builtin_prefetch(h + row - 2 * ahead + d);
        }
        const auto dx_t = N::Conjugate(N::Plus(N::Load(g + row, d, s.D), N::Load(back, d, s.D)));
        Put<N, stream>(dx + row, d, s.D, N::Conjugate(dx_t));
        const auto previous = N::Load(before, d, s.D);
        if (constant) {
          const auto so_far = N::Conjugate(N::Load(sum, d, s.D));
          N::Store(sum, d, s.D, N::Conjugate(N::TimesPlus(dx_t, previous, so_far)));
        } else {
          Put<N, stream>(da + row, d, s.D, N::Conjugate(N::TimesPlus(dx_t, previous, Number{})));
        }
        if (!cut) N::Store(back, d, s.D, N::Conjugate(N::TimesPlus(N::Load(decay, d, s.D), dx_t, Number{})));
      }
      if (cut) std::fill_n(back, s.D, 0.0f);
    }
  }
  if (stream) FinishStreams();
}

template <ffi::DataType dtype>
using In = ffi::Buffer<dtype>;
template <ffi::DataType dtype>
using Out = ffi::ResultBuffer<dtype>;

template <typename Buffer>
const float* Floats(const Buffer& buffer) {
  return static_cast<const float*>(buffer.untyped_data());
}
template <typename Buffer>
float* Floats(ffi::Result<Buffer>& buffer) {
  return static_cast<float*>(buffer->untyped_data());
}

template <ffi::DataType dtype, typename N>
ffi::Error ForwardHandler(ffi::ThreadPool pool, In<dtype> a, In<dtype> x, Bools reset, In<dtype> h0, Out<dtype> h,
                          Out<dtype> last) {
  const Sizes s(x.dimensions(), dtype == ffi::C64 ? 2 : 1, pool.num_threads());
  const bool constant = a.dimensions().size() < x.dimensions().size();
  const bool stream = Streams<N>(s, Floats(h));
  return ParallelFor(pool, s.outer * s.spans, [&](int64_t index) {
    const auto run = stream ? (constant ? Forward<N, true, true> : Forward<N, false, true>)
                            : (constant ? Forward<N, true, false> : Forward<N, false, false>);
    run(s, Span(s, index), Floats(a), Floats(x), reset.typed_data(), Floats(h0), Floats(h), Floats(last));
  });
}

template <ffi::DataType dtype, typename N>
ffi::Error BackwardHandler(ffi::ThreadPool pool, In<dtype> a, Bools reset, In<dtype> h0, In<dtype> h, In<dtype> g,
                           In<dtype> g_last, Out<dtype> da, Out<dtype> dx, Out<dtype> dh0) {
  const Sizes s(h.dimensions(), dtype == ffi::C64 ? 2 : 1, pool.num_threads());
  const bool constant = a.dimensions().size() < h.dimensions().size();
  const bool stream = Streams<N>(s, Floats(dx)) && (constant || Streams<N>(s, Floats(da)));
  return ParallelFor(pool, s.outer * s.spans, [&](int64_t index) {
    const auto run = stream ? (constant ? Backward<N, true, true> : Backward<N, false, true>)
                            : (constant ? Backward<N, true, false> : Backward<N, false, false>);
    run(s, Span(s, index), Floats(a), reset.typed_data(), Floats(h0), Floats(h), Floats(g), Floats(g_last), Floats(da),
        Floats(dx), Floats(dh0));
  });
}

template <ffi::DataType dtype>
auto ForwardBinding() {
  using Array = In<dtype>;
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Arg<Bools>()
      .template Arg<Array>()
      .template Ret<Array>()
      .template Ret<Array>();
}

template <ffi::DataType dtype>
auto BackwardBinding() {
  using Array = In<dtype>;
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Array>()
      .template Arg<Bools>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Ret<Array>()
      .template Ret<Array>()
      .template Ret<Array>();
}

}  // namespace
}  // namespace engram

namespace ffi = xla::ffi;
using namespace engram;

XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_forward_real, (ForwardHandler<ffi::F32, RealNumbers>),
                              ForwardBinding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_forward_complex, (ForwardHandler<ffi::C64, ComplexNumbers>),
                              ForwardBinding<ffi::C64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_forward_planes, (ForwardHandler<ffi::F32, Planes>),
                              ForwardBinding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_backward_real, (BackwardHandler<ffi::F32, RealNumbers>),
                              BackwardBinding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_backward_complex, (BackwardHandler<ffi::C64, ComplexNumbers>),
                              BackwardBinding<ffi::C64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_backward_planes, (BackwardHandler<ffi::F32, Planes>),
                              BackwardBinding<ffi::F32>());
