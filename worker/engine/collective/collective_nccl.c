#include "worker/engine/collective/collective_nccl.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <time.h>
#include "common/clock.h"
#include "worker/engine/collective/rendezvous.h"

#define ASK_US 20u                       /* between two questions */

struct collective {
    struct rendezvous *rendezvous;       /* ref */
    cudaStream_t stream;                 /* ref */
    ncclComm_t comm;                     /* owned; NULL: aborted */
    int32_t *token;                      /* owned, on the device: what a barrier sums */
    uint32_t rank, size;
    struct collective_counts counts;
};

static void pause_a_little(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = ASK_US * 1000}, NULL);
}

/* ---- the end ---- */

static void drop_comm(struct collective *self)
{
    if (self->comm != NULL)
        (void)ncclCommAbort(self->comm);
    self->comm = NULL;
}

static enum status give_up(struct collective *self, enum status st, const char *what, const char *why)
{
    drop_comm(self);
    rendezvous_abort(self->rendezvous, "rank %u: %s: %s", self->rank, what, why);
    return STATUS_FAIL(st, "%s: %s", what, why);
}

/* Until NCCL has done with the call that gave `result`. */
static enum status settle(struct collective *self, ncclResult_t result, const char *what, uint64_t deadline_ms)
{
    while (result == ncclInProgress) {
        if (rendezvous_aborted(self->rendezvous)) {
            drop_comm(self);
            return rendezvous_status(self->rendezvous);
        }
        if (deadline_ms != 0 && clock_now_ms() >= deadline_ms)
            return give_up(self, STATUS_TIMEOUT, what, "another rank did not come in time");
        pause_a_little();
        if (ncclCommGetAsyncError(self->comm, &result) != ncclSuccess)
            result = ncclInternalError;
    }
    return result == ncclSuccess ? STATUS_OK : give_up(self, STATUS_IO, what, ncclGetErrorString(result));
}

enum status collective_nccl_wait(struct collective *self, uint64_t deadline_ms)
{
    for (;;) {
        const cudaError_t error = cudaStreamQuery(self->stream);
        if (error == cudaSuccess)
            return STATUS_OK;
        if (error != cudaErrorNotReady)
            return give_up(self, STATUS_IO, "the stream", cudaGetErrorString(error));
        ncclResult_t result = ncclInternalError;
        if (self->comm == NULL)
            return rendezvous_status(self->rendezvous);
        if (ncclCommGetAsyncError(self->comm, &result) != ncclSuccess || (result != ncclSuccess && result != ncclInProgress))
            return give_up(self, STATUS_IO, "NCCL", ncclGetErrorString(result));
        if (rendezvous_aborted(self->rendezvous)) {
            drop_comm(self);
            return rendezvous_status(self->rendezvous);
        }
        if (deadline_ms != 0 && clock_now_ms() >= deadline_ms)
            return give_up(self, STATUS_TIMEOUT, "the stream", "another rank did not come in time");
        pause_a_little();
    }
}

/* ---- bootstrap ---- */

enum status collective_nccl_exchange_id(struct rendezvous *rendezvous, ncclUniqueId *id, uint64_t deadline_ms)
{
    _Static_assert(sizeof(ncclUniqueId) <= RENDEZVOUS_VALUE_BYTES, "an id fits into the rendezvous' value");
    if (rendezvous_rank(rendezvous) != 0)
        return rendezvous_await(rendezvous, id, sizeof *id, deadline_ms);
    const ncclResult_t result = ncclGetUniqueId(id);
    if (result != ncclSuccess) {
        rendezvous_abort(rendezvous, "rank 0 has no NCCL id: %s", ncclGetErrorString(result));
        return STATUS_FAIL(STATUS_IO, "NCCL makes no id: %s", ncclGetErrorString(result));
    }
    return rendezvous_publish(rendezvous, id, sizeof *id);
}

static void nccl_destroy(struct collective **pointer)
{
    struct collective *self = *pointer;
    if (self == NULL)
        return;
    drop_comm(self); /* nothing is under way that anybody wants: the engine has ended */
    if (self->token != NULL)
        (void)cudaFree(self->token);
    free(self);
    *pointer = NULL;
}

enum status collective_nccl_create(struct rendezvous *rendezvous, cudaStream_t stream, uint64_t deadline_ms, struct collective **out)
{
    ncclUniqueId id;
    enum status st;
    TRY(collective_nccl_exchange_id(rendezvous, &id, deadline_ms));
    struct collective *self = calloc(1, sizeof *self);
    if (self == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a collective");
    self->rendezvous = rendezvous;
    self->stream = stream;
    self->rank = rendezvous_rank(rendezvous);
    self->size = rendezvous_size(rendezvous);
    if (cudaMalloc((void **)&self->token, sizeof *self->token) != cudaSuccess) {
        st = give_up(self, STATUS_NO_MEMORY, "a communicator", "no device memory");
        goto fail;
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result = ncclCommInitRankConfig(&self->comm, (int)self->size, id, (int)self->rank, &config);
    TRY_GOTO(settle(self, result, "making a communicator", deadline_ms), st, fail);
    *out = self;
    return STATUS_OK;
fail:
    nccl_destroy(&self);
    return st;
}

/* ---- operations ---- */

static enum status begin(struct collective *self)
{
    self->counts.calls++;
    if (self->comm == NULL || rendezvous_aborted(self->rendezvous)) {
        drop_comm(self);
        return rendezvous_status(self->rendezvous);
    }
    return STATUS_OK;
}

/* Parts differ in size, so each is a broadcast of its rank's; NCCL makes one operation of the group. */
static enum status nccl_all_gather(struct collective *self, const void *part, const size_t *bytes, void *all, uint64_t deadline_ms)
{
    TRY(begin(self));
    ncclResult_t result = ncclGroupStart();
    size_t at = 0;
    for (uint32_t rank = 0; rank < self->size && (result == ncclSuccess || result == ncclInProgress); at += bytes[rank++]) {
        char *place = (char *)all + at;
        if (bytes[rank] > 0)
            result = ncclBroadcast(rank == self->rank ? part : place, place, bytes[rank], ncclUint8, (int)rank, self->comm, self->stream);
        self->counts.bytes_received += rank != self->rank ? bytes[rank] : 0;
    }
    const ncclResult_t end = ncclGroupEnd();
    return settle(self, result == ncclSuccess || result == ncclInProgress ? end : result, "all_gather", deadline_ms);
}

static enum status nccl_all_to_all(struct collective *self, const void *send, const size_t *send_bytes, void *receive,
                                   const size_t *receive_bytes, uint64_t deadline_ms)
{
    TRY(begin(self));
    ncclResult_t result = ncclGroupStart();
    size_t out = 0, in = 0;
    for (uint32_t rank = 0; rank < self->size && (result == ncclSuccess || result == ncclInProgress); rank++) {
        if (send_bytes[rank] > 0)
            result = ncclSend((const char *)send + out, send_bytes[rank], ncclUint8, (int)rank, self->comm, self->stream);
        if (receive_bytes[rank] > 0 && (result == ncclSuccess || result == ncclInProgress))
            result = ncclRecv((char *)receive + in, receive_bytes[rank], ncclUint8, (int)rank, self->comm, self->stream);
        out += send_bytes[rank];
        in += receive_bytes[rank];
        self->counts.bytes_received += rank != self->rank ? receive_bytes[rank] : 0;
    }
    const ncclResult_t end = ncclGroupEnd();
    return settle(self, result == ncclSuccess || result == ncclInProgress ? end : result, "all_to_all", deadline_ms);
}

static enum status nccl_sum_int32(struct collective *self, int32_t *values, size_t count, uint64_t deadline_ms)
{
    TRY(begin(self));
    self->counts.bytes_received += count * sizeof *values;
    return settle(self, ncclAllReduce(values, values, count, ncclInt32, ncclSum, self->comm, self->stream), "sum_int32", deadline_ms);
}

static enum status nccl_maximum_bits(struct collective *self, uint32_t *values, size_t count, uint64_t deadline_ms)
{
    TRY(begin(self));
    self->counts.bytes_received += count * sizeof *values;
    return settle(self, ncclAllReduce(values, values, count, ncclUint32, ncclMax, self->comm, self->stream), "maximum_bits", deadline_ms);
}

static enum status nccl_broadcast(struct collective *self, uint32_t root, void *data, size_t bytes, uint64_t deadline_ms)
{
    TRY(begin(self));
    self->counts.bytes_received += root != self->rank ? bytes : 0;
    return settle(self, ncclBroadcast(data, data, bytes, ncclUint8, (int)root, self->comm, self->stream), "broadcast", deadline_ms);
}

static enum status nccl_barrier(struct collective *self, uint64_t deadline_ms)
{
    TRY(nccl_sum_int32(self, self->token, 1, deadline_ms));
    return collective_nccl_wait(self, deadline_ms);
}

static void nccl_abort(struct collective *self, const char *reason)
{
    rendezvous_abort(self->rendezvous, "%s", reason); /* the calls under way see it and drop the communicator, on their own thread */
}

static void nccl_counts(const struct collective *self, struct collective_counts *out)
{
    *out = self->counts;
}

const struct collective_ops collective_nccl_ops = {
    .name = "nccl",
    .destroy = nccl_destroy,
    .all_gather = nccl_all_gather,
    .all_to_all = nccl_all_to_all,
    .sum_int32 = nccl_sum_int32,
    .maximum_bits = nccl_maximum_bits,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
    .counts = nccl_counts,
};
