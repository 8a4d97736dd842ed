/* convert.h - a checkpoint to a roost directory (worker/engine/model/model.h).
 *
 * Tensors are streamed: a block of rows at a time goes from the mapped checkpoint through float32 into the output. Memory that is
 * held, with T threads, C the widest row, H the hidden size and N the layers:
 *     T * (CONVERT_BLOCK_BYTES + 4 C)      blocks: below 2 MiB a thread for every size the engine takes
 *     8 N H                                smoothing factors: 2 MB at 48 layers of 5,120
 *     the tokenizer, and both headers      some 20 MB at most
 * whatever the size of the model. Mapped pages of the checkpoint are given back after each tensor. */
#ifndef ROOST_WORKER_CONVERT_CONVERT_H
#define ROOST_WORKER_CONVERT_CONVERT_H
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"
#include "worker/engine/model/model.h"

#define CONVERT_BLOCK_BYTES (1u << 20)
#define CONVERT_THREADS_MAX 64u
#define CONVERT_IGNORED_KEYS_MAX 16u

struct convert_options {
    const char *source, *destination;
    enum model_format format;
    const char *recipe_path;              /* NULL: the family's recipe */
    const char *scheme;                   /* NULL, or one scheme for everything */
    const char *calibrate_path;           /* token ids or text (calibrate.h), for smoothing and static scales; NULL: none. Needs room for the
                                             model in float beside DST while it runs */
    bool no_tokenizer;                    /* tests: the directory cannot be served */
    uint32_t threads;                     /* 1 .. CONVERT_THREADS_MAX */
    const char *ignored_keys[CONVERT_IGNORED_KEYS_MAX];   /* keys of config.json that say nothing */
    unsigned ignored_key_count;
    FILE *progress;                       /* lines for people; NULL: none */
    const volatile sig_atomic_t *stop;    /* set: STATUS_CANCELLED soon, nothing is left behind; NULL */
};

enum status convert(const struct convert_options *options);

/* Prints the recipe that convert would use. */
enum status convert_print_recipe(const struct convert_options *options, FILE *out);

#endif
