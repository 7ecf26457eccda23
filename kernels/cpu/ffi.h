// What the C++ kernels share: vectors of 16 floats, exp2, and a parallel loop on XLA's own threads.

#ifndef ENGRAM_KERNELS_FFI_H_
#define ENGRAM_KERNELS_FFI_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

#ifdef __clang__
#define ENGRAM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has the other one from version 12 on only
#define ENGRAM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVector{__VA_ARGS__})
#endif

namespace engram {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using Bools = ffi::Buffer<ffi::PRED>;

constexpr int64_t kLanes = 16;
// Vectors, and floats, of what a kernel keeps in the first-level cache while it walks through time.
constexpr int64_t kVectors = 4;
constexpr int64_t kTile = kVectors * kLanes;
constexpr float kLog2E = 1.44269504088896340736f;
// GCC and clang split these into whatever registers the CPU has.
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));

// The first `valid` of 16 floats at `from`, the rest 0.
inline Vector Load(const float* from, int64_t valid) {
  Vector v = {};
  if (valid >= kLanes) {
    std::memcpy(&v, from, sizeof(v));
  } else if (valid > 0) {
    std::memcpy(&v, from, sizeof(float) * valid);
  }
  return v;
}

inline void Store(float* to, const Vector& v, int64_t valid) {
  if (valid >= kLanes) {
    std::memcpy(to, &v, sizeof(v));
  } else if (valid > 0) {
    std::memcpy(to, &v, sizeof(float) * valid);
  }
}

// Past the cache, straight to memory: a line that is written whole need not be read first. `to` is a multiple of 64 bytes.
inline void Stream(float* to, const Vector& v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<const __m512&>(v));
#elif defined(__SSE2__)
  for (int i = 0; i < 4; ++i) _mm_stream_ps(to + 4 * i, reinterpret_cast<const __m128*>(&v)[i]);
#else
  std::memcpy(to, &v, sizeof(v));
#endif
}

// What was streamed is in memory for all threads to see.
inline void FinishStreams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Lane i is the sum of the lanes of `rows[i]`: 45 operations for 16 sums, where one alone takes a dozen.
inline Vector SumEach(const Vector rows[kLanes]) {
  Vector eight[8], four[4], two[2];
  for (int i = 0; i < 8; ++i) {
    const Vector a = rows[i], b = rows[i + 8];
    eight[i] = ENGRAM_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               ENGRAM_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const Vector a = eight[i], b = eight[i + 4];
    four[i] = ENGRAM_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
              ENGRAM_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const Vector a = four[i], b = four[i + 2];
    two[i] = ENGRAM_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
             ENGRAM_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  const Vector a = two[0], b = two[1];
  return ENGRAM_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         ENGRAM_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// 2^x to 1.2 units in the last place. Exactly 1 at 0, at most 2^-127 below -127, infinite from 2^128 on; NaN stays NaN.
#ifdef __AVX512DQ__
// 9 instructions, and a selective scan spends its time on them: x = i + j/32 + f, of which
// scalef does 2^i (it takes the floor itself), a table in two registers 2^(j/32), and a cubic 2^f.
alignas(64) constexpr float kPowers[32] = {
    1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.1892071f, 1.2152474f, 1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
    1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
    1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};

__attribute__((always_inline))  // GCC 12: selective scans twice as fast with it
inline Vector Exp2(Vector x) {
  const __m512 wide = reinterpret_cast<const __m512&>(x);
  const __m512 f = _mm512_reduce_ps(wide, 5 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // 0 where x is infinite
  // Adding 1.5 * 2^18 rounds to 1/32 and leaves j in the low 5 bits, all that the table looks at.
  const __m512 magic = _mm512_set1_ps(393216.0f), shifted = wide + magic;
  const __m512 power = _mm512_permutex2var_ps(_mm512_load_ps(kPowers), _mm512_castps_si512(shifted),
                                              _mm512_load_ps(kPowers + 16));
  // (2^f - 1) / f on [-1/64, 1/64], minimax (error of 2^f 1e-10: a quadratic's would add up over many steps).
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.05550362f), f, _mm512_set1_ps(0.24022845f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314718f));
  const __m512 scaled = _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(power, f), p, power), shifted - magic);
  return reinterpret_cast<const Vector&>(scaled);
}
#else
inline Vector Exp2(Vector x) {
  // NaN fails both comparisons and passes.
  x = x < -127.0f ? Vector{} - 127.0f : x;
  x = x > 128.0f ? Vector{} + 128.0f : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand.
  const Vector shifted = x + 12582912.0f;
  const Vector f = x - (shifted - 12582912.0f);
  // (2^f - 1) / f on [-1/2, 1/2], minimax (error 2e-9).
  Vector p = f * 0.00015353361959569156f + 0.0013398873852565885f;
  p = p * f + 0.00961843691766262f;
  p = p * f + 0.055503323674201965f;
  p = p * f + 0.24022647738456726f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  IntVector bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (127 << 23);
  Vector scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}
#endif

// Runs task(0) ... task(count - 1) on XLA's thread pool and in the calling thread; returns when all are done. A task that
// runs out of memory makes the whole an error, after the others.
//
// The caller works too and then waits only for tasks that some thread has begun: a pool whose threads are all busy
// (with this very function, say) cannot deadlock it. Helpers that start late find no task left and go home; what they
// look at lives as long as they do.
template <typename Task>
ffi::Error ParallelFor(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &task] {
    int64_t finished = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++finished) {
      try {
        task(i);
      } catch (...) {  // must not leave this function while other threads are at work
        shared->failed = true;
      }
    }
    if (finished && shared->done.fetch_add(finished) + finished == count) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->all_done.notify_one();
    }
  };
  const int64_t helpers = std::min(count, pool.num_threads()) - 1;
  try {
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  } catch (...) {  // fewer helpers, then
  }
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done.load() == count; });
  if (shared->failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "a kernel ran out of memory");
  return ffi::Error::Success();
}

}  // namespace engram

#endif  // ENGRAM_KERNELS_FFI_H_
