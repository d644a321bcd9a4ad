/* Types of lora.c and the conversion of numbers. */

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__F16C__)
#define HAVE_HALF 1
#elif defined(__aarch64__) && defined(__FLT16_MAX__)
#define HAVE_HALF 1
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAVE_AMX 1
#elif defined(__AVX512BF16__) && defined(__AVX512F__)
#define HAVE_PAIRS 1
#endif

#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define ROWS 4   /* rows that share each load of weights */
#define LANES 16
#define GROUP 4  /* vectors of outputs that share each load of the inner product */

typedef float vec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));
/* In memory, anywhere: a memcpy would go through the stack in two halves. */
typedef float vec_at __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint16_t hvec_at __attribute__((vector_size(32), aligned(1), may_alias));

enum { FLOAT = 0, BFLOAT = 1, HALF = 2 };
enum { CAN_HALF = 1, CAN_AMX = 2, CAN_THREADS = 4, CAN_PAIRS = 8 };

/* Of the OpenMP library that torch has loaded; a second one would have threads of its own. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern void GOMP_barrier(void) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

/* As library.py fills it: int64 everywhere, pointers as integers. */
typedef struct {
    int64_t inputs, slices, type; /* type of W */
    struct { int64_t outputs, offset; } slice[];
} Module;

/* One a slot, `2 + slices` numbers long. */
typedef struct {
    int64_t weights, columns; /* A, then each slice's B; 0 columns: nothing to add */
    int64_t rank[];
} Slot;

typedef struct { int32_t slot, first, count; } Chunk; /* into `rows` */
typedef struct { int32_t slot, first, blocks; } Run;  /* 16 rows a block, from row `first` */

typedef struct {
    const Module *module;
    const Slot *slots;
    const Chunk *chunks;
    const int32_t *rows;
    const Run *runs;
    int64_t chunk_count, run_count, row_count;
    const char *x;
    char *y;
    int64_t x_stride, y_stride, y_columns, x_type, y_type;
    float *scratch;
    float scale;
    int inner_given, parts;
    int64_t columns, private_size; /* the widest inner product; floats of scratch a thread */
} Work;

static const int64_t SIZE[] = {4, 2, 2};

INLINE int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
INLINE int64_t even(int64_t value) { return value + (value & 1); }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE const Slot *slot_of(const Work *w, int64_t slot) {
    return (const Slot *)((const int64_t *)w->slots + slot * (2 + w->module->slices));
}

/* ---- numbers ---- */

INLINE vec from_bits(uvec bits) { return (vec)bits; }
INLINE uvec to_bits(vec v) { return (uvec)v; }
INLINE vec load_floats(const void *from) { return *(const vec_at *)from; }
INLINE void store_floats(void *to, vec value) { *(vec_at *)to = value; }

INLINE uint16_t round_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
/* One instruction; what is below the smallest normal number (1.2e-38) becomes zero. */
INLINE void round_bfloats(void *to, vec value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
#elif defined(__AVX512F__)
INLINE void round_bfloats(void *to, vec value) {
    __m512i bits = _mm512_castps_si512((__m512)value);
    __m512i half = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(half, _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __m512i even_up = _mm512_srli_epi32(sum, 16);
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    even_up = _mm512_mask_or_epi32(even_up, nan, half, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(even_up));
}
#else
INLINE void round_bfloats(void *to, vec value) {
    uvec bits = to_bits(value), nan = (uvec)(value != value);
    uvec even_up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uvec rounded = (nan & (bits >> 16 | 0x40)) | (~nan & even_up);
    *(hvec_at *)to = __builtin_convertvector(rounded, hvec);
}
#endif
#if defined(__AVX512F__)
INLINE vec widen_bfloats(const void *from) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return (vec)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
#else
INLINE vec widen_bfloats(const void *from) {
    return from_bits(__builtin_convertvector(*(const hvec_at *)from, uvec) << 16);
}
#endif

INLINE float widen_bfloat(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#if defined(__F16C__)
INLINE float widen_half(uint16_t half) { return _cvtsh_ss(half); }
INLINE uint16_t round_half(float value) { return (uint16_t)_cvtss_sh(value, 0); }
INLINE vec widen_halves(const void *from) {
    float out[LANES];
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)));
    _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from + 1)));
    return load_floats(out);
}
INLINE void round_halves(void *to, vec value) {
    float in[LANES];
    store_floats(in, value);
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(_mm256_loadu_ps(in), 0));
    _mm_storeu_si128((__m128i *)to + 1, _mm256_cvtps_ph(_mm256_loadu_ps(in + 8), 0));
}
#elif defined(HAVE_HALF)
typedef _Float16 fvec __attribute__((vector_size(32), aligned(2)));
INLINE float widen_half(uint16_t half) { _Float16 f; memcpy(&f, &half, 2); return (float)f; }
INLINE uint16_t round_half(float value) {
    _Float16 f = (_Float16)value;
    uint16_t half;
    memcpy(&half, &f, 2);
    return half;
}
INLINE vec widen_halves(const void *from) {
    fvec f;
    memcpy(&f, from, 32);
    return __builtin_convertvector(f, vec);
}
INLINE void round_halves(void *to, vec value) {
    fvec f = __builtin_convertvector(value, fvec);
    memcpy(to, &f, 32);
}
#else
INLINE float widen_half(uint16_t half) { (void)half; return 0; }
INLINE uint16_t round_half(float value) { (void)value; return 0; }
INLINE vec widen_halves(const void *from) { (void)from; return (vec){0}; }
INLINE void round_halves(void *to, vec value) { (void)to; (void)value; }
#endif

INLINE vec load(const char *from, int type) {
    if (type == FLOAT) return load_floats(from);
    if (type == HALF) return widen_halves(from);
    return widen_bfloats(from);
}

INLINE float load_one(const char *from, int type) {
    uint16_t half;
    float value;
    if (type == FLOAT) { memcpy(&value, from, 4); return value; }
    memcpy(&half, from, 2);
    return type == HALF ? widen_half(half) : widen_bfloat(half);
}

INLINE void store(char *to, vec value, int type) {
    if (type == FLOAT) {
        store_floats(to, value);
    } else if (type == HALF) {
        round_halves(to, value);
    } else {
        round_bfloats(to, value);
    }
}

INLINE void store_one(char *to, float value, int type) {
    uint16_t half;
    if (type == FLOAT) { memcpy(to, &value, 4); return; }
    half = type == HALF ? round_half(value) : round_bfloat(value);
    memcpy(to, &half, 2);
}

/* Two vectors of floats from one pair of W, and how many bytes they take. */
INLINE void load_pair(const char *from, int type, vec *first, vec *second) {
    if (type == BFLOAT) {
        uvec both = to_bits(load_floats(from));
        *first = from_bits(both << 16);
        *second = from_bits(both & 0xffff0000u);
    } else {
        *first = load_floats(from);
        *second = load_floats(from + 64);
    }
}
INLINE int64_t pair_size(int type) { return type == BFLOAT ? 64 : 128; }
