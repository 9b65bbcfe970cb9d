#include "integers.h"

#include "blocks_quantize.h"

namespace graft::GRAFT_ISA {
namespace {

GRAFT_INLINE float nearest_even(float x) { return _mm_cvtss_f32(_mm_round_ss(_mm_setzero_ps(), _mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)); }

// Returns a finite x as the nearest bfloat16 if `bf16`, ties to even.
GRAFT_INLINE float in_type(float x, bool bf16) {
  if (!bf16) return x;
  const auto bits = __builtin_bit_cast(uint32_t, x);
  return __builtin_bit_cast(float, (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

struct Range {
  float low, high;  // the codes
  GRAFT_INLINE explicit Range(int bits) : low(static_cast<float>(-(1 << (bits - 1)))), high(static_cast<float>((1 << (bits - 1)) - 1)) {}
};

struct Parameters {
  float scale, zero_point;
};

GRAFT_INLINE Parameters parameters_of(const float* x, const IntegerScheme& scheme) {
  const Range range(scheme.bits);
  F lowest = zero(), highest = zero();
  int64_t j = 0;
  for (; j + F::W <= scheme.group; j += F::W) {
    lowest = min(load(x + j), lowest);
    highest = max(load(x + j), highest);
  }
  const F rest = load_n(x + j, static_cast<int>(scheme.group - j));
  const float least = -hmax(-min(rest, lowest)), greatest = hmax(max(rest, highest)), levels = range.high - range.low;
  const auto round = [&](float number) { return in_type(number, scheme.bf16); };
  constexpr float smallest = 0x1p-126f;
  if (scheme.symmetric) {
    const float scale = round((greatest > -least ? greatest : -least) / (levels / 2));
    return {scale > smallest ? scale : smallest, 0.0f};
  }
  const float scale = round(round(greatest - least) / levels), kept = scale > smallest ? scale : smallest;
  const float zero_point = round(range.low - nearest_even(round(least / kept)));
  return {kept, zero_point < range.low ? range.low : zero_point > range.high ? range.high : zero_point};
}

// Sets bits of a row's words from bit j on; they may belong to two words.
GRAFT_INLINE void set_bits(uint32_t* words, int64_t j, uint32_t bits) {
  const uint64_t shifted = static_cast<uint64_t>(bits) << j % 32;
  words[j / 32] |= static_cast<uint32_t>(shifted);
  if (shifted >> 32) words[j / 32 + 1] |= static_cast<uint32_t>(shifted >> 32);
}

// Calls each(j, lanes, x, code before and after it was brought into the range) for the elements of a group.
template <class Each> GRAFT_INLINE void each_code(const float* x, int64_t group, int bits, Parameters p, Each&& each) {
  const Range range(bits);
  const F inverse(1.0f / p.scale), zero_point(p.zero_point);
  for (int64_t j = 0; j < group; j += F::W) {
    const int n = group - j < F::W ? static_cast<int>(group - j) : F::W;
    const F element = n == F::W ? load(x + j) : load_n(x + j, n);
    const F code = round(element * inverse) + zero_point;
    each(j, n, element, code, clamp(code, range.low, range.high));
  }
}

int64_t quantize(const IntegerScheme& scheme, const float* x, const float* given_scales, int64_t n_rows, int64_t in, const IntegerResults& to) {
  const int64_t groups = in / scheme.group;
  for (int64_t row = 0; row < n_rows; ++row, x += in) {
    uint32_t* clipped = to.clipped ? to.clipped + row * clipped_words(in) : nullptr;
    if (clipped) __builtin_memset(clipped, 0, clipped_words(in) * sizeof(uint32_t));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * scheme.group, parameter = row * groups + g;
      if (!magnitudes_within(x + at, scheme.group, 0x7f7fffff)) return row;
      const Parameters p = given_scales ? Parameters{given_scales[parameter], 0.0f} : parameters_of(x + at, scheme);
      if (!magnitudes_within(&p.scale, 1, 0x7f7fffff)) return row;
      if (to.scales) to.scales[parameter] = p.scale;
      if (to.zero_points) to.zero_points[parameter] = static_cast<int8_t>(p.zero_point);
      each_code(x + at, scheme.group, scheme.bits, p, [&](int64_t j, int n, F, F code, F kept) __attribute__((always_inline)) {
        const int64_t i = at + j;
        if (clipped) set_bits(clipped, i, changed(code, kept) & ((1u << n) - 1));
        if (to.values) {
          const F value = (kept - F(p.zero_point)) * F(p.scale);
          if (n == F::W) store(to.values + row * in + i, value);
          else store_n(to.values + row * in + i, value, n);
        }
        if (to.codes) {
          alignas(64) int32_t whole[F::W];
          store_whole(whole, kept);
          for (int k = 0; k < n; ++k) to.codes[row * in + i + k] = static_cast<int8_t>(whole[k]);
        }
      });
    }
  }
  return n_rows;
}

void masked(const uint32_t* clipped, const float* dy, int64_t n_rows, int64_t in, float* dx) {
  for (int64_t row = 0; row < n_rows; ++row, clipped += clipped_words(in), dy += in, dx += in) {
    for (int64_t j = 0; j < in; ++j) dx[j] = clipped[j / 32] >> j % 32 & 1 ? 0.0f : dy[j];
  }
}

void backward_given(const IntegerScheme& scheme, const float* x, const float* scales, const float* dy, int64_t n_rows, int64_t in, float* dx,
                    float* dscales) {
  for (int64_t at = 0; at < n_rows * in; at += scheme.group) {
    const float scale = scales[at / scheme.group];
    F sum = zero();
    each_code(x + at, scheme.group, scheme.bits, {scale, 0.0f}, [&](int64_t j, int n, F element, F code, F kept) __attribute__((always_inline)) {
      const F g = n == F::W ? load(dy + at + j) : load_n(dy + at + j, n);
      const Mask in_range = equal(code, kept);
      sum += g * (kept - select(in_range, element * F(1.0f / scale), zero()));
      if (dx) store_n(dx + at + j, select(in_range, g, zero()), n);
    });
    if (dscales) dscales[at / scheme.group] = hsum(sum);
  }
}

void pack(const IntegerScheme& scheme, const int8_t* codes, const float* scales, const int8_t* zero_points, int64_t n_rows, int64_t in,
          uint8_t* dst) {
  const int bits = scheme.bits;
  for (int64_t at = 0; at < n_rows * in; at += 32, codes += 32, dst += 5 + 4 * bits) {
    __builtin_memcpy(dst, scales + at / scheme.group, 4);
    dst[4] = static_cast<uint8_t>(zero_points[at / scheme.group]);
    uint8_t* to = dst + 5;
    if (bits == 8) {
      __builtin_memcpy(to, codes, 32);
      continue;
    }
    __builtin_memset(to, 0, 4 * bits);
    for (int j = 0; j < 32; ++j) {
      const auto code = static_cast<uint32_t>(codes[j] + (1 << (bits - 1)));
      if (bits == 4) to[j % 16] |= code << j / 16 * 4;
      else
        for (int k = 0; k < bits; ++k) to[4 * k + j / 8] |= (code >> k & 1) << j % 8;
    }
  }
}

}  // namespace

const IntegerKernels integers = {.quantize = quantize, .masked = masked, .backward_given = backward_given, .pack = pack};

}  // namespace graft::GRAFT_ISA
