/* redis_script.h - a Lua script over a link to Redis: loaded by the link, sent by digest (EVALSHA), and whole (EVAL)
 * where Redis does not know it: after SCRIPT FLUSH, or where it does not let us load it. Borrows link and text; the text
 * outlives the link. Loop thread only. */
#ifndef ROOST_COMMON_REDIS_SCRIPT_H
#define ROOST_COMMON_REDIS_SCRIPT_H
#include <stdint.h>
#include "common/redis_link.h"
#include "common/status.h"

struct redis_script;

#define REDIS_SCRIPT_WORDS_MAX 12 /* keys and arguments */

enum status redis_script_create(struct redis_link *link, const char *text, struct redis_script **out);
void redis_script_destroy(struct redis_script **script); /* accepts NULL; after the link, which answers what is open */

/* As redis_link_command: words are key_count keys, then the arguments, all texts, copied. A second attempt, of the
 * whole script, is made within what is left of the deadline. */
enum status redis_script_call(struct redis_script *script, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                              unsigned key_count, unsigned word_count, const char *const *words);

#endif
