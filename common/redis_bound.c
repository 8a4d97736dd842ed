/* redis_bound.c - hiredis' own functions, each behind a count. */
#include "common/redis_bound.h"

#if HIREDIS_MAJOR == 0
typedef int array_size; /* of createArray */
#else
typedef size_t array_size;
#endif

/* The first task of a reply has no parent: it begins the count anew. */
static struct redis_bound *bound_of(const redisReadTask *task)
{
    struct redis_bound *bound = task->privdata;
    if (!task->parent)
        bound->elements = bound->bytes = 0;
    return bound;
}

static void *create_array(const redisReadTask *task, array_size elements)
{
    struct redis_bound *bound = bound_of(task);
    if ((size_t)elements > REDIS_REPLY_ELEMENTS_MAX - bound->elements) {
        bound->broken = true;
        return NULL;
    }
    bound->elements += (size_t)elements;
    return bound->unbound->createArray(task, elements);
}

static void *create_string(const redisReadTask *task, char *text, size_t size)
{
    struct redis_bound *bound = bound_of(task);
    if (size > REDIS_REPLY_BYTES_MAX - bound->bytes) {
        bound->broken = true;
        return NULL;
    }
    bound->bytes += size;
    return bound->unbound->createString(task, text, size);
}

void redis_bound_set(struct redis_bound *bound, redisReader *reader)
{
    *bound = (struct redis_bound){.functions = *reader->fn, .unbound = reader->fn};
    bound->functions.createArray = create_array;
    bound->functions.createString = create_string;
    reader->fn = &bound->functions;
    reader->privdata = bound;
}

void redis_bound_remove(struct redis_bound *bound, redisReader *reader)
{
    if (!bound->unbound)
        return;
    reader->fn = bound->unbound;
    reader->privdata = NULL;
    bound->unbound = NULL;
}
