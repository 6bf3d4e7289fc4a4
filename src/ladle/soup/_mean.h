/* The exact weighted mean of rows of bf16, fp16 or fp32 numbers, rounded once:
 *
 *     out[i] = round_half_even(sum_j coefficient[j] * member[j][i] / denominator),   sum_j coefficient[j] = denominator
 *
 * Rows are cut into blocks that stay in the L1 cache, and each block goes down this list until one line is proven exact:
 *
 *   1. bf16: sums in float, two numbers of a 32-bit word at a time (three times as fast as 2);
 *   2. sums in double;
 *   3. for the elements that are still not proven, a fixed-point number wide enough for all of fp32.
 *
 * The proof of 1 and 2: all terms are multiples of one power of two u, the last place of the smallest one, and the absolute
 * sum is at most 2^p u, with p the bits of a float (24) or double (53) significand. Then no partial sum is ever rounded,
 * in any order. The quotient is rounded twice, to p bits and to the output's q bits, which is harmless: a tie of the
 * output format that is not the quotient itself differs from it by more than half a last place of p bits, as long as
 * denominator < 2^(p - q).
 */
#ifndef LADLE_SOUP_MEAN_H
#define LADLE_SOUP_MEAN_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors are little-endian, and this file reads them as they are"
#endif

#if FLT_EVAL_METHOD != 0
#error "sums must be rounded to the type they are written in, or rounding them again is no longer harmless"
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline)) /* so that it is compiled for its caller's CPU */
#else
#define INLINE static inline
#endif

enum { BLOCK = 512, FLOAT_BITS = 24, DOUBLE_BITS = 53 };
enum { BF16, FP16, FP32, NUM_FORMATS };

/* IEEE-like: a sign, an exponent biased by `bias`, and `fraction` bits. */
typedef struct {
    int size, fraction, bias;
} Format;

static const Format FORMATS[NUM_FORMATS] = {{2, 7, 127}, {2, 10, 15}, {4, 23, 127}};

typedef struct {
    int format, out_format; /* out_format is format or FP32 */
    ptrdiff_t num_members;
    const void *const *members;
    const uint32_t *coefficients;
    uint32_t denominator;
    int denominator_bits; /* denominator <= 2^denominator_bits */
} Mean;

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Ask for bytes that will be needed soon: the next block of a row, which the CPU does not foresee across pages. */
INLINE void prefetch(const void *data, int size) {
#if defined(__GNUC__)
    for (int offset = 0; offset < size; offset += 64) __builtin_prefetch((const char *)data + offset);
#else
    (void)data, (void)size;
#endif
}

INLINE int max_int(int a, int b) { return a > b ? a : b; }

/* Whether sums of terms between two magnitudes (bit patterns without sign) stay within `bits` bits. */
INLINE int is_exact(uint32_t smallest, uint32_t largest, int fraction, int denominator_bits, int bits) {
    int low = max_int((int)(smallest >> fraction), 1); /* a subnormal has the last place of the smallest normal */
    int high = max_int((int)(largest >> fraction), 1);
    return high - low + fraction + 1 + denominator_bits <= bits;
}

/* Extend each element's largest magnitude, and its smallest non-zero one less 1 (so that zero wraps, never the smallest). */
#define DEFINE_EXTEND(NAME, TYPE)                                                                              \
    INLINE void extend_##NAME(TYPE *restrict high, TYPE *restrict low, const TYPE *restrict x, int n) {        \
        for (int i = 0; i < n; i++) {                                                                          \
            TYPE magnitude = x[i] & ((TYPE)-1 >> 1), less_one = (TYPE)(magnitude - 1);                         \
            high[i] = magnitude > high[i] ? magnitude : high[i];                                               \
            low[i] = less_one < low[i] ? less_one : low[i];                                                    \
        }                                                                                                      \
    }
DEFINE_EXTEND(uint16, uint16_t)
DEFINE_EXTEND(uint32, uint32_t)

/* ---- 1. bf16 in float --------------------------------------------------------------------------------------------- */

INLINE uint32_t round_to_bf16(uint32_t float_bits) { return (float_bits + 0x7fff + (float_bits >> 16 & 1)) >> 16; }

/* A whole block; returns 0, with `out` undefined, when an element is not proven exact (or not finite). */
INLINE int block_in_float(const Mean *mean, ptrdiff_t start, uint16_t *out) {
    float even[BLOCK / 2], odd[BLOCK / 2];
    uint16_t high[BLOCK], low[BLOCK];
    for (int i = 0; i < BLOCK / 2; i++) even[i] = odd[i] = -0.0f;
    for (int i = 0; i < BLOCK; i++) high[i] = 0, low[i] = UINT16_MAX;

    for (ptrdiff_t j = 0; j < mean->num_members; j++) {
        const uint16_t *x = (const uint16_t *)mean->members[j] + start;
        float coefficient = (float)mean->coefficients[j];
        for (int i = 0; i < BLOCK / 2; i++) {
            uint32_t pair;
            memcpy(&pair, x + 2 * i, sizeof pair);
            even[i] += coefficient * float_of(pair << 16);
            odd[i] += coefficient * float_of(pair & 0xffff0000);
        }
        prefetch(x + BLOCK, sizeof(uint16_t) * BLOCK);
        extend_uint16(high, low, x, BLOCK);
    }

    int16_t widest = 0, largest = 0;
    for (int i = 0; i < BLOCK; i++) {
        int16_t least = (int16_t)((uint16_t)(low[i] + 1) >> 7), span = (int16_t)((high[i] >> 7) - (least > 1 ? least : 1));
        widest = span > widest ? span : widest;
        largest = (int16_t)high[i] > largest ? (int16_t)high[i] : largest;
    }
    if (widest + 8 + mean->denominator_bits > FLOAT_BITS) return 0;
    if ((largest >> 7) + mean->denominator_bits > 254) return 0; /* the sum could overflow; infinity and NaN are caught too */

    float denominator = (float)mean->denominator;
    for (int i = 0; i < BLOCK / 2; i++) {
        uint32_t pair = round_to_bf16(bits_of(even[i] / denominator)) | round_to_bf16(bits_of(odd[i] / denominator)) << 16;
        memcpy(out + 2 * i, &pair, sizeof pair);
    }
    return 1;
}

/* ---- 2. any format in double -------------------------------------------------------------------------------------- */

INLINE double decode_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

INLINE double decode_fp16(uint16_t bits) { /* 2^112 takes fp16's exponent bias, 15, to float's 127; subnormals too */
    return float_of((uint32_t)(bits & 0x7fff) << 13 | (uint32_t)(bits & 0x8000) << 16) * 0x1p112;
}

INLINE double decode_fp32(uint32_t bits) { return float_of(bits); }

/* The float next to `value` with its last bit set if it is not equal (round to odd), so that it may be rounded once more. */
INLINE uint32_t round_to_odd(double value) {
    float nearest = (float)value, rest = (float)((value - nearest) * 0x1p64); /* scaled, lest its sign underflow */
    uint32_t bits = bits_of(nearest), is_inexact = rest != 0;
    uint32_t is_beyond = (bits ^ bits_of(rest)) >> 31 & is_inexact; /* `nearest` lies farther from zero than `value` */
    return (bits - is_beyond) | is_inexact;
}

INLINE uint16_t encode_bf16(double value) { return (uint16_t)round_to_bf16(round_to_odd(value)); }

INLINE uint16_t encode_fp16(double value) {
    uint32_t bits = round_to_odd(value), magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f); /* 0.5f's last place: the smallest fp16 */
    return (uint16_t)((magnitude < (127 - 14) << 23 ? subnormal : normal) | (bits >> 16 & 0x8000));
}

INLINE uint32_t encode_fp32(double value) { return bits_of((float)value); }

/* Per format: add one member's terms to a block of sums, widen the block's extremes, and round its means.
 * Dividing by a power of two is done as multiplying by its reciprocal, exact as well and a fraction of the time. */
#define DEFINE_FOR_FORMAT(NAME, TYPE)                                                                          \
    INLINE void add_##NAME(double *restrict sum, const TYPE *restrict x, int n, double coefficient) {          \
        for (int i = 0; i < n; i++) sum[i] += coefficient * decode_##NAME(x[i]);                               \
    }                                                                                                          \
    INLINE void widen_##NAME(const TYPE *restrict x, int n, uint32_t *smallest, uint32_t *largest) {           \
        TYPE low = (TYPE)-1, high = 0;                                                                         \
        for (int i = 0; i < n; i++) {                                                                          \
            TYPE magnitude = x[i] & ((TYPE)-1 >> 1), less_one = (TYPE)(magnitude - 1);                         \
            high = magnitude > high ? magnitude : high;                                                        \
            low = less_one < low ? less_one : low;                                                             \
        }                                                                                                      \
        *largest = high > *largest ? high : *largest;                                                          \
        if (low != (TYPE)-1) *smallest = (uint32_t)low + 1 < *smallest ? (uint32_t)low + 1 : *smallest;        \
    }                                                                                                          \
    INLINE void round_##NAME(TYPE *restrict out, const double *restrict sum, int n, uint32_t denominator) {    \
        if (denominator & (denominator - 1))                                                                   \
            for (int i = 0; i < n; i++) out[i] = encode_##NAME(sum[i] / denominator);                          \
        else                                                                                                   \
            for (int i = 0; i < n; i++) out[i] = encode_##NAME(sum[i] * (1.0 / denominator));                  \
    }
DEFINE_FOR_FORMAT(bf16, uint16_t)
DEFINE_FOR_FORMAT(fp16, uint16_t)
DEFINE_FOR_FORMAT(fp32, uint32_t)

/* ---- 3. what is left, in fixed point ------------------------------------------------------------------------------ */

INLINE uint32_t load(const void *data, ptrdiff_t i, int size) {
    return size == 2 ? ((const uint16_t *)data)[i] : ((const uint32_t *)data)[i];
}

INLINE void store(void *data, ptrdiff_t i, int size, uint32_t bits) {
    if (size == 2)
        ((uint16_t *)data)[i] = (uint16_t)bits;
    else
        ((uint32_t *)data)[i] = bits;
}

/* A two's-complement number of LIMBS 32-bit digits, the last bit worth 2^UNIT: room for a sum of 2^32 numbers of fp32's
 * largest magnitude, 2^128, and for 11 bits below its smallest, 2^-149. */
enum { LIMBS = 11, UNIT = -160 };

static void add_fixed(uint32_t *limbs, uint64_t term, int shift, int is_negative) {
    int bits = shift % 32;
    uint32_t digits[3] = {(uint32_t)(term << bits), (uint32_t)(term >> (32 - bits)), bits ? (uint32_t)(term >> (64 - bits)) : 0};
    uint64_t carry = (uint64_t)is_negative; /* subtracting is adding the complement, plus one */
    for (int limb = shift / 32, d = 0; limb < LIMBS; limb++, d++) {
        uint32_t digit = d < 3 ? digits[d] : 0;
        carry += (uint64_t)limbs[limb] + (is_negative ? ~digit : digit);
        limbs[limb] = (uint32_t)carry;
        carry >>= 32;
    }
}

static int make_positive(uint32_t *limbs) {
    if (!(limbs[LIMBS - 1] >> 31)) return 0;
    uint64_t carry = 1;
    for (int limb = 0; limb < LIMBS; limb++) {
        carry += (uint32_t)~limbs[limb];
        limbs[limb] = (uint32_t)carry;
        carry >>= 32;
    }
    return 1;
}

static uint64_t divide_fixed(uint32_t *limbs, uint32_t denominator) {
    uint64_t rest = 0;
    for (int limb = LIMBS - 1; limb >= 0; limb--) {
        rest = rest << 32 | limbs[limb];
        limbs[limb] = (uint32_t)(rest / denominator);
        rest %= denominator;
    }
    return rest;
}

INLINE uint32_t bit(const uint32_t *limbs, int position) { return limbs[position / 32] >> (position % 32) & 1; }

/* Round a positive number (and whether there is a rest below its last bit) to a format, half to even. */
static uint32_t encode_fixed(const uint32_t *limbs, uint32_t has_rest, Format format) {
    int smallest = 1 - format.bias - format.fraction - UNIT, top = 32 * LIMBS - 1;
    while (top > 0 && !bit(limbs, top)) top--;
    int last = max_int(top - format.fraction, smallest);
    uint32_t kept = 0;
    for (int position = top; position >= last; position--) kept = kept << 1 | bit(limbs, position);
    for (int position = 0; position < last - 1; position++) has_rest |= bit(limbs, position);
    kept += bit(limbs, last - 1) & (has_rest | kept);
    return ((uint32_t)(last - smallest) << format.fraction) + kept; /* `kept` brings the leading one: the exponent's last unit */
}

static uint32_t exact_element(const Mean *mean, ptrdiff_t i) {
    const Format in = FORMATS[mean->format], out = FORMATS[mean->out_format];
    const uint32_t leading_one = (uint32_t)1 << in.fraction;
    uint32_t limbs[LIMBS] = {0};
    for (ptrdiff_t j = 0; j < mean->num_members; j++) {
        uint32_t bits = load(mean->members[j], i, in.size), sign = bits >> (8 * in.size - 1);
        uint32_t exponent = (bits ^ sign << (8 * in.size - 1)) >> in.fraction, fraction = bits & (leading_one - 1);
        uint64_t significand = exponent ? leading_one | fraction : fraction;
        int shift = max_int((int)exponent, 1) - in.bias - in.fraction - UNIT;
        if (significand) add_fixed(limbs, significand * mean->coefficients[j], shift, (int)sign);
    }
    uint32_t sign = (uint32_t)make_positive(limbs);
    uint32_t has_rest = divide_fixed(limbs, mean->denominator) != 0;
    return encode_fixed(limbs, has_rest, out) | sign << (8 * out.size - 1);
}

/* ---- all three ---------------------------------------------------------------------------------------------------- */

/* block_of_NAME: fill out[start .. start + n); returns 0 when a member holds NaN or infinity there. */
#define DEFINE_BLOCK(NAME, TYPE, BITS)                                                                         \
    /* Redo those elements of a block that are not proven by themselves. */                                    \
    INLINE void redo_unproven_##NAME(const Mean *mean, void *out, ptrdiff_t start, int n) {                    \
        const Format in = FORMATS[mean->format], to = FORMATS[mean->out_format];                               \
        TYPE high[BLOCK], low[BLOCK];                                                                          \
        for (int i = 0; i < n; i++) high[i] = 0, low[i] = (TYPE)-1;                                            \
        for (ptrdiff_t j = 0; j < mean->num_members; j++)                                                      \
            extend_uint##BITS(high, low, (const TYPE *)mean->members[j] + start, n);                           \
        for (int i = 0; i < n; i++) {                                                                          \
            uint32_t smallest = (TYPE)(low[i] + 1);                                                            \
            if (!is_exact(smallest, high[i], in.fraction, mean->denominator_bits, DOUBLE_BITS))                \
                store(out, start + i, to.size, exact_element(mean, start + i));                                \
        }                                                                                                      \
    }                                                                                                          \
    INLINE int block_of_##NAME(const Mean *mean, void *out, ptrdiff_t start, int n) {                          \
        const Format format = FORMATS[mean->format];                                                           \
        const uint32_t infinity = ((TYPE)-1 >> 1) - (((uint32_t)1 << format.fraction) - 1);                    \
        double sum[BLOCK];                                                                                     \
        uint32_t smallest = UINT32_MAX, largest = 0;                                                           \
        for (int i = 0; i < n; i++) sum[i] = -0.0; /* as in IEEE, only a sum of negative zeros is one */       \
        for (ptrdiff_t j = 0; j < mean->num_members; j++) {                                                    \
            const TYPE *x = (const TYPE *)mean->members[j] + start;                                            \
            widen_##NAME(x, n, &smallest, &largest);                                                           \
            add_##NAME(sum, x, n, mean->coefficients[j]);                                                      \
        }                                                                                                      \
        if (largest >= infinity) return 0;                                                                     \
        if (mean->out_format == FP32)                                                                          \
            round_fp32((uint32_t *)out + start, sum, n, mean->denominator);                                    \
        else                                                                                                   \
            round_##NAME((TYPE *)out + start, sum, n, mean->denominator);                                      \
        if (largest && !is_exact(smallest, largest, format.fraction, mean->denominator_bits, DOUBLE_BITS))     \
            redo_unproven_##NAME(mean, out, start, n);                                                         \
        return 1;                                                                                              \
    }
DEFINE_BLOCK(bf16, uint16_t, 16)
DEFINE_BLOCK(fp16, uint16_t, 16)
DEFINE_BLOCK(fp32, uint32_t, 32)

/* Fill out[0 .. count); returns 0 when a member holds NaN or infinity. */
INLINE int average_rows(const Mean *mean, void *out, ptrdiff_t count) {
    /* With more than 2^8 in the denominator too few exponents fit a float to be worth trying. */
    int try_float = mean->format == BF16 && mean->out_format == BF16 && mean->denominator_bits <= 8;
    int is_finite = 1;
    for (ptrdiff_t start = 0; start < count && is_finite; start += BLOCK) {
        int n = count - start < BLOCK ? (int)(count - start) : BLOCK;
        if (try_float && n == BLOCK && block_in_float(mean, start, (uint16_t *)out + start)) continue;
        if (mean->format == BF16)
            is_finite = block_of_bf16(mean, out, start, n);
        else if (mean->format == FP16)
            is_finite = block_of_fp16(mean, out, start, n);
        else
            is_finite = block_of_fp32(mean, out, start, n);
    }
    return is_finite;
}

#endif
