// Declarations only (README.md).
#pragma once
#include <chrono>

namespace gloo {

// The connections of one process to all others. ProcessGroupGloo keeps them behind shared pointers, so their layout does not matter here.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
