/* A plugin whose backend refuses every model, with words. */
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_plugin.h"

static enum status refuse(const struct model *model, const struct backend_config *config, struct backend **out)
{
    (void)model;
    (void)out;
    return STATUS_FAIL(STATUS_UNSUPPORTED, "the plugin's words, of %u threads", config->threads);
}

static const struct backend_ops ops = {.name = "good", .bits = "none", .create = refuse};

const struct backend_plugin roost_backend_plugin = {.abi = BACKEND_PLUGIN_ABI, .ops = &ops};
