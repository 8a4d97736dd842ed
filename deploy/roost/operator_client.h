/* operator_client.h - asks a router's operator port (router/admin.h) over HTTP. */
#ifndef ROOST_DEPLOY_ROOST_OPERATOR_CLIENT_H
#define ROOST_DEPLOY_ROOST_OPERATOR_CLIENT_H
#include <jansson.h>
#include "common/status.h"

#define OPERATOR_ROUTER_DEFAULT "http://127.0.0.1:7490"

struct operator_parameter {
    const char *name, *value;   /* value is escaped on the way; NULL: this one is left out */
};

/* One request and its answer, which the caller owns. STATUS_NOT_FOUND: the router does not know what was asked for. STATUS_IO: nobody answers, it
 * is no router, or it refused; the detail is for people. */
enum status operator_call(const char *router, const char *method, const char *path, const struct operator_parameter *parameters,
                          unsigned count, json_t **out);

#endif
