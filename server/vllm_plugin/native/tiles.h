/* Products of a block of 16 rows of x with tiles of 16 columns of W, both bfloat16, sums in float:
   by AMX, or else by AVX-512's products of pairs. Each row's sums are its own.

   begin, multiply and multiply_inputs are what blocks.h uses. */

#pragma once

#include "rows.h"

#define BLOCK 16

#if HAVE_AMX

/* Tile 0 to 3 hold sums, 4 holds rows, 5 weights. Linux grants the tiles' state to a process that
   asks (Documentation/arch/x86/xstate.rst). */
static int blocks_allowed(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? CAN_AMX : 0;
}

/* Products of 16 rows with `pairs` (at most 16) pairs each. */
static void begin(int pairs) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < 4; tile++) {
        shape.rows[tile] = BLOCK;
        shape.bytes[tile] = 64;
    }
    shape.rows[4] = BLOCK;
    shape.bytes[4] = (uint16_t)(4 * pairs);
    shape.rows[5] = (uint8_t)pairs;
    shape.bytes[5] = 64;
    _tile_loadconfig(&shape);
}

/* sums[row][16 * tiles] = 16 rows times `tiles` (1 to 4) neighbouring column tiles of W. */
INLINE void multiply_tiles(const char *rows, int64_t row_bytes, const char *weights,
                           int64_t tile_bytes, int64_t steps, int step, float *sums, int tiles) {
    _tile_zero(0);
    if (tiles > 1) _tile_zero(1);
    if (tiles > 2) _tile_zero(2);
    if (tiles > 3) _tile_zero(3);
    for (int64_t at = 0; at < steps; at++, rows += 4 * step, weights += 64 * step) {
        _tile_loadd(4, rows, row_bytes);
        _tile_loadd(5, weights, 64);
        _tile_dpbf16ps(0, 4, 5);
        if (tiles > 1) {
            _tile_loadd(5, weights + tile_bytes, 64);
            _tile_dpbf16ps(1, 4, 5);
        }
        if (tiles > 2) {
            _tile_loadd(5, weights + 2 * tile_bytes, 64);
            _tile_dpbf16ps(2, 4, 5);
        }
        if (tiles > 3) {
            _tile_loadd(5, weights + 3 * tile_bytes, 64);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, sums, 256);
    if (tiles > 1) _tile_stored(1, sums + 16, 256);
    if (tiles > 2) _tile_stored(2, sums + 32, 256);
    if (tiles > 3) _tile_stored(3, sums + 48, 256);
}

static void multiply(const char *rows, int64_t row_bytes, const char *weights,
                     int64_t tile_bytes, int64_t steps, int step, float *sums, int tiles) {
    switch (tiles) {
    case 1: multiply_tiles(rows, row_bytes, weights, tile_bytes, steps, step, sums, 1); break;
    case 2: multiply_tiles(rows, row_bytes, weights, tile_bytes, steps, step, sums, 2); break;
    case 3: multiply_tiles(rows, row_bytes, weights, tile_bytes, steps, step, sums, 3); break;
    default: multiply_tiles(rows, row_bytes, weights, tile_bytes, steps, step, sums, 4);
    }
}

/* The same for one or two column tiles of A, whole pairs of 16: fewer sums than the processor can
   work on at once, so each is made in GROUP / tiles parts, of every so many-th step. */
INLINE void multiply_apart(const char *rows, int64_t row_bytes, const char *weights,
                           int64_t tile_bytes, int64_t steps, float *sums, int tiles) {
    int64_t at = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#define PART(first, second, number)                              \
    _tile_loadd(4, rows + 64 * (at + number), row_bytes);        \
    _tile_loadd(5, weights + 1024 * (at + number), 64);          \
    _tile_dpbf16ps(first, 4, 5);                                 \
    if (tiles > 1) {                                             \
        _tile_loadd(5, weights + tile_bytes + 1024 * (at + number), 64); \
        _tile_dpbf16ps(second, 4, 5);                            \
    }
    if (tiles > 1) {
        for (; at + 2 <= steps; at += 2) { PART(0, 1, 0) PART(2, 3, 1) }
    } else {
        for (; at + 4 <= steps; at += 4) { PART(0, 0, 0) PART(1, 1, 1) PART(2, 2, 2) PART(3, 3, 3) }
    }
    for (; at < steps; at++) { PART(0, 1, 0) }
#undef PART
    _tile_stored(0, sums, 256);
    _tile_stored(1, sums + 16, 256);
    _tile_stored(2, sums + 32, 256);
    _tile_stored(3, sums + 48, 256);
}

/* The same with A, 16 pairs a step. In how many parts each sum is, tile after tile. */
static int multiply_inputs(const char *rows, int64_t row_bytes, const char *weights,
                           int64_t tile_bytes, int64_t steps, float *sums, int tiles) {
    if (tiles == 1) multiply_apart(rows, row_bytes, weights, tile_bytes, steps, sums, 1);
    else if (tiles == 2) multiply_apart(rows, row_bytes, weights, tile_bytes, steps, sums, 2);
    else multiply(rows, row_bytes, weights, tile_bytes, steps, 16, sums, tiles);
    return tiles > 2 ? 1 : GROUP / tiles;
}

static void end(void) { _tile_release(); }

#elif HAVE_PAIRS

static int blocks_allowed(void) { return CAN_PAIRS; }
static void begin(int pairs) { (void)pairs; }
static void end(void) {}

/* As many rows at a time as leave 16 or 24 sums in registers: each waits 6 cycles for the last. */
INLINE void multiply_some(const char *rows, int64_t row_bytes, const char *weights,
                          int64_t tile_bytes, int64_t pairs, float *sums, int count, int tiles) {
    __m512 sum[BLOCK][GROUP];
#pragma GCC unroll 16
    for (int row = 0; row < count; row++)
#pragma GCC unroll 4
        for (int v = 0; v < tiles; v++) sum[row][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, rows += 4, weights += 64) {
        __m512bh w[GROUP];
#pragma GCC unroll 4
        for (int v = 0; v < tiles; v++)
            w[v] = (__m512bh)_mm512_loadu_si512(weights + v * tile_bytes);
#pragma GCC unroll 16
        for (int row = 0; row < count; row++) {
            int32_t both;
            memcpy(&both, rows + row * row_bytes, 4);
            __m512bh x = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int v = 0; v < tiles; v++) sum[row][v] = _mm512_dpbf16_ps(sum[row][v], w[v], x);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < count; row++)
#pragma GCC unroll 4
        for (int v = 0; v < tiles; v++)
            _mm512_storeu_ps(sums + (row * GROUP + v) * LANES, sum[row][v]);
}

/* sums[row][16 * tiles] = 16 rows times `tiles` (1 to 4) neighbouring column tiles of W. */
static void multiply(const char *rows, int64_t row_bytes, const char *weights,
                     int64_t tile_bytes, int64_t steps, int step, float *sums, int tiles) {
#define SOME(count, tiles)                                                                  \
    for (int row = 0; row < BLOCK; row += count)                                            \
        multiply_some(rows + row * row_bytes, row_bytes, weights, tile_bytes, steps * step, \
                      sums + row * GROUP * LANES, count, tiles);                            \
    break
    switch (tiles) {
    case 1: SOME(16, 1);
    case 2: SOME(8, 2);
    case 3: SOME(8, 3);
    default: SOME(4, 4);
    }
#undef SOME
}

static int multiply_inputs(const char *rows, int64_t row_bytes, const char *weights,
                           int64_t tile_bytes, int64_t steps, float *sums, int tiles) {
    multiply(rows, row_bytes, weights, tile_bytes, steps, 16, sums, tiles);
    return 1;
}

#endif
