/* backend_simulate.c - profiles, hashes in pages, sleeping. */
#include "worker/engine/backend/backend_simulate.h"
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/hash.h"
#include "common/log.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/host_memory.h"
#include "worker/engine/model/model.h"

#define PAGE_BYTES     (BACKEND_PAGE_TOKENS * sizeof(uint64_t))
#define PROPOSAL_LEAST 64.0f
#define PROPOSAL_SPAN  3.0f
#define END_LOGIT      128.0f /* 61 above the highest proposal: drawn at any temperature in use */
#define SLICE_US       50000u /* slept at a time, then the factor is looked at again */
#define DIGITS_MAX     20u    /* of 2^64 - 1 */

/* ---- profiles ---- */

struct field {
    const char *name;
    size_t offset;
    uint64_t least, most; /* 0 is always taken */
};

#define FIELD(member) #member, offsetof(struct simulate_profile, member)

static const struct field fields[] = {
    {FIELD(step_us), 0, 60000000},
    {FIELD(prefill_us), 0, 1000000},
    {FIELD(decode_us), 0, 1000000},
    {FIELD(context), BACKEND_PAGE_TOKENS, MODEL_CONTEXT_MAX},
    {FIELD(kv_tokens), BACKEND_PAGE_TOKENS, (uint64_t)1 << 32}, /* 16 bytes each: 64 GiB */
    {FIELD(reply), 0, MODEL_CONTEXT_MAX},
    {FIELD(seed), 0, UINT64_MAX},
    {FIELD(poison), 0, MODEL_VOCAB_MAX - 1},
};
#define FIELD_COUNT (sizeof fields / sizeof fields[0])

static const struct {
    const char *name;
    struct simulate_profile profile;
} built_in[] = {
    {"fast",
     {.step_us = 500,
      .prefill_us = 2,
      .decode_us = 10,
      .kv_tokens = 262144,
      .reply = 200,
      .seed = 1,
      .poison = SIMULATE_NO_POISON}},
    {"gpu",
     {.step_us = 8000,
      .prefill_us = 40,
      .decode_us = 100,
      .kv_tokens = 400000,
      .reply = 200,
      .seed = 1,
      .poison = SIMULATE_NO_POISON}},
};

static bool parse_number(const char *text, size_t size, uint64_t *out)
{
    uint64_t value = 0;
    if (size == 0 || size > DIGITS_MAX)
        return false;
    for (size_t i = 0; i < size; i++) {
        const unsigned digit = (unsigned)text[i] - '0';
        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = 10 * value + digit;
    }
    *out = value;
    return true;
}

static enum status set_field(const char *part, size_t size, struct simulate_profile *profile)
{
    const char *equals = memchr(part, '=', size);
    const size_t name_size = equals != NULL ? (size_t)(equals - part) : size;
    const struct field *field = NULL;
    uint64_t value = 0;
    for (size_t i = 0; i < FIELD_COUNT; i++)
        if (strlen(fields[i].name) == name_size && memcmp(fields[i].name, part, name_size) == 0)
            field = &fields[i];
    if (field == NULL || equals == NULL)
        return STATUS_FAIL(
            STATUS_INVALID,
            "simulate: '%.*s' is not an override; write NAME=NUMBER with step_us, prefill_us, decode_us, context, "
            "kv_tokens, reply, seed or poison",
            (int)(size < 64 ? size : 64), part);
    const size_t digits = size - name_size - 1;
    if (!parse_number(equals + 1, digits, &value) || value > field->most || (value != 0 && value < field->least))
        return STATUS_FAIL(STATUS_INVALID, "simulate: %s=%.*s is not a whole number from %" PRIu64 " to %" PRIu64 "%s",
                           field->name, (int)(digits < 64 ? digits : 64), equals + 1, field->least, field->most,
                           field->least > 0 ? ", or 0" : "");
    memcpy((char *)profile + field->offset, &value, sizeof value);
    return STATUS_OK;
}

enum status simulate_profile_parse(const char *text, struct simulate_profile *out)
{
    const size_t name_size = strcspn(text, ",");
    const struct simulate_profile *base = NULL;
    for (size_t i = 0; i < sizeof built_in / sizeof built_in[0]; i++)
        if (strlen(built_in[i].name) == name_size && memcmp(built_in[i].name, text, name_size) == 0)
            base = &built_in[i].profile;
    if (base == NULL)
        return STATUS_FAIL(STATUS_INVALID,
                           "simulate: '%.*s' is not a profile; fast and gpu are, overrides follow behind commas",
                           (int)(name_size < 64 ? name_size : 64), text);
    struct simulate_profile profile = *base;
    for (const char *part = text + name_size; *part == ',';) {
        const size_t size = strcspn(++part, ",");
        TRY(set_field(part, size, &profile));
        part += size;
    }
    *out = profile;
    return STATUS_OK;
}

void simulate_profile_identity(const struct simulate_profile *profile, uint8_t out[SIMULATE_IDENTITY_BYTES])
{
    memset(out, 0, SIMULATE_IDENTITY_BYTES);
    memcpy(out, "roost simulate 1", 16);
    for (unsigned i = 0; i < 8; i++) {
        out[16 + i] = (uint8_t)(profile->seed >> (8 * i));
        out[24 + i] = (uint8_t)(profile->reply >> (8 * i));
    }
}

/* ---- time ---- */

static _Atomic double slow_factor = 1;

enum status backend_simulate_slow(double factor)
{
    if (!(factor >= 0 && factor <= SIMULATE_FACTOR_MAX))
        return STATUS_FAIL(STATUS_INVALID, "the factor %g is not a number from 0 to %g", factor, SIMULATE_FACTOR_MAX);
    atomic_store(&slow_factor, factor);
    return STATUS_OK;
}

double backend_simulate_factor(void)
{
    return atomic_load(&slow_factor);
}

static bool decodes(const struct backend_run *run)
{
    return run->count == 1 && run->logit_rows == 1;
}

uint64_t simulate_step_us(const struct simulate_profile *profile, const struct backend_batch *batch)
{
    uint64_t us = profile->step_us;
    for (uint32_t r = 0; r < batch->run_count; r++)
        us += decodes(&batch->runs[r]) ? profile->decode_us : profile->prefill_us * batch->runs[r].count;
    return us;
}

static void sleep_until(const struct timespec *deadline)
{
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, deadline, NULL) == EINTR)
        continue;
}

static struct timespec later(struct timespec time, double us)
{
    const int64_t ns = time.tv_nsec + (int64_t)(us * 1000);
    return (struct timespec){.tv_sec = time.tv_sec + (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

/* Until `us`, times the factor, have passed since `start`. */
static void sleep_step(struct timespec start, double us)
{
    while (us > 0) {
        const double factor = backend_simulate_factor(), rest = us * factor;
        const double slice = rest < SLICE_US ? rest : SLICE_US;
        start = later(start, slice);
        sleep_until(&start);
        us = slice < rest ? us - slice / factor : 0;
    }
}

/* ---- life ---- */

struct backend {
    const struct model *model; /* ref */
    struct backend_config config;
    struct simulate_profile profile;
    uint32_t propose_first, propose_count; /* ids that may be proposed */
    struct copy_queue *copies;             /* owned */
};

static void simulate_destroy(struct backend **pointer)
{
    if (*pointer == NULL)
        return;
    copy_queue_destroy(&(*pointer)->copies);
    free(*pointer);
    *pointer = NULL;
}

static enum status simulate_create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    const uint32_t vocab_size = model->config.vocab_size;
    TRY(batch_check_config(config));
    if (config->simulate == NULL)
        return STATUS_FAIL(STATUS_INVALID, "the simulated backend wants a profile");
    if (config->simulate->poison != SIMULATE_NO_POISON && config->simulate->poison >= vocab_size)
        return STATUS_FAIL(STATUS_INVALID, "simulate: poison=%" PRIu64 " is not an id: the vocabulary of %s ends at %u",
                           config->simulate->poison, model->config.name, vocab_size - 1);
    if (model->config.producer_count[MODEL_LAYER_GLOBAL] == 0 && model->config.attention[MODEL_LAYER_LOCAL].window < 2)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s sees nothing before a token: there is nothing to simulate",
                           model->config.name);
    struct backend *self = calloc(1, sizeof *self);
    if (self == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    self->model = model;
    self->config = *config;
    self->profile = *config->simulate;
    self->propose_first = vocab_size / 8;
    self->propose_count = vocab_size - vocab_size / 8 - vocab_size / 32;
    const enum status st = copy_queue_create(&self->copies);
    if (st != STATUS_OK)
        simulate_destroy(&self);
    else
        *out = self;
    return st;
}

static bool has_group(const struct backend *self, uint32_t group)
{
    return self->model->config.producer_count[group] > 0;
}

static size_t simulate_page_bytes(const struct backend *self, uint32_t group)
{
    return has_group(self, group) ? PAGE_BYTES : 0;
}

/* ---- rows ---- */

static uint64_t *row_at(const struct backend_run *run, uint32_t group, uint32_t position)
{
    uint64_t *page = run->pages[group][position / BACKEND_PAGE_TOKENS];
    return page != NULL ? page + position % BACKEND_PAGE_TOKENS : NULL;
}

static enum status read_row(const struct backend_run *run, uint32_t group, uint32_t position, uint64_t *value)
{
    const uint64_t *row = row_at(run, group, position);
    if (row == NULL || *row == 0)
        return STATUS_FAIL(STATUS_CORRUPT, "the KV of position %u, which position %u reads, is not in group %u",
                           position, run->start + run->count - 1, group);
    *value = *row;
    return STATUS_OK;
}

static enum status write_run(const struct backend *self, const struct backend_run *run)
{
    const uint32_t first_group = has_group(self, MODEL_LAYER_GLOBAL) ? MODEL_LAYER_GLOBAL : MODEL_LAYER_LOCAL;
    uint64_t hash = 0;
    if (run->start > 0)
        TRY(read_row(run, first_group, run->start - 1, &hash));
    for (uint32_t i = 0; i < run->count; i++) {
        hash = hash_mix(hash, run->tokens[i]) | 1; /* never 0, which is a row that was not written */
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (has_group(self, group))
                *row_at(run, group, run->start + i) = hash;
    }
    return STATUS_OK;
}

/* What the token at `position` sees, as one value. */
static enum status attend(const struct backend *self, const struct backend_run *run, uint32_t position, uint64_t *out)
{
    const struct model_attention *local = &self->model->config.attention[MODEL_LAYER_LOCAL];
    uint64_t seen = 0, value;
    if (has_group(self, MODEL_LAYER_GLOBAL)) {
        TRY(read_row(run, MODEL_LAYER_GLOBAL, position, &seen));
        TRY(read_row(run, MODEL_LAYER_GLOBAL, (uint32_t)(seen % (position + 1)), &value));
        seen = hash_mix(seen, value);
    }
    if (has_group(self, MODEL_LAYER_LOCAL)) {
        const uint32_t width = position < local->window ? position + 1 : local->window;
        TRY(read_row(run, MODEL_LAYER_LOCAL, position, &value));
        seen = hash_mix(seen, value);
        TRY(read_row(run, MODEL_LAYER_LOCAL, position - (uint32_t)(seen % width), &value));
        seen = hash_mix(seen, value);
    }
    *out = hash_mix(seen, self->profile.seed);
    return STATUS_OK;
}

static void write_logits(const struct backend *self, uint64_t seen, float *logits)
{
    const struct model_config *config = &self->model->config;
    memset(logits, 0, config->vocab_size * sizeof *logits);
    for (uint32_t i = 0; i < SIMULATE_PROPOSALS; i++) {
        const uint64_t drawn = hash_mix(seen, i);
        logits[self->propose_first + (drawn >> 32) % self->propose_count] =
            PROPOSAL_LEAST + PROPOSAL_SPAN * (float)(drawn & 0xFFFF) / 65536;
    }
    if (self->profile.reply > 0 && hash_mix(seen, SIMULATE_PROPOSALS) % self->profile.reply == 0)
        logits[config->end_ids[0]] = END_LOGIT;
}

static enum status compute_run(const struct backend *self, const struct backend_run *run)
{
    TRY(write_run(self, run));
    for (uint32_t row = 0; row < run->logit_rows; row++) {
        uint64_t seen;
        TRY(attend(self, run, run->start + run->count - run->logit_rows + row, &seen));
        write_logits(self, seen, run->logits + (size_t)row * self->model->config.vocab_size);
    }
    return STATUS_OK;
}

/* At the end of the step, as a fault of a device comes: what was said before the step has been heard. */
static void swallow(const struct backend *self, const struct backend_batch *batch)
{
    for (uint32_t r = 0; r < batch->run_count; r++)
        for (uint32_t i = 0; i < batch->runs[r].count; i++)
            if (batch->runs[r].tokens[i] == self->profile.poison) {
                LOG_ERROR("simulate: token %u is the poison: aborting", batch->runs[r].tokens[i]);
                abort();
            }
}

static enum status simulate_forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    struct timespec start;
    (void)clock_gettime(CLOCK_MONOTONIC, &start);
    TRY(batch_check(&self->model->config, &self->config, batch));
    for (uint32_t r = 0; r < batch->run_count; r++) {
        const enum status st = compute_run(self, &batch->runs[r]);
        if (st != STATUS_OK && failed_run != NULL)
            *failed_run = r;
        if (st != STATUS_OK)
            return st;
    }
    sleep_step(start, (double)simulate_step_us(&self->profile, batch));
    if (self->profile.poison != SIMULATE_NO_POISON)
        swallow(self, batch);
    return STATUS_OK;
}

static void simulate_page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    (void)self, (void)group;
    memcpy(dst, src, tokens * sizeof(uint64_t));
    memset((uint64_t *)dst + tokens, 0, PAGE_BYTES - tokens * sizeof(uint64_t));
}

/* ---- arenas and copies: the host's memory ---- */

static enum status simulate_arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    (void)self, (void)tier;
    return host_arena_create(bytes, base);
}

static void simulate_arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    (void)self, (void)tier;
    host_arena_destroy(base);
}

static uint64_t simulate_copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    return copy_queue_start(self->copies, dst, src, bytes);
}

static bool simulate_copy_done(struct backend *self, uint64_t ticket)
{
    return copy_queue_done(self->copies, ticket);
}

static void simulate_copy_wait(struct backend *self, uint64_t ticket)
{
    copy_queue_wait(self->copies, ticket);
}

const struct backend_ops backend_simulate_ops = {
    .name = "simulate",
    .bits = "simulate",
    .create = simulate_create,
    .destroy = simulate_destroy,
    .page_bytes = simulate_page_bytes,
    .forward = simulate_forward,
    .page_copy_prefix = simulate_page_copy_prefix,
    .arena_create = simulate_arena_create,
    .arena_destroy = simulate_arena_destroy,
    .copy_start = simulate_copy_start,
    .copy_done = simulate_copy_done,
    .copy_wait = simulate_copy_wait,
};
