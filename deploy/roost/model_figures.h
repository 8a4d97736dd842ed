/* model_figures.h - what a configuration costs, in numbers: parameters and bytes by part, KV by conversation length, and how that compares with
 * a plain model of the same depth. Pure functions of the configuration; `roost model describe` prints them.
 *
 * KV elements of a conversation of S tokens: the sum over producing layers of 2 * kv_heads * head_dim * min(S, window), the window on local
 * layers only. The yardstick is GQA with 8 KV heads in bfloat16 on every layer, same head sizes, no windows, no sharing. */
#ifndef ROOST_DEPLOY_ROOST_MODEL_FIGURES_H
#define ROOST_DEPLOY_ROOST_MODEL_FIGURES_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model_config.h"

enum model_part { MODEL_PART_EMBEDDING, MODEL_PART_PER_LAYER, MODEL_PART_ATTENTION, MODEL_PART_MLP, MODEL_PART_NORMS };
#define MODEL_PARTS 5u

const char *model_part_name(enum model_part part);
/* By a tensor's name: model.layers.3.mlp.up_proj.weight. */
enum model_part model_part_of(const char *tensor_name);

struct kv_figures {                       /* of one conversation of `tokens` tokens */
    uint32_t tokens;
    uint64_t plain_elements;              /* of the yardstick; 2 bytes each */
    uint64_t elements;                    /* of the model */
    uint64_t bytes;                       /* int8 elements and their float32 scales, no pages */
    double heads, horizon, sharing;       /* factors whose product is plain_elements / elements */
    double int8;                          /* 2 bytes an element over what an element costs with its scale */
};

void kv_figures(const struct model_config *config, uint32_t tokens, struct kv_figures *out);

/* Bytes that one more token costs: in every producing layer, and beyond the windows (global layers alone). */
uint64_t kv_token_bytes(const struct model_config *config, int beyond_windows);

/* Bytes of a page of each group as the CPU backend lays it out (backend.h): 0 for a group that is absent. */
void kv_page_bytes(const struct model_config *config, size_t out[BACKEND_GROUPS_MAX]);

#endif
