/* A few rows at a time, by vectors: decoding, where each row may have an adapter of its own. */

#pragma once

#include "work.h"

/* to[row * to_stride + 16] = 16 columns of A for `rows` rows of floats; pairs is even. */
INLINE void shrink_rows(const float *x, int64_t x_stride, const char *a, int64_t pairs,
                        float *to, int64_t to_stride, int rows, int type) {
    vec sum[ROWS][4] = {{{0}}};
    for (int64_t pair = 0; pair < pairs; pair += 2) {
        vec w0, w1, w2, w3;
        load_pair(a, type, &w0, &w1);
        load_pair(a + pair_size(type), type, &w2, &w3);
        a += 2 * pair_size(type);
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            const float *value = x + row * x_stride + 2 * pair;
            sum[row][0] += value[0] * w0;
            sum[row][1] += value[1] * w1;
            sum[row][2] += value[2] * w2;
            sum[row][3] += value[3] * w3;
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++) {
        vec total = (sum[row][0] + sum[row][1]) + (sum[row][2] + sum[row][3]);
        store_floats(to + row * to_stride, total);
    }
}

/* to[row][16 * vectors] = inner [rows][2 * pairs] times `vectors` blocks of B. */
INLINE void expand_rows(const float *inner, int64_t inner_stride, const char *b, int64_t pairs,
                        float *to, int rows, int vectors, int type) {
    vec sum[ROWS][GROUP] = {{{0}}};
    for (int64_t pair = 0; pair < pairs; pair++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            vec w0, w1;
            load_pair(b + (v * pairs + pair) * pair_size(type), type, &w0, &w1);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) {
                const float *value = inner + row * inner_stride + 2 * pair;
                sum[row][v] += value[0] * w0;
                sum[row][v] += value[1] * w1;
            }
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            store_floats(to + (row * GROUP + v) * LANES, sum[row][v]);
}

#define FOR_ROWS(rows, call)                 \
    switch (rows) {                          \
    case 1: { enum { R = 1 }; call; break; } \
    case 2: { enum { R = 2 }; call; break; } \
    case 3: { enum { R = 3 }; call; break; } \
    default: { enum { R = 4 }; call; }       \
    }

static void shrink(const float *x, int64_t x_stride, const char *a, int64_t pairs, float *to,
                   int64_t to_stride, int rows, int type) {
    if (type == BFLOAT) {
        FOR_ROWS(rows, shrink_rows(x, x_stride, a, pairs, to, to_stride, R, BFLOAT))
    } else {
        FOR_ROWS(rows, shrink_rows(x, x_stride, a, pairs, to, to_stride, R, FLOAT))
    }
}

static void expand(const float *inner, int64_t stride, const char *b, int64_t pairs, float *to,
                   int rows, int vectors, int type) {
    if (vectors == GROUP && type == BFLOAT) {
        FOR_ROWS(rows, expand_rows(inner, stride, b, pairs, to, R, GROUP, BFLOAT))
    } else if (vectors == GROUP) {
        FOR_ROWS(rows, expand_rows(inner, stride, b, pairs, to, R, GROUP, FLOAT))
    } else {
        for (int v = 0; v < vectors; v++, b += pairs * pair_size(type), to += LANES) {
            if (type == BFLOAT) {
                FOR_ROWS(rows, expand_rows(inner, stride, b, pairs, to, R, 1, BFLOAT))
            } else {
                FOR_ROWS(rows, expand_rows(inner, stride, b, pairs, to, R, 1, FLOAT))
            }
        }
    }
}

/* y[0 .. count) += scale * add, rounded once. */
INLINE void update_typed(char *y, const float *add, int64_t count, float scale, int type) {
    int64_t at = 0, size = type == FLOAT ? 4 : 2;
    for (; at + LANES <= count; at += LANES)
        store(y + at * size, load(y + at * size, type) + scale * load_floats(add + at), type);
    for (; at < count; at++)
        store_one(y + at * size, load_one(y + at * size, type) + scale * add[at], type);
}

static void update(char *y, const float *add, int64_t count, float scale, int type) {
    if (type == BFLOAT) update_typed(y, add, count, scale, BFLOAT);
    else if (type == FLOAT) update_typed(y, add, count, scale, FLOAT);
    else update_typed(y, add, count, scale, HALF);
}

/* A row of x as floats, zero from `count` to `width`. */
static void widen(float *to, const char *x, int64_t count, int64_t width, int type) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES)
        store_floats(to + at, load(x + at * SIZE[type], type));
    for (; at < count; at++) to[at] = load_one(x + at * SIZE[type], type);
    for (; at < width; at++) to[at] = 0;
}

INLINE const char *row_x(const Work *w, int64_t row) {
    return w->x + row * w->x_stride * SIZE[w->x_type];
}
INLINE char *row_y(const Work *w, int64_t row, int64_t column) {
    return w->y + (row * w->y_stride + column) * SIZE[w->y_type];
}

/* inner[place][columns] for the units of this part; a unit is 4 rows and 16 columns. */
static void shrink_part(const Work *w, int part, int parts, float *inner, float *own) {
    const Module *m = w->module;
    int64_t width = up(m->inputs, 32), units = 0, unit = 0;
    int type = (int)m->type;
    for (int64_t c = 0; c < w->chunk_count; c++)
        units += up(w->chunks[c].count, ROWS) / ROWS *
                 (up(slot_of(w, w->chunks[c].slot)->columns, LANES) / LANES);
    int64_t from = units * part / parts, to = units * (part + 1) / parts;
    for (int64_t c = 0; c < w->chunk_count; c++) {
        const Chunk chunk = w->chunks[c];
        const Slot *slot = slot_of(w, chunk.slot);
        int64_t tiles = up(slot->columns, LANES) / LANES;
        for (int64_t first = 0; first < chunk.count; first += ROWS) {
            int rows = (int)least(ROWS, chunk.count - first), widened = 0;
            for (int64_t tile = 0; tile < tiles; tile++, unit++) {
                if (unit < from || unit >= to) continue;
                float *target = inner + (chunk.first + first) * w->columns + tile * LANES;
                for (int row = 0; row < rows && !widened; row++) {
                    const char *x = row_x(w, w->rows[chunk.first + first + row]);
                    widen(own + row * width, x, m->inputs, width, (int)w->x_type);
                }
                widened = 1;
                const char *a = (const char *)slot->weights + tile * width / 2 * pair_size(type);
                shrink(own, width, a, width / 2, target, w->columns, rows, type);
            }
        }
    }
}

/* The same where x holds the inner product already: an embedding's rows of A. */
static void copy_part(const Work *w, int part, int parts, float *inner) {
    for (int64_t c = w->chunk_count * part / parts; c < w->chunk_count * (part + 1) / parts; c++) {
        const Chunk chunk = w->chunks[c];
        const Slot *slot = slot_of(w, chunk.slot);
        for (int64_t at = chunk.first; at < chunk.first + chunk.count; at++)
            widen(inner + at * w->columns, row_x(w, w->rows[at]), slot->rank[0],
                  up(slot->columns, LANES), (int)w->x_type);
    }
}

INLINE int64_t a_size(const Module *m, int64_t columns) {
    return up(columns, LANES) * up(m->inputs, 32) * SIZE[m->type];
}

/* y of the units of this part; a unit is one chunk's rows and 64 columns. */
static void expand_part(const Work *w, int part, int parts, const float *inner) {
    const Module *m = w->module;
    int type = (int)m->type;
    int64_t units = 0, unit = 0;
    float add[ROWS * GROUP * LANES] __attribute__((aligned(64)));
    for (int64_t c = 0; c < w->chunk_count; c++)
        for (int64_t s = 0; s < m->slices; s++)
            if (slot_of(w, w->chunks[c].slot)->rank[s])
                units += up(m->slice[s].outputs, GROUP * LANES) / (GROUP * LANES);
    int64_t from = units * part / parts, to = units * (part + 1) / parts;
    for (int64_t c = 0; c < w->chunk_count; c++) {
        const Chunk chunk = w->chunks[c];
        const Slot *slot = slot_of(w, chunk.slot);
        const char *b = (const char *)slot->weights + (w->inner_given ? 0 : a_size(m, slot->columns));
        int64_t column = 0;
        for (int64_t s = 0; s < m->slices; s++) {
            int64_t pairs = even(slot->rank[s]) / 2, outputs = m->slice[s].outputs;
            int64_t blocks = up(outputs, LANES) / LANES;
            for (int64_t block = 0; pairs && block < blocks; block += GROUP, unit++) {
                if (unit < from || unit >= to) continue;
                int vectors = (int)least(GROUP, blocks - block);
                int64_t start = m->slice[s].offset + block * LANES;
                int64_t count = least(vectors * LANES, outputs - block * LANES);
                count = least(count, w->y_columns - start);
                if (count <= 0) continue;
                for (int64_t first = 0; first < chunk.count; first += ROWS) {
                    int rows = (int)least(ROWS, chunk.count - first);
                    const int32_t *row = w->rows + chunk.first + first;
                    expand(inner + (chunk.first + first) * w->columns + column, w->columns,
                           b + block * pairs * pair_size(type), pairs, add, rows, vectors, type);
                    for (int at = 0; at < rows; at++)
                        update(row_y(w, row[at], start), add + at * GROUP * LANES, count, w->scale,
                               (int)w->y_type);
                }
            }
            b += blocks * pairs * pair_size(type);
            column += 2 * pairs;
        }
    }
}
