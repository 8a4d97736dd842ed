/* admin_internal.h - what the files of the operator port share; nobody else includes it.
 *
 *   admin.c               the port, health, workers, draining
 *   admin_conversation.c  where a conversation is
 *   admin_metrics.c       the metrics */
#ifndef ROOST_ROUTER_ADMIN_INTERNAL_H
#define ROOST_ROUTER_ADMIN_INTERNAL_H
#include <jansson.h>
#include "common/metrics.h"
#include "common/operator_port.h"
#include "router/admin.h"
#include "router/router_internal.h"

struct redis_script;

struct admin {
    struct router *router;                  /* ref */
    const struct router_settings *settings; /* ref */
    struct operator_port *port;
    struct redis_script *look; /* reads a record; NULL: no Redis */
};

/* "ready", "suspect", "safe to delete", "down", ...: one word for a state that has many sides. Static. */
const char *admin_worker_state(const struct worker_info *info);
/* Takes json; NULL (no memory for it): 503. */
void admin_answer_json(struct operator_request *request, int code, json_t *json);
/* The same for a deferred answer. */
void admin_answer_json_later(struct operator_later **later, json_t *json);

void admin_on_conversation(void *user, struct operator_request *request);
void admin_write_metrics(const struct admin *admin, struct metrics *metrics);

#endif
