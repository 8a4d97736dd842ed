/* backend_plugin.h - what a backend in a shared library exports, under the name roost_backend_plugin. backend_load.h opens one.
 *
 * A plugin takes roost_common, roost_kernels and roost_model from the program that opens it (roost_plugin_host in
 * worker/engine/CMakeLists.txt), so both are of one build: BACKEND_PLUGIN_ABI goes up with every change of a struct or function that a
 * plugin sees (backend.h, rank.h, model.h, what it calls of those libraries). */
#ifndef ROOST_WORKER_ENGINE_BACKEND_PLUGIN_H
#define ROOST_WORKER_ENGINE_BACKEND_PLUGIN_H
#include <stdint.h>

#define BACKEND_PLUGIN_ABI 3u
#define BACKEND_PLUGIN_SYMBOL "roost_backend_plugin"

struct backend_ops;                /* worker/engine/backend/backend.h */
struct rank_ops;                   /* worker/engine/backend/rank.h */

struct backend_plugin {
    uint32_t abi;                  /* BACKEND_PLUGIN_ABI; first for ever */
    const struct backend_ops *ops;
    const struct rank_ops *ranks;  /* NULL: it cannot be one of several ranks */
};

extern const struct backend_plugin roost_backend_plugin;

#endif
