// Calls Python from a compiled program, by a number that stays the same from process to process.
//
// JAX's own callbacks put the address of the Python function into the program, so that no other process can use it
// again. Here the program holds two small numbers, and Python looks up what they mean.

#include <atomic>
#include <string>
#include <vector>

#include "ffi.h"

namespace {

// Takes the two numbers, and address and bytes of every input and result; returns nothing or what went wrong.
using Call = const char* (*)(int64_t function, int64_t form, const void* const* inputs, const int64_t* input_bytes,
                             void* const* results, const int64_t* result_bytes);
std::atomic<Call> python{nullptr};

}  // namespace

extern "C" void engram_call_python_by(Call call) { python.store(call); }

namespace engram {

ffi::Error HostCall(int64_t function, int64_t form, ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  std::vector<int64_t> input_bytes, output_bytes;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto buffer = arguments.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    inputs.push_back(buffer->untyped_data());
    input_bytes.push_back(static_cast<int64_t>(buffer->size_bytes()));
  }
  for (size_t i = 0; i < results.size(); ++i) {
    auto buffer = results.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    outputs.push_back((*buffer)->untyped_data());
    output_bytes.push_back(static_cast<int64_t>((*buffer)->size_bytes()));
  }
  const Call call = python.load();
  if (call == nullptr) return ffi::Error::Internal("no Python function was given");
  const char* wrong = call(function, form, inputs.data(), input_bytes.data(), outputs.data(), output_bytes.data());
  return wrong == nullptr ? ffi::Error::Success() : ffi::Error::Internal(wrong);
}

}  // namespace engram

XLA_FFI_DEFINE_HANDLER_SYMBOL(host_call, engram::HostCall,
                              xla::ffi::Ffi::Bind()
                                  .Attr<int64_t>("function")
                                  .Attr<int64_t>("form")
                                  .RemainingArgs()
                                  .RemainingRets());
