/* collective_shared.c - collectives of processes on one machine.
 *
 * Each rank has two slots of PIECE bytes in the shared segment and one counter. A round: write into slot (round mod 2), advance the own
 * counter, wait until every other counter has come as far, read the others' slots. A slot is written again two rounds later, when
 * every rank has finished the round between and so has read it: one wait a round is enough. Longer data takes more rounds. */
#include <stdlib.h>
#include <string.h>
#include "worker/engine/collective/collective.h"
#include "worker/engine/collective/rendezvous.h"

#define PIECE      ((size_t)256 * 1024)  /* stays in the second level cache of a core */
#define HEAD_BYTES 64u
#define WORD       0u                    /* of rendezvous_word: rounds written */

enum operation { ALL_GATHER = 1, ALL_TO_ALL, SUM, MAXIMUM, BROADCAST, BARRIER };
static const char *const operation_names[] = {"nothing", "all_gather", "all_to_all", "sum_int32", "maximum_bits", "broadcast", "barrier"};

struct head {                            /* of a slot: what its writer is doing */
    uint32_t operation, round;
    uint64_t size;                       /* of the whole call, as all ranks must have it */
};

struct slot {
    _Alignas(HEAD_BYTES) struct head head;
    _Alignas(HEAD_BYTES) uint8_t data[PIECE];
};

struct collective {
    struct rendezvous *rendezvous;       /* ref */
    struct slot *slots;                  /* (size, 2) */
    uint32_t rank, size, round;
    enum operation operation;            /* under way */
    uint64_t call_size, deadline_ms;
    struct collective_counts counts;
};

static struct slot *slot_of(const struct collective *self, uint32_t rank)
{
    return &self->slots[2 * rank + self->round % 2];
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- one round ---- */

static void begin(struct collective *self, enum operation operation, uint64_t size, uint64_t deadline_ms)
{
    self->operation = operation;
    self->call_size = size;
    self->deadline_ms = deadline_ms;
    self->counts.calls++;
}

static enum status late(struct collective *self, uint32_t rank, enum status st)
{
    if (st != STATUS_TIMEOUT)
        return st;
    rendezvous_abort(self->rendezvous, "rank %u found rank %u late in %s", self->rank, rank, operation_names[self->operation]);
    return STATUS_FAIL(STATUS_TIMEOUT, "rank %u did not come to %s in time", rank, operation_names[self->operation]);
}

static enum status check_head(struct collective *self, uint32_t rank)
{
    const struct head *head = &slot_of(self, rank)->head;
    if (head->operation == (uint32_t)self->operation && head->round == self->round && head->size == self->call_size)
        return STATUS_OK;
    rendezvous_abort(self->rendezvous, "ranks %u and %u are not in the same call", self->rank, rank);
    return STATUS_FAIL(STATUS_INTERNAL, "rank %u is in %s of %llu bytes, rank %u in another call", self->rank,
                       operation_names[self->operation], (unsigned long long)self->call_size, rank);
}

/* The own slot is written; on STATUS_OK those of all ranks can be read until the next round's exchange. */
static enum status exchange(struct collective *self)
{
    TRY(rendezvous_status(self->rendezvous));
    slot_of(self, self->rank)->head = (struct head){(uint32_t)self->operation, self->round, self->call_size};
    rendezvous_advance(self->rendezvous, rendezvous_word(self->rendezvous, self->rank, WORD));
    for (uint32_t rank = 0; rank < self->size; rank++) {
        if (rank == self->rank)
            continue;
        const enum status st = rendezvous_wait(self->rendezvous, rendezvous_word(self->rendezvous, rank, WORD),
                                               RENDEZVOUS_COUNT(self->round + 1), self->deadline_ms);
        if (st != STATUS_OK)
            return late(self, rank, st);
        TRY(check_head(self, rank));
    }
    return STATUS_OK;
}

static void take(struct collective *self, uint32_t rank, size_t at, void *to, size_t bytes)
{
    memcpy(to, slot_of(self, rank)->data + at, bytes);
    self->counts.bytes_received += rank != self->rank ? bytes : 0;
}

/* ---- operations ---- */

/* Part of a rank that round `done / PIECE` of the call carries. */
static size_t part_of(size_t bytes, size_t done)
{
    return bytes > done ? least(bytes - done, PIECE) : 0;
}

static enum status shared_all_gather(struct collective *self, const void *part, const size_t *bytes, void *all, uint64_t deadline_ms)
{
    size_t sum = 0, most = 0;
    for (uint32_t rank = 0; rank < self->size; rank++) {
        sum += bytes[rank];
        most = bytes[rank] > most ? bytes[rank] : most;
    }
    begin(self, ALL_GATHER, sum, deadline_ms);
    for (size_t done = 0; done < most; done += PIECE, self->round++) {
        if (part_of(bytes[self->rank], done) > 0)
            memcpy(slot_of(self, self->rank)->data, (const uint8_t *)part + done, part_of(bytes[self->rank], done));
        TRY(exchange(self));
        size_t at = 0;
        for (uint32_t rank = 0; rank < self->size; at += bytes[rank++])
            if (part_of(bytes[rank], done) > 0)
                take(self, rank, 0, (uint8_t *)all + at + done, part_of(bytes[rank], done));
    }
    return STATUS_OK;
}

/* A slot has one lane a rank, so a round carries PIECE / size bytes to each. Sizes differ from pair to pair and need not be known to
 * third ranks, so each slot says first whether its writer has more to send. */
static enum status shared_all_to_all(struct collective *self, const void *send, const size_t *send_bytes, void *receive,
                                     const size_t *receive_bytes, uint64_t deadline_ms)
{
    const size_t lane = PIECE / self->size / 64 * 64 - 64;
    size_t most = 0;
    bool more = true;
    begin(self, ALL_TO_ALL, 0, deadline_ms);
    for (uint32_t rank = 0; rank < self->size; rank++)
        most = send_bytes[rank] > most ? send_bytes[rank] : most;
    for (size_t done = 0; more; done += lane, self->round++) {
        struct slot *slot = slot_of(self, self->rank);
        size_t at = 0;
        more = most > done + lane;
        slot->data[0] = more;
        for (uint32_t rank = 0; rank < self->size; at += send_bytes[rank++])
            if (send_bytes[rank] > done)
                memcpy(slot->data + 64 + rank * lane, (const uint8_t *)send + at + done, least(send_bytes[rank] - done, lane));
        TRY(exchange(self));
        at = 0;
        for (uint32_t rank = 0; rank < self->size; at += receive_bytes[rank++]) {
            more |= slot_of(self, rank)->data[0] != 0;
            if (receive_bytes[rank] > done)
                take(self, rank, 64 + self->rank * lane, (uint8_t *)receive + at + done, least(receive_bytes[rank] - done, lane));
        }
    }
    return STATUS_OK;
}

static enum status reduce(struct collective *self, enum operation operation, uint32_t *values, size_t count, uint64_t deadline_ms)
{
    begin(self, operation, count, deadline_ms);
    for (size_t done = 0; done < count; done += PIECE / sizeof *values, self->round++) {
        const size_t here = least(count - done, PIECE / sizeof *values);
        memcpy(slot_of(self, self->rank)->data, values + done, here * sizeof *values);
        TRY(exchange(self));
        for (uint32_t rank = 0; rank < self->size; rank++) {
            if (rank == self->rank)
                continue;
            const uint32_t *other = (const uint32_t *)slot_of(self, rank)->data;
            for (size_t i = 0; i < here; i++)
                values[done + i] = operation == SUM              ? values[done + i] + other[i]
                                   : values[done + i] > other[i] ? values[done + i]
                                                                 : other[i];
            self->counts.bytes_received += here * sizeof *values;
        }
    }
    return STATUS_OK;
}

static enum status shared_sum_int32(struct collective *self, int32_t *values, size_t count, uint64_t deadline_ms)
{
    return reduce(self, SUM, (uint32_t *)values, count, deadline_ms);   /* two's complement: the same sum, without undefined overflow */
}

static enum status shared_maximum_bits(struct collective *self, uint32_t *values, size_t count, uint64_t deadline_ms)
{
    return reduce(self, MAXIMUM, values, count, deadline_ms);
}

static enum status shared_broadcast(struct collective *self, uint32_t root, void *data, size_t bytes, uint64_t deadline_ms)
{
    begin(self, BROADCAST, bytes * RENDEZVOUS_RANKS_MAX + root, deadline_ms);
    for (size_t done = 0; done < bytes; done += PIECE, self->round++) {
        const size_t here = least(bytes - done, PIECE);
        if (self->rank == root)
            memcpy(slot_of(self, root)->data, (const uint8_t *)data + done, here);
        TRY(exchange(self));
        if (self->rank != root)
            take(self, root, 0, (uint8_t *)data + done, here);
    }
    return STATUS_OK;
}

static enum status shared_barrier(struct collective *self, uint64_t deadline_ms)
{
    begin(self, BARRIER, 0, deadline_ms);
    TRY(exchange(self));
    self->round++;
    return STATUS_OK;
}

/* ---- life ---- */

static size_t shared_bytes(uint32_t size)
{
    return 2 * size * sizeof(struct slot);
}

static enum status shared_create(struct rendezvous *rendezvous, struct collective **out)
{
    struct collective *self = calloc(1, sizeof *self);
    if (self == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a collective");
    self->rendezvous = rendezvous;
    self->slots = rendezvous_extra(rendezvous);
    self->rank = rendezvous_rank(rendezvous);
    self->size = rendezvous_size(rendezvous);
    *out = self;
    return STATUS_OK;
}

static void shared_destroy(struct collective **self)
{
    free(*self);
    *self = NULL;
}

static void shared_abort(struct collective *self, const char *reason)
{
    rendezvous_abort(self->rendezvous, "%s", reason);
}

static void shared_counts(const struct collective *self, struct collective_counts *out)
{
    *out = self->counts;
}

const struct collective_ops collective_shared_ops = {
    .name = "shared",
    .shared_bytes = shared_bytes,
    .create = shared_create,
    .destroy = shared_destroy,
    .all_gather = shared_all_gather,
    .all_to_all = shared_all_to_all,
    .sum_int32 = shared_sum_int32,
    .maximum_bits = shared_maximum_bits,
    .broadcast = shared_broadcast,
    .barrier = shared_barrier,
    .abort = shared_abort,
    .counts = shared_counts,
};
