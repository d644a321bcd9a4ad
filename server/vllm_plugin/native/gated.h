/* The gated activation of a feed-forward part: silu(gate) * linear, silu(v) = v / (1 + e^-v).

   vLLM's own (csrc/cpu/activation.cpp) calls the C library's expf for one number after another. */

#pragma once

#include "work.h"

/* Columns that a thread does at a time, and numbers from which a second thread is worth waking. */
#define GATED_COLUMNS 256
#define GATED_WORK 4096

typedef int32_t ivec __attribute__((vector_size(64)));

typedef struct {
    char *to;         /* [rows, width] */
    const char *from; /* [rows, gate of width, linear of width] */
    int64_t rows, width, type;
} Gated;

INLINE vec every(float value) { return (vec){0} + value; }
INLINE vec chosen(ivec mask, vec yes, vec no) {
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

/* e^x to an ulp or two of a float, 0 and infinity beyond their range: x = n ln 2 + rest, and of the
   rest Taylor's series, whose next term is below 6e-9. What comes of NaN is not NaN. */
INLINE vec exponential(vec x) {
    const vec rounder = every(12582912.0f); /* 1.5 * 2^23: has no room for fractions */
    x = chosen(x < 170.0f, x, every(170.0f));
    x = chosen(x > -170.0f, x, every(-170.0f));
    vec shifted = x * 1.44269504f + rounder, n = shifted - rounder;
    ivec power = (ivec)shifted - (ivec)rounder, half = power >> 1;
    /* ln 2 in two parts; the first has so few digits that n times it is exact. */
    vec rest = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec sum = every(1.0f / 5040);
    sum = sum * rest + 1.0f / 720;
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    /* In two steps: 2^n alone may be none of the normal numbers. */
    return sum * (vec)((half + 127) << 23) * (vec)((power - half + 127) << 23);
}

INLINE vec gated(vec gate, vec linear) { return gate / (1.0f + exponential(-gate)) * linear; }

INLINE void gate_typed(char *to, const char *gate, const char *linear, int64_t count, int type) {
    int64_t at = 0, size = type == FLOAT ? 4 : 2;
    for (; at + LANES <= count; at += LANES)
        store(to + at * size, gated(load(gate + at * size, type), load(linear + at * size, type)),
              type);
    for (; at < count; at++) {
        vec one = gated(every(load_one(gate + at * size, type)),
                        every(load_one(linear + at * size, type)));
        store_one(to + at * size, one[0], type);
    }
}

static void gate_part(const Gated *g, int64_t part, int64_t parts) {
    int64_t size = SIZE[g->type], blocks = up(g->width, GATED_COLUMNS) / GATED_COLUMNS;
    int64_t end = g->rows * blocks * (part + 1) / parts;
    for (int64_t unit = g->rows * blocks * part / parts; unit < end; unit++) {
        int64_t row = unit / blocks, column = unit % blocks * GATED_COLUMNS;
        int64_t count = least(g->width - column, GATED_COLUMNS);
        const char *gate = g->from + (row * 2 * g->width + column) * size;
        const char *linear = gate + g->width * size;
        char *to = g->to + (row * g->width + column) * size;
        if (g->type == BFLOAT) gate_typed(to, gate, linear, count, BFLOAT);
        else if (g->type == FLOAT) gate_typed(to, gate, linear, count, FLOAT);
        else gate_typed(to, gate, linear, count, HALF);
    }
}

static void gate_in_thread(void *g) {
    gate_part(g, omp_get_thread_num(), omp_get_num_threads());
}

/* to [rows, width] of from [rows, 2 * width], both without gaps. */
API void silu_and_mul(char *to, const char *from, int64_t rows, int64_t width, int64_t type,
                      int64_t parts) {
    Gated g = {to, from, rows, width, type};
    if (parts > 1 && rows * width >= GATED_WORK)
        GOMP_parallel(gate_in_thread, &g, (unsigned)parts, 0);
    else
        gate_part(&g, 0, 1);
}
