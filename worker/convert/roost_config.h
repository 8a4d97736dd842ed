/* roost_config.h - writes config.json of a roost directory from a configuration: the inverse of model_config_parse. */
#ifndef ROOST_WORKER_CONVERT_ROOST_CONFIG_H
#define ROOST_WORKER_CONVERT_ROOST_CONFIG_H
#include <stddef.h>
#include "common/status.h"
#include "worker/engine/model/model_config.h"

/* The text, the same for the same configuration: keys in a fixed order, numbers with the digits that give them back. The caller frees
 * it. */
enum status roost_config_write(const struct model_config *config, char **text, size_t *size);

/* Works out producer_count, producer_slot and last_producer from layer_types and kv_producer. */
void roost_config_set_slots(struct model_config *config);

/* STATUS_UNSUPPORTED or STATUS_INVALID if a size is over the engine's limits, with the key. */
enum status roost_config_check(const struct model_config *config);

#endif
