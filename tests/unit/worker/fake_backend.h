/* fake_backend.h - a backend without arithmetic, for tests. The KV of a position is a running hash of all tokens up to it, one value
 * a group, read from and written to pages of two sizes like real KV; logits are hashes of exactly the values that attention would
 * read (group 0: all before; group 1: the window and the sinks). So a page that is shared, copied, moved, lost or overwritten
 * wrongly, or a window that reaches too far or not far enough, changes every later logit. A value that was never written, or that
 * lies under a copy that has not landed, aborts.
 *
 * Copies land late: when copy_done has been asked a drawn number of times, or at copy_wait. Until then the destination is poison;
 * at landing the source must be as it was at the start, and the destination still poison. */
#ifndef ROOST_TESTS_FAKE_BACKEND_H
#define ROOST_TESTS_FAKE_BACKEND_H
#include <stdint.h>
#include "worker/engine/backend/backend.h"

#define FAKE_BACKEND_PAGE_GLOBAL 512u   /* bytes */
#define FAKE_BACKEND_PAGE_LOCAL 768u

struct fake_backend_shape {             /* of a backend made without a model */
    bool global, local;                 /* groups that are there */
    uint32_t window, sinks;             /* of group 1 */
};

struct fake_backend_state {             /* one for the process; set between runs */
    struct fake_backend_shape shape;
    uint64_t forwards, tokens_computed, runs;   /* counted */
    uint64_t copies, prefix_copies, loads, followed;    /* followed: runs that began before their copies had landed */
    enum status fail;                   /* not STATUS_OK: forward fails so, writing nothing, ... */
    uint64_t fail_in;                   /* ... after this many more calls; */
    uint32_t fail_run;                  /* ... naming this run of the batch (the last if there are fewer) */
    float eos_bonus;                    /* added to the logit of each end id */
    uint32_t byte_ids_only;             /* not 0: ids below this get a bonus of 20 (byte pieces of the folio tokenizer) */
    uint32_t late_polls_max;            /* copies take up to this many questions; 0: they land at the first */
    uint64_t late_seed;
};
extern struct fake_backend_state fake_backend;
extern const struct backend_ops fake_backend_ops, fake_backend_loading_ops;     /* the second has load_start */

/* What forward stores, for tests that check pages themselves: the running hash behind token, 1 before the first. */
uint64_t fake_backend_hash(uint64_t previous, uint32_t token);
/* The running hash that a page of the group holds in a row; aborts if there is none. */
uint64_t fake_backend_row(uint32_t group, const void *page, uint32_t row);

#endif
