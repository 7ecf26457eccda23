// The hash of JAX's random numbers: Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", 2011).

#include <vector>

#include "ffi.h"

namespace engram {

using Words = ffi::AnyBuffer;
using WordsOut = ffi::ResultBuffer<ffi::U32>;

constexpr int64_t kWordsPerTask = 1 << 14;

inline uint32_t RotateLeft(uint32_t x, int by) { return x << by | x >> (32 - by); }

template <int a, int b, int c, int d>
inline void FourRounds(uint32_t& x, uint32_t& y) {
  x += y, y = RotateLeft(y, a) ^ x;
  x += y, y = RotateLeft(y, b) ^ x;
  x += y, y = RotateLeft(y, c) ^ x;
  x += y, y = RotateLeft(y, d) ^ x;
}

inline void Hash(uint32_t k0, uint32_t k1, uint32_t& x, uint32_t& y) {
  const uint32_t k2 = k0 ^ k1 ^ 0x1BD11BDA;
  x += k0, y += k1;
  FourRounds<13, 15, 26, 6>(x, y);
  x += k1, y += k2 + 1;
  FourRounds<17, 29, 16, 24>(x, y);
  x += k2, y += k0 + 2;
  FourRounds<13, 15, 26, 6>(x, y);
  x += k0, y += k1 + 3;
  FourRounds<17, 29, 16, 24>(x, y);
  x += k1, y += k2 + 4;
  FourRounds<13, 15, 26, 6>(x, y);
  x += k2, y += k0 + 5;
}

// An input that may be stretched along some axes to the shape of the results.
class Stretched {
 public:
  Stretched(const Words& input, ffi::Span<const int64_t> shape) : data_(input.typed_data<uint32_t>()) {
    const auto own = input.dimensions();
    const int64_t missing = shape.size() - own.size();
    strides_.resize(shape.size());
    for (int64_t axis = shape.size() - 1, step = 1; axis >= missing; --axis) {
      strides_[axis] = own[axis - missing] == 1 ? 0 : step;
      step *= own[axis - missing];
    }
  }

  // Where row `index` begins, counted over all axes but the last.
  const uint32_t* Row(ffi::Span<const int64_t> shape, int64_t index) const {
    const uint32_t* at = data_;
    for (int64_t axis = static_cast<int64_t>(shape.size()) - 2; axis >= 0; --axis) {
      at += index % shape[axis] * strides_[axis];
      index /= shape[axis];
    }
    return at;
  }

  int64_t step() const { return strides_.empty() ? 0 : strides_.back(); }

 private:
  const uint32_t* data_;
  std::vector<int64_t> strides_;
};

ffi::Error Threefry(ffi::ThreadPool pool, Words key0, Words key1, Words count0, Words count1, WordsOut out0,
                    WordsOut out1) {
  const auto shape = out0->dimensions();
  const int64_t total = out0->element_count();
  if (total == 0) return ffi::Error::Success();
  const int64_t width = shape.size() ? shape.back() : 1, rows = total / width;
  const Stretched inputs[4] = {{key0, shape}, {key1, shape}, {count0, shape}, {count1, shape}};
  uint32_t *to0 = out0->typed_data(), *to1 = out1->typed_data();
  // A task is some rows, or a part of one.
  const int64_t part = std::min(width, kWordsPerTask), parts = (width + part - 1) / part;
  const int64_t rows_per_task = parts > 1 ? 1 : std::max<int64_t>(1, kWordsPerTask / width);
  auto task = [&](int64_t index) {
    const int64_t from = index % parts * part, to = std::min(width, from + part);
    const int64_t first = index / parts * rows_per_task, last = std::min(rows, first + rows_per_task);
    for (int64_t row = first; row < last; ++row) {
      const uint32_t *k0 = inputs[0].Row(shape, row), *k1 = inputs[1].Row(shape, row);
      const uint32_t *c0 = inputs[2].Row(shape, row), *c1 = inputs[3].Row(shape, row);
      const int64_t sk0 = inputs[0].step(), sk1 = inputs[1].step(), s0 = inputs[2].step(), s1 = inputs[3].step();
      uint32_t *x = to0 + row * width, *y = to1 + row * width;
      if (sk0 == 0 && sk1 == 0 && s0 == 1 && s1 == 1) {  // one key: what the compiler makes vectors of
        const uint32_t a = *k0, b = *k1;
        for (int64_t i = from; i < to; ++i) {
          uint32_t u = c0[i], v = c1[i];
          Hash(a, b, u, v);
          x[i] = u, y[i] = v;
        }
      } else {
        for (int64_t i = from; i < to; ++i) {
          uint32_t u = c0[i * s0], v = c1[i * s1];
          Hash(k0[i * sk0], k1[i * sk1], u, v);
          x[i] = u, y[i] = v;
        }
      }
    }
  };
  const int64_t tasks = (rows + rows_per_task - 1) / rows_per_task * parts;
  if (tasks > 1) return ParallelFor(pool, tasks, task);
  task(0);
  return ffi::Error::Success();
}

}  // namespace engram

XLA_FFI_DEFINE_HANDLER_SYMBOL(engram_threefry2x32, engram::Threefry,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<engram::Words>()
                                  .Arg<engram::Words>()
                                  .Arg<engram::Words>()
                                  .Arg<engram::Words>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U32>>());
