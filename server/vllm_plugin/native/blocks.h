/* Blocks of 16 neighbouring rows of one slot: prefill. x, y and W are bfloat16 here.

   Both products of a block are done by the same thread, one after the other, so that x is read
   and y is read and written once. */

#pragma once

#include "tiles.h"

/* Blocks whose inner products are kept while each slice's B is gone through. */
#define BLOCKS 16

#if HAVE_AMX || HAVE_PAIRS

/* The most pairs, up to 16, of which `pairs` is a multiple: no tile reaches beyond a slice. */
static int step_of(int64_t pairs) {
    int step = 16;
    while (pairs % step) step--;
    return step;
}

/* inner[row][16 * tiles] of 16 rows: their products with `tiles` (1 to 4) column tiles of A. */
static void shrink_block(const char *x, int64_t x_bytes, const char *a, int64_t tile_bytes,
                         int64_t steps, uint16_t *inner, int64_t width, int tiles) {
    float sums[BLOCK * GROUP * LANES] __attribute__((aligned(64)));
    int parts = multiply_inputs(x, x_bytes, a, tile_bytes, steps, sums, tiles);
    const float *sum = sums;
    for (int row = 0; row < BLOCK; row++, inner += width, sum += GROUP * LANES)
        for (int v = 0; v < tiles; v++) {
            vec total = load_floats(sum + v * LANES);
            for (int part = 1; part < parts; part++)
                total += load_floats(sum + (v + part * tiles) * LANES);
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
    begin(16);
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
            begin(step);
            for (int64_t row = 0; row < blocks * BLOCK; row += BLOCK)
                for (int64_t at = 0; at < vectors; at += GROUP) {
                    int64_t start = m->slice[s].offset + at * LANES;
                    int64_t count = least(GROUP * LANES, outputs - at * LANES);
                    count = least(count, w->y_columns - start);
                    if (count <= 0) break;
                    multiply((const char *)(inner + row * width + column), width * 2,
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
    end();
}

#else

static int blocks_allowed(void) { return 0; }
static void block_part(const Work *w, int part, int parts, void *own) {
    (void)w; (void)part; (void)parts; (void)own;
}

#endif
