#include "cross_entropy.h"

#include <cmath>

#include "simd.h"

namespace graft::GRAFT_ISA {
namespace {

void rows(float* logits, const int64_t* labels, int64_t begin, int64_t end, int64_t v, double* loss) {
  const float lowest = -__builtin_inff();
  for (int64_t n = begin; n < end; n++) {
    float* row = logits + n * v;
    const int64_t whole = v / F::W * F::W;
    const int rest = static_cast<int>(v - whole);

    F highest(lowest);
    for (int64_t i = 0; i < whole; i += F::W) highest = max(load(row + i), highest);
    if (rest) highest = max(first_n(load_n(row + whole, rest), F(lowest), rest), highest);
    const float top = hmax(highest);
    const float label_logit = row[labels[n]];

    // A vocabulary has up to 256,000 entries: with sums of blocks in double, the rounding error stays below that of exp itself.
    double total = 0;
    for (int64_t block = 0; block < whole; block += 128 * F::W) {
      const int64_t stop = block + 128 * F::W < whole ? block + 128 * F::W : whole;
      F sum = zero();
      for (int64_t i = block; i < stop; i += F::W) {
        const F e = exp(load(row + i) - F(top));
        store(row + i, e);
        sum += e;
      }
      total += hsum(sum);
    }
    if (rest) {
      const F e = first_n(exp(load_n(row + whole, rest) - F(top)), zero(), rest);
      store_n(row + whole, e, rest);
      total += hsum(e);
    }
    loss[n] = std::log(total) + static_cast<double>(top) - static_cast<double>(label_logit);

    const F scale(static_cast<float>(1.0 / total));
    for (int64_t i = 0; i < whole; i += F::W) store(row + i, load(row + i) * scale);
    if (rest) store_n(row + whole, load_n(row + whole, rest) * scale, rest);
    row[labels[n]] -= 1.0f;
  }
}

}  // namespace

extern const CrossEntropyKernels cross_entropy{rows};

}  // namespace graft::GRAFT_ISA
