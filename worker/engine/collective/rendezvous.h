/* rendezvous.h - where the processes of one group meet: one shared memory segment (a memfd that followers inherit), who has
 * joined, who is gone, and words to wait on. What ranks say to each other through it is collective.h's business.
 *
 *     rank 0: rendezvous_create -> start the others, which inherit rendezvous_fd -> rendezvous_meet
 *     others: rendezvous_join(fd, rank) -> rendezvous_meet
 *
 * One group is one failure unit: once one rank has died (a thread of each rank watches the others' processes) or called rendezvous_abort,
 * every wait of every rank ends at once with STATUS_CLOSED, for good; rendezvous_status says why. A rank that merely stands still is
 * found by deadlines alone. Deadlines are absolute, on clock_now_ms (the same clock for all processes of a machine); 0: none.
 *
 * Waits, wakes and abort may be called from any thread; the rest by the owner. */
#ifndef ROOST_WORKER_ENGINE_RENDEZVOUS_H
#define ROOST_WORKER_ENGINE_RENDEZVOUS_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "common/status.h"

#define RENDEZVOUS_RANKS_MAX 16u
#define RENDEZVOUS_WORDS     4u          /* a rank */
#define RENDEZVOUS_COUNT(word) ((word) & 0x7fffffffu)   /* words count modulo 2^31; the top bit says aborted */
#define RENDEZVOUS_VALUE_BYTES 256u

struct rendezvous;                       /* opaque; one process's view */

/* On rank 0. extra_bytes of zeroed memory are shared beside it. */
enum status rendezvous_create(uint32_t size, size_t extra_bytes, struct rendezvous **out);
/* fd is taken over. STATUS_INVALID: it is no rendezvous, or the rank is not one of it or has joined before. */
enum status rendezvous_join(int fd, uint32_t rank, struct rendezvous **out);
void rendezvous_destroy(struct rendezvous **rendezvous);        /* accepts NULL; the others do not notice */

/* Until all ranks have joined; from then on the others are watched. */
enum status rendezvous_meet(struct rendezvous *rendezvous, uint64_t deadline_ms);

int rendezvous_fd(const struct rendezvous *rendezvous);         /* close-on-exec is set: clear it in the child that is to have it */
uint32_t rendezvous_rank(const struct rendezvous *rendezvous);
uint32_t rendezvous_size(const struct rendezvous *rendezvous);
void *rendezvous_extra(const struct rendezvous *rendezvous);    /* 4096-byte aligned */

/* Ends the group; the first reason given is kept. */
void rendezvous_abort(struct rendezvous *rendezvous, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool rendezvous_aborted(const struct rendezvous *rendezvous);
enum status rendezvous_status(const struct rendezvous *rendezvous);   /* STATUS_OK, or STATUS_CLOSED with the reason as detail */
/* fn(user) is called once, in a thread of its own, when another rank has died (one that ends the group ends itself, too). Set before
 * rendezvous_meet. */
void rendezvous_on_death(struct rendezvous *rendezvous, void (*fn)(void *user), void *user);

/* Words of a rank; their meaning is the users' (collective_shared.c: 0; parallel_wire.h: 1 and 2). rendezvous_advance alone writes them. */
atomic_uint *rendezvous_word(const struct rendezvous *rendezvous, uint32_t rank, uint32_t index);
void rendezvous_advance(struct rendezvous *rendezvous, atomic_uint *word);      /* one more, and wakes who waits */
/* Until the word has counted to `count` or beyond (by less than 2^30). STATUS_TIMEOUT, STATUS_CLOSED. */
enum status rendezvous_wait(struct rendezvous *rendezvous, atomic_uint *word, uint32_t count, uint64_t deadline_ms);

/* One small value that one rank tells all others, once in the group's life (a ncclUniqueId). */
enum status rendezvous_publish(struct rendezvous *rendezvous, const void *value, size_t bytes);
enum status rendezvous_await(struct rendezvous *rendezvous, void *value, size_t bytes, uint64_t deadline_ms);

#endif
