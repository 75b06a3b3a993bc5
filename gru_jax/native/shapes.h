// What shapes the operands and the results of a call must have.
#ifndef GRU_JAX_NATIVE_SHAPES_H_
#define GRU_JAX_NATIVE_SHAPES_H_

#include <algorithm>
#include <initializer_list>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace gru_jax {

// Compares shapes, and remembers the first wrong one. No kernel may run before it, or it would read or write beyond an
// array.
class Shapes {
 public:
  using Shape = std::initializer_list<int64_t>;

  template <class Buffer>
  Shapes& has(const char* name, const Buffer& buffer, Shape expected) {
    const auto got = buffer.dimensions();
    if (message_.empty() && !std::equal(got.begin(), got.end(), expected.begin(), expected.end())) {
      message_ = std::string("gru_jax: ") + name + " must have shape " + text(expected) + ", got " + text(got);
    }
    return *this;
  }

  // Of a buffer that is empty where it is not given.
  template <class Buffer>
  Shapes& may_have(const char* name, const Buffer& buffer, Shape expected) {
    return buffer.element_count() == 0 ? *this : has(name, buffer, expected);
  }

  // Of a buffer that is required if `given`, and must be empty otherwise.
  template <class Buffer>
  Shapes& has_if(bool given, const char* name, const Buffer& buffer, Shape expected) {
    return given ? has(name, buffer, expected) : has(name, buffer, {0});
  }

  template <class Buffer>
  Shapes& has_axes(const char* name, const Buffer& buffer, size_t count) {
    const auto got = buffer.dimensions();
    if (message_.empty() &&
        (got.size() != count || std::any_of(got.begin(), got.end(), [](int64_t n) { return n < 1; }))) {
      message_ = std::string("gru_jax: ") + name + " must have " + std::to_string(count) + " axes, none empty, got " +
                 text(got);
    }
    return *this;
  }

  bool fit() const { return message_.empty(); }
  xla::ffi::Error error() const { return xla::ffi::Error::InvalidArgument(message_); }

 private:
  template <class Sizes>
  static std::string text(const Sizes& sizes) {
    std::string joined;
    for (int64_t size : sizes) joined += (joined.empty() ? "" : ", ") + std::to_string(size);
    return "(" + joined + ")";
  }

  std::string message_;
};

}  // namespace gru_jax

#endif
