/* The LoRA arithmetic of the CPU engine: y[row] += scale * B[slot(row)] (A[slot(row)] x[row]);
   and an activation, gated.h.

   Plain C with the vector extensions of GCC and Clang; no header of torch, Python or OpenMP. It is
   compiled on the machine that runs it (builder.py) and called through ctypes (library.py).

   Weights of a slot, laid out once when the slot changes (lora_pack): the columns of A of all
   slices of a packed layer side by side, K of them, each slice's rank rounded up to an even
   number by a zero column. W is bfloat16 or float; k and j go over columns and outputs by 16.

       A  [K / 16][in / 2][16 columns][2 inputs]
       B  per slice [out / 16][rank / 2][16 outputs][2 columns]

   Pairs lie together because AMX wants them so (Intel, Architecture Instruction Set Extensions,
   TDPBF16PS), and one 64 byte load then gives two vectors of floats by a shift and a mask.

   Nothing is ever added up over rows, so what one row or one adapter holds (NaN, Inf) cannot reach
   another row. How work is split over threads changes no order of summation: the result has the
   same bytes with any number of threads. */

#include "blocks.h"
#include "gated.h"

/* Multiplications from which a second thread is worth waking. */
#define THREAD_WORK 100000

/* What this build can do on this machine: a sum of CAN_…; called once, before anything else. */
API int lora_start(void) {
    int can = 0;
#if HAVE_HALF
    can |= CAN_HALF;
#endif
    can |= blocks_allowed();
    if (GOMP_parallel && GOMP_barrier && omp_get_thread_num && omp_get_num_threads)
        can |= CAN_THREADS;
    return can;
}

/* 1 + the last row that is not all zero (NaN is not); `bytes` of each row are looked at. */
API int64_t lora_rank(const char *rows, int64_t count, int64_t stride, int64_t bytes) {
    for (; count > 0; count--) {
        const char *row = rows + (count - 1) * stride;
        /* -0.0 would count as used, which costs a little and harms nothing. */
        uint64_t any = 0, eight;
        int64_t at = 0;
        for (; at + 8 <= bytes; at += 8) {
            memcpy(&eight, row + at, 8);
            any |= eight;
        }
        for (; at < bytes; at++) any |= (uint8_t)row[at];
        if (any) return count;
    }
    return 0;
}

/* Bytes of a slot's weights with these ranks; `with_a` 0: an embedding, whose A is looked up. */
API int64_t lora_size(const Module *m, const int64_t *rank, int with_a) {
    int64_t columns = 0, b = 0;
    for (int64_t s = 0; s < m->slices; s++) {
        columns += even(rank[s]);
        b += up(m->slice[s].outputs, LANES) * even(rank[s]);
    }
    return (with_a ? a_size(m, columns) : 0) + b * SIZE[m->type];
}

/* `count` numbers of `from` as pairs, into every 16th pair of `to`. */
static void pack_row(char *to, const char *from, int64_t count, int type) {
    int64_t at = 0;
    if (type == BFLOAT) {
        for (; at + 2 <= count; at += 2, to += 64) memcpy(to, from + 2 * at, 4);
        if (at < count) memcpy(to, from + 2 * at, 2);
    } else {
        for (; at < count; at++, to += 64) {
            float value = load_one(from + at * SIZE[type], type);
            memcpy(to, &value, 4);
        }
    }
}

/* Lay a slot out at `slot->weights`. a[s] [rank, in] and b[s] [out, rank] have rows `a_stride`[s]
   and `b_stride`[s] numbers of `type` apart; a NULL: only B. `type` is W's, or HALF for floats. */
API void lora_pack(const Module *m, Slot *slot, const char *const *a, const int64_t *a_stride,
                   const char *const *b, const int64_t *b_stride, int type) {
    char *to = (char *)slot->weights;
    int64_t width = up(m->inputs, 32), column = 0;
    memset(to, 0, (size_t)lora_size(m, slot->rank, a != NULL));
    slot->columns = 0;
    for (int64_t s = 0; s < m->slices; s++) slot->columns += even(slot->rank[s]);
    /* A lane is one pair of bfloat16 or one float: 4 bytes. */
    for (int64_t s = 0; a && s < m->slices; s++) {
        for (int64_t r = 0; r < slot->rank[s]; r++) {
            int64_t at = column + r;
            pack_row(to + at / LANES * LANES * width * SIZE[m->type] + at % LANES * 4,
                     a[s] + r * a_stride[s] * SIZE[type], m->inputs, type);
        }
        column += even(slot->rank[s]);
    }
    if (a) to += a_size(m, slot->columns);
    for (int64_t s = 0; s < m->slices; s++) {
        int64_t rank = even(slot->rank[s]), outputs = m->slice[s].outputs;
        for (int64_t o = 0; o < outputs; o++)
            pack_row(to + o / LANES * LANES * rank * SIZE[m->type] + o % LANES * 4,
                     b[s] + o * b_stride[s] * SIZE[type], slot->rank[s], type);
        to += up(outputs, LANES) * rank * SIZE[m->type];
    }
}

static void work_part(const Work *w, int part, int parts) {
    float *inner = w->scratch + w->parts * w->private_size;
    float *own = w->scratch + part * w->private_size;
    if (w->run_count) block_part(w, part, parts, own);
    if (!w->chunk_count) return;
    if (w->inner_given) copy_part(w, part, parts, inner);
    else shrink_part(w, part, parts, inner, own);
    if (parts > 1) GOMP_barrier();
    expand_part(w, part, parts, inner);
}

static void in_thread(void *work) {
    work_part(work, omp_get_thread_num(), omp_get_num_threads());
}

/* Whether there is work for several threads. */
static int64_t multiplications(const Work *w) {
    int64_t sum = 0, outputs = 0;
    for (int64_t s = 0; s < w->module->slices; s++) outputs += w->module->slice[s].outputs;
    for (int64_t c = 0; c < w->chunk_count; c++) {
        const Slot *slot = slot_of(w, w->chunks[c].slot);
        int64_t rank = slot->columns / w->module->slices;
        sum += w->chunks[c].count * (slot->columns * w->module->inputs + rank * outputs);
    }
    for (int64_t r = 0; r < w->run_count; r++)
        sum += slot_of(w, w->runs[r].slot)->columns ? THREAD_WORK : 0;
    return sum;
}

/* Apply every chunk and run of w. */
API void lora_apply(Work *w) {
    int64_t work = multiplications(w);
    if (!work) return;
    if (w->parts > 1 && work >= THREAD_WORK)
        GOMP_parallel(in_thread, w, (unsigned)w->parts, 0);
    else
        work_part(w, 0, 1);
}
