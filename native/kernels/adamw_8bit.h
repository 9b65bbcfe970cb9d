// AdamW (arXiv 1711.05101) whose two running means are kept as 8-bit codes, in blocks of 256 numbers that share a largest magnitude (arXiv
// 2110.02861, as in bitsandbytes). A number is the entry of its code in a table of 256 ascending numbers from -1 or 0 to 1, times that
// magnitude.
#pragma once

#include <cstdint>

namespace graft {

constexpr int64_t kAdamBlock = 256;

// Finds the nearest of 256 ascending numbers. The upper bits of a float divide the range into cells so narrow that each has at most one
// middle between two neighbours: one comparison decides.
struct NearestCode {
  static constexpr int kShift = 16, kFirst = 103 << 7, kCells = (127 << 7) - kFirst + 1;  // magnitudes from 2^-24 to 1
  float codes[256];
  float middles[256];          // between a code and the next; the last is infinite
  uint8_t start[2][kCells];    // of positive and negative numbers: the nearest code of the cell's smallest number
};

struct AdamSettings {
  float keep;         // 1 - lr weight_decay
  float step_size;    // lr / (1 - beta1^t)
  float beta1, beta2;
  float correction2;  // sqrt(1 - beta2^t)
  float eps;
};

struct Adam8Kernels {
  // Updates n numbers, at most a block. mean and square are their codes, mean_max and square_max the magnitude of the block.
  void (*block)(float* parameter, const float* grad, uint8_t* mean, float* mean_max, uint8_t* square, float* square_max, int64_t n,
                const AdamSettings& settings, const NearestCode& signed_codes, const NearestCode& unsigned_codes);
};

namespace avx2 { extern const Adam8Kernels adam8; }
namespace avx512 { extern const Adam8Kernels adam8; }

}  // namespace graft
