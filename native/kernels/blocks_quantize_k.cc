// Quantises to the K formats as ggml's quantize_row_q{4,5,6}_K_ref do, bit for bit. The scales of a sub-block are searched for: candidates
// for the range of codes, and for each of them the scale (and minimum) of the least weighted squared error. Sums over the elements of a
// sub-block are in their order, so each lane of a vector has a sub-block of its own.
// Formulas: make_qkx2_quants and make_qx_quants in ggml-quants.c.
#include "blocks_quantize.h"

namespace graft::GRAFT_ISA {
namespace {

// Returns x rounded to a whole number, ties to even, as ggml does: adding 1.5 2^23 leaves the number in the low bits. From 2^22 on, and for
// infinities, what is left there is no longer x; codes of blocks with subnormal ranges depend on that.
GRAFT_INLINE F nearest(F x) { return low_23_bits_from_middle(x + F(12582912.0f)); }
GRAFT_INLINE int32_t nearest(float x) {
  const float sum = x + 12582912.0f;
  return (__builtin_bit_cast(int32_t, sum) & 0x7fffff) - 0x400000;
}

constexpr float kSmallest = 1e-15f;  // numbers below it are zero for Q6_K

// How the sub-blocks in the lanes are quantised. `inverse` and `base` give the codes that the search found, nearest(inverse (x - base)).
struct Found {
  alignas(64) float scale[F::W];
  alignas(64) float minimum[F::W];  // its magnitude: minima are negative or zero
  alignas(64) float inverse[F::W];
  alignas(64) float base[F::W];
};

// Sub-blocks of 32 with a scale and a minimum. Candidate s has the range (first + 0.1 s + largest) / (largest - smallest number).
template <int largest_code, int steps> void search_affine(const F (&x)[32], float first, Found& found) {
  F squares = zero();
  for (F element : x) squares += element * element;
  const F average = sqrt(squares / F(32.0f));
  F weight[32], code[32];
  for (int i = 0; i < 32; ++i) weight[i] = average + abs(x[i]);
  F low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
  for (int i = 1; i < 32; ++i) {
    low = min(x[i], low);
    high = max(x[i], high);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  low = select(greater(low, zero()), zero(), low);
  const F lowest = low;
  const Mask flat = equal(high, low);
  F inverse = F(largest_code) / (high - low), base = low, scale = F(1.0f) / inverse, least_error = zero();
  for (int i = 0; i < 32; ++i) {
    const F c = clamp(nearest(inverse * (x[i] - low)), 0, largest_code);
    const F difference = scale * c + low - x[i];
    least_error += weight[i] * (difference * difference);
  }
  for (int step = 0; step <= steps; ++step) {
    const F candidate = F(first + 0.1f * static_cast<float>(step) + static_cast<float>(largest_code)) / (high - low);
    F sum_l = zero(), sum_l2 = zero(), sum_xl = zero();
    for (int i = 0; i < 32; ++i) {
      const F c = clamp(nearest(candidate * (x[i] - low)), 0, largest_code), wc = weight[i] * c;
      code[i] = c;
      sum_l += wc;
      sum_l2 += wc * c;
      sum_xl += wc * x[i];
    }
    const F determinant = sum_w * sum_l2 - sum_l * sum_l;
    F new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant, new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    const Mask positive = greater(new_low, zero());
    new_scale = select(positive, sum_xl / sum_l2, new_scale);
    new_low = select(positive, zero(), new_low);
    F error = zero();
    for (int i = 0; i < 32; ++i) {
      const F difference = new_scale * code[i] + new_low - x[i];
      error += weight[i] * (difference * difference);
    }
    const Mask better = both(greater(determinant, zero()), greater(least_error, error));
    inverse = select(better, candidate, inverse);
    base = select(better, low, base);
    least_error = select(better, error, least_error);
    scale = select(better, new_scale, scale);
    low = select(better, new_low, low);
  }
  store(found.scale, select(flat, zero(), scale));
  store(found.minimum, -select(flat, lowest, low));
  store(found.inverse, select(flat, zero(), inverse));
  store(found.base, select(flat, zero(), base));
}

// Sub-blocks of 16 with a scale only; codes are -32 to 31. Candidate s takes the number of largest magnitude to -(32 + 0.1 s).
void search_symmetric(const F (&x)[16], Found& found) {
  F largest = zero(), peak = zero();
  for (F element : x) {
    const Mask larger = greater(abs(element), largest);
    largest = select(larger, abs(element), largest);
    peak = select(larger, element, peak);
  }
  const Mask none = greater(F(kSmallest), largest);
  F inverse = zero(), scale = zero(), best = zero();
  for (int step = -9; step <= 9; ++step) {
    // Zero is the first candidate, and taken as it is.
    const int s = step == -9 ? 0 : step <= 0 ? step - 1 : step;
    const F candidate = F(-(32.0f + 0.1f * static_cast<float>(s))) / peak;
    F sum_lx = zero(), sum_l2 = zero();
    for (F element : x) {
      const F c = clamp(nearest(candidate * element), -32, 31), weight = element * element;
      sum_lx += weight * element * c;
      sum_l2 += weight * c * c;
    }
    if (step == -9) {
      inverse = candidate;
      scale = select(equal(sum_l2, zero()), zero(), sum_lx / sum_l2);
      best = scale * sum_lx;
    } else {
      const Mask better = both(greater(sum_l2, zero()), greater(sum_lx * sum_lx, best * sum_l2));
      inverse = select(better, candidate, inverse);
      scale = select(better, sum_lx / sum_l2, scale);
      best = select(better, scale * sum_lx, best);
    }
  }
  store(found.scale, select(none, zero(), scale));
  store(found.inverse, select(none, zero(), inverse));
}

// Lane l gets the n numbers from x + n l on; lanes from `lanes` on get zeros.
template <int n> GRAFT_INLINE void load_columns(const float* x, int lanes, F (&columns)[n]) {
  alignas(64) float numbers[n][F::W] = {};
  for (int lane = 0; lane < lanes; ++lane)
    for (int i = 0; i < n; ++i) numbers[i][lane] = x[n * lane + i];
  for (int i = 0; i < n; ++i) columns[i] = load(numbers[i]);
}

// The codes of 32 elements; returns which were clipped. `inverse` is not zero where the search's codes stay, because the scale became zero.
template <int largest_code>
GRAFT_INLINE uint32_t affine_codes(const float* x, float d, float minimum, float inverse, float base, int32_t* codes) {
  uint32_t clipped = 0;
  for (int i = 0; i < 32; i += F::W) {
    const F code = d == 0.0f ? nearest(F(inverse) * (load(x + i) - F(base))) : nearest((load(x + i) + F(minimum)) / F(d));
    const F kept = clamp(code, 0, largest_code);
    if (d != 0.0f) clipped |= changed(code, kept) << i;
    store_whole(codes + i, kept);
  }
  return clipped;
}

GRAFT_INLINE uint8_t six_bits(float x) {
  const auto wrapped = static_cast<uint8_t>(nearest(x));
  return wrapped < 63 ? wrapped : 63;
}

// Writes d, dmin and the twelve bytes of scales of Q4_K and Q5_K, and computes the codes; returns whether d and dmin are finite.
template <int largest_code>
bool write_scales(const float* x, const float* scales, const float* minima, const float* inverses, const float* bases, uint8_t* block,
                  int32_t* codes, uint32_t* clipped) {
  float largest_scale = 0, largest_minimum = 0;
  for (int j = 0; j < 8; ++j) {
    largest_scale = scales[j] > largest_scale ? scales[j] : largest_scale;
    largest_minimum = minima[j] > largest_minimum ? minima[j] : largest_minimum;
  }
  const float inverse_scale = largest_scale > 0 ? 63.0f / largest_scale : 0.0f;
  const float inverse_minimum = largest_minimum > 0 ? 63.0f / largest_minimum : 0.0f;
  write_f16(block, largest_scale / 63.0f);
  write_f16(block + 2, largest_minimum / 63.0f);
  const float d = read_f16(block), dmin = read_f16(block + 2);
  uint8_t* packed = block + 4;
  for (int j = 0; j < 8; ++j) {
    const uint8_t scale = six_bits(inverse_scale * scales[j]), minimum = six_bits(inverse_minimum * minima[j]);
    if (j < 4) {
      packed[j] = scale;
      packed[j + 4] = minimum;
    } else {
      packed[j + 4] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
      packed[j - 4] |= scale >> 4 << 6;
      packed[j] |= minimum >> 4 << 6;
    }
    clipped[j] = affine_codes<largest_code>(x + 32 * j, d * scale, dmin * minimum, inverses[j], bases[j], codes + 32 * j);
  }
  return is_finite_f16(block) && is_finite_f16(block + 2);
}

// write(block, codes) adds the codes of one block.
template <int largest_code, int steps, class Write>
GRAFT_INLINE bool quantize_affine_blocks(const float* x, int n, float first, int bytes, uint8_t* dst, uint32_t* clipped, Write&& write) {
  F columns[32];
  Found found;
  load_columns(x, 8 * n, columns);
  search_affine<largest_code, steps>(columns, first, found);
  bool is_finite = true;
  for (int b = 0; b < n; ++b, x += 256, dst += bytes, clipped += 8) {
    alignas(64) int32_t codes[256];
    const int at = 8 * b;
    is_finite &= write_scales<largest_code>(x, found.scale + at, found.minimum + at, found.inverse + at, found.base + at, dst, codes, clipped);
    write(dst, codes);
  }
  return is_finite;
}

// 32 bytes hold the low nibbles of 64 elements, the first 32 in their low halves.
GRAFT_INLINE void write_nibbles(const int32_t* codes, uint8_t* p) {
  for (int half = 0; half < 256; half += 64, p += 32)
    for (int j = 0; j < 32; ++j) p[j] = static_cast<uint8_t>((codes[half + j] & 15) | (codes[half + j + 32] & 15) << 4);
}

}  // namespace

bool quantize_q4_k(const float* x, int n, uint8_t* dst, uint32_t* clipped) {
  constexpr int bytes = block_layout(BlockFormat::Q4_K).bytes;
  return quantize_affine_blocks<15, 20>(x, n, -1.0f, bytes, dst, clipped,
                                        [](uint8_t* block, const int32_t* codes) { write_nibbles(codes, block + 16); });
}

bool quantize_q5_k(const float* x, int n, uint8_t* dst, uint32_t* clipped) {
  constexpr int bytes = block_layout(BlockFormat::Q5_K).bytes;
  return quantize_affine_blocks<31, 15>(x, n, -0.5f, bytes, dst, clipped, [](uint8_t* block, const int32_t* codes) {
    for (int j = 0; j < 32; ++j) {
      int32_t fifth = 0;
      for (int s = 0; s < 8; ++s) fifth |= codes[32 * s + j] >> 4 << s;
      block[16 + j] = static_cast<uint8_t>(fifth);
    }
    write_nibbles(codes, block + 48);
  });
}

bool quantize_q6_k(const float* x, uint8_t* block, uint32_t* clipped) {
  constexpr int bytes = block_layout(BlockFormat::Q6_K).bytes;
  Found found;
  alignas(64) float scales[16], inverses[16];
  for (int j = 0; j < 16; j += F::W) {
    F columns[16];
    load_columns(x + 16 * j, F::W, columns);
    search_symmetric(columns, found);
    store(scales + j, load(found.scale));
    store(inverses + j, load(found.inverse));
  }
  for (int j = 0; j < 8; ++j) clipped[j] = 0;
  float largest = 0;
  for (float scale : scales) largest = __builtin_fabsf(scale) > __builtin_fabsf(largest) ? scale : largest;
  if (__builtin_fabsf(largest) < kSmallest) {
    __builtin_memset(block, 0, bytes);
    return true;
  }
  const float inverse_scale = -128.0f / largest;
  write_f16(block + 208, 1.0f / inverse_scale);
  const float d = read_f16(block + 208);
  alignas(64) int32_t codes[256];
  for (int j = 0; j < 16; ++j) {
    const int32_t whole = nearest(inverse_scale * scales[j]);
    const auto scale = static_cast<int8_t>(whole < 127 ? whole : 127);
    block[192 + j] = static_cast<uint8_t>(scale);
    const float step = d * static_cast<float>(scale);
    for (int i = 16 * j; i < 16 * j + 16; i += F::W) {
      // Where the scale became zero, the codes of the search stay; a sub-block of zeros has the code 0 there, not 32.
      const F code = step == 0.0f ? nearest(F(inverses[j]) * load(x + i)) : nearest(load(x + i) / F(step));
      const F kept = clamp(code, -32, 31);
      if (step != 0.0f) clipped[i / 32] |= changed(code, kept) << i % 32;
      store_whole(codes + i, step == 0.0f && inverses[j] == 0.0f ? zero() : kept + F(32.0f));
    }
  }
  for (int half = 0; half < 2; ++half) {
    const int32_t* c = codes + 128 * half;
    for (int l = 0; l < 64; ++l) block[64 * half + l] = static_cast<uint8_t>((c[l] & 15) | (c[l + 64] & 15) << 4);
    for (int l = 0; l < 32; ++l)
      block[128 + 32 * half + l] = static_cast<uint8_t>(c[l] >> 4 | c[l + 32] >> 4 << 2 | c[l + 64] >> 4 << 4 | c[l + 96] >> 4 << 6);
  }
  return is_finite_f16(block + 208);
}

}  // namespace graft::GRAFT_ISA
