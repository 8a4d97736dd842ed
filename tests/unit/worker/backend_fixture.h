/* backend_fixture.h - random models, backends and pages for tests of backends; every failure ends the test. */
#ifndef ROOST_TESTS_BACKEND_FIXTURE_H
#define ROOST_TESTS_BACKEND_FIXTURE_H
#include <stdbool.h>
#include <stdint.h>
#include "random_model.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model.h"

#define PAGES_MAX 40

struct model *model_make(const struct random_model *shape);              /* in memory */
struct model *model_make_with(const struct random_model *shape, enum random_recipe recipe);

/* isa NULL: what the machine chooses. */
struct backend *backend_make(const struct backend_ops *ops, const struct model *model, const char *isa, struct backend_config config);

struct session {                /* one sequence: its pages and its tokens */
    const struct model *model;
    const struct backend_ops *ops;
    struct backend *backend;    /* ref */
    void *pages[BACKEND_GROUPS_MAX][PAGES_MAX];
    void *arenas[BACKEND_GROUPS_MAX];   /* owned: the pages' memory, where it is a device's */
    const uint32_t *tokens;     /* ref */
};

/* Pages are filled with 0xff: NaN scales, -1 everywhere. */
void session_open(struct session *session, const struct backend_ops *ops, const struct model *model, struct backend *backend,
                  const uint32_t *tokens);
void session_close(struct session *session);
/* For a backend whose device tier is not the host's memory. */
void session_open_on_device(struct session *session, const struct backend_ops *ops, const struct model *model, struct backend *backend,
                            const uint32_t *tokens);
/* A copy of a page in memory of the host; the caller frees it. */
void *session_page(const struct session *session, unsigned group, unsigned page);
/* A page's image into the session. */
void session_page_put(struct session *session, unsigned group, unsigned page, const void *image);

/* tokens[i] for i < count; another stream for each salt. */
void tokens_fill(const struct model *model, uint64_t salt, uint32_t *tokens, uint32_t count);

/* Tokens [start, start + count) of the session; logits of the last rows. */
struct backend_run session_run(struct session *session, uint32_t start, uint32_t count, float *logits, uint32_t rows);
void forward_batch(struct session *session, const struct backend_run *runs, uint32_t count);
void forward(struct session *session, uint32_t start, uint32_t count, float *logits, uint32_t rows);
/* Logits of all rows of [start, end), in chunks. */
void forward_all(struct session *session, uint32_t start, uint32_t end, uint32_t chunk, float *logits);

float *logits_new(const struct model *model, uint32_t rows);
/* sqrt(sum (a - b)^2 / sum b^2) */
double distance(const float *a, const float *b, size_t count);

#endif
