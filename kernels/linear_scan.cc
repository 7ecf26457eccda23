// Diagonal linear recurrence with resets, float32 and complex64, forward and backward (see linear_scan.py).
//
// The recurrence does one multiplication per number it moves, so memory is all that counts. A task is a span of whole
// rows of the batch: at each step it reads and writes one contiguous piece of every array, and its state stays in the
// cache.
//
// Arrays are (..., T, B, D): leading axes come from vmap and are rows like any other. Complex numbers are pairs of
// floats.

#include <vector>

#include "ffi.h"

namespace engram {
namespace {

// (re, im, re, im, ...) -> (im, re, im, re, ...), (re, re, ...) and (im, im, ...).
inline Vector Swapped(const Vector& v) {
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
inline Vector Real(const Vector& v) {
  return __builtin_shufflevector(v, v, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
}
inline Vector Imaginary(const Vector& v) {
  return __builtin_shufflevector(v, v, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
}
constexpr Vector kSigns = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};

// A factor prepared for products with many numbers.
template <bool complex>
struct Factor {
  Vector real, imaginary;

  explicit Factor(const Vector& v) : real(complex ? Real(v) : v), imaginary(complex ? Imaginary(v) * kSigns : v) {}

  // this * v + w
  Vector TimesPlus(const Vector& v, const Vector& w) const {
    if constexpr (complex) return imaginary * Swapped(v) + (real * v + w);
    return real * v + w;
  }
};

struct Sizes {
  int64_t outer, T, B, D, spans;  // D in floats

  template <typename Dimensions>
  Sizes(const Dimensions& x, bool complex, int64_t threads) {
    const size_t rank = x.size();
    outer = 1;
    for (size_t i = 0; i + 3 < rank; ++i) outer *= x[i];
    T = x[rank - 3], B = x[rank - 2], D = x[rank - 1] * (complex ? 2 : 1);
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

template <bool complex, bool constant>
void Forward(const Sizes& s, const Span& at, const float* a, const float* x, const bool* reset, const float* h0,
             float* h, float* last) {
  const int64_t sequence = at.outer * s.T * s.B * s.D;
  a += at.outer * (constant ? s.D : s.T * s.B * s.D);
  x += sequence, h += sequence, reset += at.outer * s.T * s.B;
  const std::vector<float> nothing(s.D, 0.0f);
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t b = at.first; b < at.last; ++b) {
      const int64_t row = (t * s.B + b) * s.D;
      const float* before = t ? h + row - s.B * s.D : h0 + (at.outer * s.B + b) * s.D;
      if (reset[t * s.B + b]) before = nothing.data();
      for (int64_t d = 0; d < s.D; d += kLanes) {
        const int64_t valid = s.D - d;
        const Factor<complex> decay(Load(constant ? a + d : a + row + d, valid));
        Store(h + row + d, decay.TimesPlus(Load(before + d, valid), Load(x + row + d, valid)), valid);
      }
    }
  }
  const int64_t end = ((s.T - 1) * s.B + at.first) * s.D, count = (at.last - at.first) * s.D;
  std::copy_n(h + end, count, last + (at.outer * s.B + at.first) * s.D);
}

// dx[t] = g[t] + back, back[t-1] = a[t] dx[t] (0 at a reset), da[t] = dx[t] h[t-1], summed over time if `a` is constant.
template <bool complex, bool constant>
void Backward(const Sizes& s, const Span& at, const float* a, const bool* reset, const float* h0, const float* h,
              const float* g, const float* g_last, float* da, float* dx, float* dh0) {
  const int64_t sequence = at.outer * s.T * s.B * s.D, state = (at.outer * s.B + at.first) * s.D;
  const int64_t count = (at.last - at.first) * s.D;
  a += at.outer * (constant ? s.D : s.T * s.B * s.D);
  h += sequence, g += sequence, dx += sequence, reset += at.outer * s.T * s.B;
  if (!constant) da += sequence;
  const std::vector<float> nothing(s.D, 0.0f);
  std::copy_n(g_last + state, count, dh0 + state);
  if (constant) std::fill_n(da + state, count, 0.0f);
  for (int64_t t = s.T - 1; t >= 0; --t) {
    for (int64_t b = at.first; b < at.last; ++b) {
      const int64_t row = (t * s.B + b) * s.D, own = (at.outer * s.B + b) * s.D;
      const bool cut = reset[t * s.B + b];
      const float* before = cut ? nothing.data() : t ? h + row - s.B * s.D : h0 + own;
      float *back = dh0 + own, *sum = constant ? da + own : da + row;
      for (int64_t d = 0; d < s.D; d += kLanes) {
        const int64_t valid = s.D - d;
        const Vector dx_t = Load(g + row + d, valid) + Load(back + d, valid);
        Store(dx + row + d, dx_t, valid);
        const Factor<complex> factor(dx_t);
        Store(sum + d, factor.TimesPlus(Load(before + d, valid), constant ? Load(sum + d, valid) : Vector{}), valid);
        const Vector decay = Load(constant ? a + d : a + row + d, valid);
        Store(back + d, cut ? Vector{} : factor.TimesPlus(decay, Vector{}), valid);
      }
    }
  }
}

template <ffi::DataType dtype>
using In = ffi::Buffer<dtype>;
template <ffi::DataType dtype>
using Out = ffi::ResultBuffer<dtype>;
using Bools = ffi::Buffer<ffi::PRED>;

template <typename Buffer>
const float* Floats(const Buffer& buffer) {
  return static_cast<const float*>(buffer.untyped_data());
}
template <typename Buffer>
float* Floats(ffi::Result<Buffer>& buffer) {
  return static_cast<float*>(buffer->untyped_data());
}

template <ffi::DataType dtype>
ffi::Error ForwardHandler(ffi::ThreadPool pool, In<dtype> a, In<dtype> x, Bools reset, In<dtype> h0, Out<dtype> h,
                          Out<dtype> last) {
  constexpr bool complex = dtype == ffi::C64;
  const Sizes s(x.dimensions(), complex, pool.num_threads());
  const bool constant = a.dimensions().size() < x.dimensions().size();
  ParallelFor(pool, s.outer * s.spans, [&](int64_t index) {
    const auto run = constant ? Forward<complex, true> : Forward<complex, false>;
    run(s, Span(s, index), Floats(a), Floats(x), reset.typed_data(), Floats(h0), Floats(h), Floats(last));
  });
  return ffi::Error::Success();
}

template <ffi::DataType dtype>
ffi::Error BackwardHandler(ffi::ThreadPool pool, In<dtype> a, Bools reset, In<dtype> h0, In<dtype> h, In<dtype> g,
                           In<dtype> g_last, Out<dtype> da, Out<dtype> dx, Out<dtype> dh0) {
  constexpr bool complex = dtype == ffi::C64;
  const Sizes s(h.dimensions(), complex, pool.num_threads());
  const bool constant = a.dimensions().size() < h.dimensions().size();
  ParallelFor(pool, s.outer * s.spans, [&](int64_t index) {
    const auto run = constant ? Backward<complex, true> : Backward<complex, false>;
    run(s, Span(s, index), Floats(a), reset.typed_data(), Floats(h0), Floats(h), Floats(g), Floats(g_last), Floats(da),
        Floats(dx), Floats(dh0));
  });
  return ffi::Error::Success();
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
using engram::BackwardBinding;
using engram::BackwardHandler;
using engram::ForwardBinding;
using engram::ForwardHandler;

XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_forward_real, ForwardHandler<ffi::F32>, ForwardBinding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_forward_complex, ForwardHandler<ffi::C64>, ForwardBinding<ffi::C64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_backward_real, BackwardHandler<ffi::F32>, BackwardBinding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_scan_backward_complex, BackwardHandler<ffi::C64>, BackwardBinding<ffi::C64>());
