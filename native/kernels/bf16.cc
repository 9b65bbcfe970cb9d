#include "bf16.h"

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

void round(const float* src, int64_t n, uint16_t* dst) {
  const uint32_t* bits = reinterpret_cast<const uint32_t*>(src);
  for (int64_t i = 0; i < n; i++) {
    const uint32_t x = bits[i];
    const uint32_t rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    const bool nan = (x & 0x7fffffff) > 0x7f800000;
    dst[i] = static_cast<uint16_t>(nan ? (x >> 16) | 0x40 : rounded);
  }
}

void panel_of_rows(const uint16_t* rows, int64_t columns, int64_t k, uint32_t* panel) {
  const int64_t pairs = k / 2;
  constexpr int64_t kTile = 16;  // a cache line of every row
  for (int64_t first = 0; first < pairs; first += kTile) {
    const int64_t count = pairs - first < kTile ? pairs - first : kTile;
    for (int64_t c = 0; c < columns; c++) {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(rows + c * k) + first;
      uint32_t* to = panel + first * columns + c;
      for (int64_t p = 0; p < count; p++) to[p * columns] = from[p];
    }
  }
}

void panel_of_columns(const uint16_t* from, int64_t stride, int64_t columns, int64_t k, uint32_t* panel) {
  for (int64_t p = 0; p < k / 2; p++) {
    const uint16_t* even = from + 2 * p * stride;
    const uint16_t* odd = even + stride;
    uint32_t* to = panel + p * columns;
    for (int64_t c = 0; c < columns; c++) to[c] = even[c] | static_cast<uint32_t>(odd[c]) << 16;
  }
}

}  // namespace

extern const Bf16Kernels bf16;
const Bf16Kernels bf16 = {round, panel_of_rows, panel_of_columns};

}  // namespace graft::GRAFT_ISA
