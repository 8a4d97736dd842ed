/* corpus.h - a text as windows of ids: what an evaluation predicts. Each window stands alone and begins with <bos>; every other
 * token of it is predicted from those before it. Owns its ids. Immutable after loading. */
#ifndef ROOST_WORKER_EVAL_CORPUS_H
#define ROOST_WORKER_EVAL_CORPUS_H
#include <stdint.h>
#include "common/status.h"

#define CORPUS_FILE_BYTES_MAX (64u << 20)

struct model_config;
struct tokenizer;

struct corpus_window {
    const uint32_t *ids;       /* (count), ids[0] is <bos> */
    uint32_t count;            /* 2 .. window */
};

struct corpus {                /* corpus_free */
    struct corpus_window *windows;
    uint32_t window_count;
    uint64_t tokens;           /* predicted ones: the counts without the <bos> */
    uint32_t *ids;             /* behind the windows */
};

struct corpus_limits {
    uint32_t window;           /* ids, <bos> included; at least 2 */
    uint64_t tokens_max;       /* predicted ones; 0: the whole file */
};

/* A plain text, cut every window - 1 tokens. STATUS_INVALID: not UTF-8, or empty. */
enum status corpus_load_text(const char *path, const struct tokenizer *tokenizer, const struct model_config *config,
                             const struct corpus_limits *limits, struct corpus *out);

/* JSON lines, one conversation each, encoded by the model's template: {"messages": [{"role": "user", "name": "...", "text": "..."}]}; the
 * role is user, assistant or system, the name may be absent. What exceeds a window goes on in the next one, behind a <bos>.
 * STATUS_INVALID names the line. */
enum status corpus_load_conversations(const char *path, const struct tokenizer *tokenizer, const struct model_config *config,
                                      const struct corpus_limits *limits, struct corpus *out);

void corpus_free(struct corpus *corpus);    /* accepts a zeroed one */

#endif
