/* fake_backend.h - a backend without arithmetic, for tests. The KV of a position is a hash of all tokens up to it, read
 * from and written to the pages like real KV; logits are hashes of that. So a page that is shared, copied, lost or
 * overwritten wrongly changes every later logit. */
#ifndef ROOST_TESTS_FAKE_BACKEND_H
#define ROOST_TESTS_FAKE_BACKEND_H
#include <stdint.h>
#include "worker/engine/backend.h"

struct fake_backend_state {             /* one for the process; set between runs */
    uint64_t forwards, tokens_computed; /* counted */
    enum status fail;                   /* not STATUS_OK: forward fails so ... */
    uint64_t fail_in;                   /* ... after this many more calls */
    float eos_bonus;                    /* added to the logit of eos */
    uint32_t byte_ids_only; /* not 0: ids below this get a bonus of 20 (byte pieces of the folio tokenizer) */
};
extern struct fake_backend_state fake_backend;
extern const struct backend_ops fake_backend_ops;

#endif
