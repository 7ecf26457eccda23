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

#include "xla/ffi/api/ffi.h"

namespace engram {

namespace ffi = xla::ffi;

constexpr int64_t kLanes = 16;
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

inline float Sum(const Vector& v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half low, high;
  std::memcpy(&low, &v, 32);
  std::memcpy(&high, reinterpret_cast<const char*>(&v) + 32, 32);
  const Half eight = low + high;
  Quarter left, right;
  std::memcpy(&left, &eight, 16);
  std::memcpy(&right, reinterpret_cast<const char*>(&eight) + 16, 16);
  const Quarter four = left + right;
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// 2^x to 1.2 units in the last place. Exactly 1 at 0, 0 below 2^-126.5, infinite above 2^127.5; NaN stays NaN.
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
