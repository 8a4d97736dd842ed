/* A plugin of another build. */
#include "worker/engine/backend/backend_plugin.h"

const struct backend_plugin roost_backend_plugin = {.abi = BACKEND_PLUGIN_ABI + 1};
