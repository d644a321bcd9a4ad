/* Blocks of 16 neighbouring rows of one slot, by AMX: prefill. x, y and W are bfloat16 here.

   Both products of a block are done by the same thread, one after the other, so that x is read
   and y is read and written once. Tile 0 to 3 hold sums, 4 holds rows, 5 weights. */

#pragma once

#include "rows.h"

#define BLOCK 16
/* Blocks whose inner products are kept while each slice's B is gone through. */
#define BLOCKS 16

#if HAVE_AMX

/* Linux grants the tiles' state to a process that asks (Documentation/arch/x86/xstate.rst). */
static int amx_allowed(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Products of 16 rows with `pairs` (at most 16) pairs each. */
static void configure(int pairs) {
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

/* The most pairs, up to 16, of which `pairs` is a multiple: no tile reaches beyond a slice. */
static int step_of(int64_t pairs) {
    int step = 16;
    while (pairs % step) step--;
    return step;
}

/* sums[row][16 * tiles] = 16 rows times `tiles` (1 to 4) neighbouring column tiles of W. */
INLINE void multiply(const char *rows, int64_t row_bytes, const char *weights, int64_t tile_bytes,
                     int64_t steps, int step, float *sums, int tiles) {
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

static void multiply_any(const char *rows, int64_t row_bytes, const char *weights,
                         int64_t tile_bytes, int64_t steps, int step, float *sums, int tiles) {
    switch (tiles) {
    case 1: multiply(rows, row_bytes, weights, tile_bytes, steps, step, sums, 1); break;
    case 2: multiply(rows, row_bytes, weights, tile_bytes, steps, step, sums, 2); break;
    case 3: multiply(rows, row_bytes, weights, tile_bytes, steps, step, sums, 3); break;
    default: multiply(rows, row_bytes, weights, tile_bytes, steps, step, sums, 4);
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

/* inner[row][16 * tiles] of 16 rows: their products with `tiles` (1 to 4) column tiles of A. */
static void shrink_block(const char *x, int64_t x_bytes, const char *a, int64_t tile_bytes,
                         int64_t steps, uint16_t *inner, int64_t width, int tiles) {
    float sums[BLOCK * GROUP * LANES] __attribute__((aligned(64)));
    if (tiles == 1) multiply_apart(x, x_bytes, a, tile_bytes, steps, sums, 1);
    else if (tiles == 2) multiply_apart(x, x_bytes, a, tile_bytes, steps, sums, 2);
    else multiply_any(x, x_bytes, a, tile_bytes, steps, 16, sums, tiles);
    const float *sum = sums;
    for (int row = 0; row < BLOCK; row++, inner += width, sum += GROUP * LANES)
        for (int v = 0; v < tiles; v++) {
            vec total = load_floats(sum + v * LANES);
            if (tiles == 2) total += load_floats(sum + (v + 2) * LANES);
            if (tiles == 1) {
                total += load_floats(sum + LANES);
                total += load_floats(sum + 2 * LANES) + load_floats(sum + 3 * LANES);
            }
            store((char *)(inner + v * LANES), total, BFLOAT);
        }
}

/* 16 rows and `count` columns of y += scale * sums. */
INLINE void add_block(const Work *w, int64_t row, int64_t column, const float *sums,
                      int64_t count) {
    char *y = row_y(w, row, column);
    for (int i = 0; i < BLOCK; i++, y += 2 * w->y_stride, sums += GROUP * LANES) {
        if (count == GROUP * LANES) update_typed(y, sums, GROUP * LANES, w->scale, BFLOAT);
        else update_typed(y, sums, count, w->scale, BFLOAT);
    }
}

/* Rows `first` to first + 16 * blocks of one slot; `inner` has room for their inner products. */
static void multiply_blocks(const Work *w, const Slot *slot, int64_t first, int64_t blocks,
                            uint16_t *inner) {
    const Module *m = w->module;
    const char *b = (const char *)slot->weights;
    float sums[BLOCK * GROUP * LANES] __attribute__((aligned(64)));
    int64_t tiles = up(slot->columns, LANES) / LANES, width = tiles * LANES, column = 0;
    int64_t tile_bytes = m->inputs * 32;
    configure(16);
    for (int64_t block = 0; block < blocks; block++) {
        const char *x = row_x(w, first + block * BLOCK);
        for (int64_t tile = 0; tile < tiles; tile += GROUP) {
            shrink_block(x, w->x_stride * 2, b + tile * tile_bytes, tile_bytes, m->inputs / 32,
                         inner + block * BLOCK * width + tile * LANES, width,
                         (int)least(GROUP, tiles - tile));
        }
    }
    b += a_size(m, slot->columns);
    for (int64_t s = 0; s < m->slices; s++) {
        int64_t pairs = even(slot->rank[s]) / 2, outputs = m->slice[s].outputs;
        int64_t vectors = up(outputs, LANES) / LANES;
        if (pairs) {
            int step = step_of(pairs);
            configure(step);
            for (int64_t row = 0; row < blocks * BLOCK; row += BLOCK)
                for (int64_t at = 0; at < vectors; at += GROUP) {
                    int64_t start = m->slice[s].offset + at * LANES;
                    int64_t count = least(GROUP * LANES, outputs - at * LANES);
                    count = least(count, w->y_columns - start);
                    if (count <= 0) break;
                    multiply_any((const char *)(inner + row * width + column), width * 2,
                                 b + at * pairs * 64, pairs * 64, pairs / step, step, sums,
                                 (int)least(GROUP, vectors - at));
                    add_block(w, first + row, start, sums, count);
                }
        }
        b += vectors * pairs * 64;
        column += 2 * pairs;
    }
}

/* This part of all runs' blocks. */
static void block_part(const Work *w, int part, int parts, void *own) {
    int64_t units = 0, unit = 0;
    for (int64_t r = 0; r < w->run_count; r++) units += w->runs[r].blocks;
    int64_t from = units * part / parts, to = units * (part + 1) / parts;
    for (int64_t r = 0; r < w->run_count; r++) {
        const Run run = w->runs[r];
        const Slot *slot = slot_of(w, run.slot);
        int64_t first = from > unit ? from - unit : 0;
        int64_t last = least(run.blocks, to - unit);
        unit += run.blocks;
        if (!slot->columns) continue;
        for (; first < last; first += BLOCKS)
            multiply_blocks(w, slot, run.first + first * BLOCK, least(BLOCKS, last - first), own);
    }
    _tile_release();
}

#else

static int amx_allowed(void) { return 0; }
static void block_part(const Work *w, int part, int parts, void *own) {
    (void)w; (void)part; (void)parts; (void)own;
}

#endif
