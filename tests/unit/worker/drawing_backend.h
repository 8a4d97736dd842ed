/* drawing_backend.h - another backend that also draws tokens (backend_run.sample), for tests: by the sampler that the engine has, so what
 * is shown is that the engine asks for the right draws and takes what comes. */
#ifndef ROOST_TESTS_DRAWING_BACKEND_H
#define ROOST_TESTS_DRAWING_BACKEND_H
#include <stdint.h>
#include "worker/engine/backend/backend.h"

struct drawing_backend_state {          /* one for the process; set between runs */
    const struct backend_ops *base;     /* of backends that are made from now on */
    uint64_t drawn, shown;              /* counted: tokens drawn here, rows of logits given */
    uint64_t spoil_in;                  /* not 0: of so many draws the last finds a NaN */
};
extern struct drawing_backend_state drawing_backend;
extern const struct backend_ops drawing_backend_ops;

#endif
