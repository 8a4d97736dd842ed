/* A plugin that calls a function nobody has, or lies in a library that is not there. */
#include "worker/engine/backend/backend_plugin.h"

int plugin_stranger(void);
int plugin_lacking(void);

int plugin_lacking(void)
{
    return plugin_stranger();
}

const struct backend_plugin roost_backend_plugin = {.abi = BACKEND_PLUGIN_ABI};
