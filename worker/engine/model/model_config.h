/* model_config.h - the shape of a model, read from config.json (Hugging Face keys where they exist).
 * One description covers every family (roost-native, Gemma 3, Gemma 4 text): roost-convert translates a family's configuration into
 * it, and no other part knows families. Plain data, immutable after loading, shared by every thread. Every size is bounded here,
 * so later products cannot overflow. */
#ifndef ROOST_WORKER_ENGINE_MODEL_CONFIG_H
#define ROOST_WORKER_ENGINE_MODEL_CONFIG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define MODEL_LAYERS_MAX 256
#define MODEL_WIDTH_MAX 65536u          /* hidden, intermediate: int32 sums are exact up to K = 131,071 */
#define MODEL_HEAD_DIM_MAX 512u
#define MODEL_HEADS_MAX 256u
#define MODEL_VOCAB_MAX 1048576u
#define MODEL_CONTEXT_MAX 1048576u
#define MODEL_END_IDS_MAX 8u
#define MODEL_CONFIG_BYTES_MAX (1u << 20)   /* of config.json; a list entry a layer is some 30 bytes */

enum model_layer_type { MODEL_LAYER_GLOBAL, MODEL_LAYER_LOCAL };   /* full_attention, sliding_attention; also the KV group's index */
#define MODEL_LAYER_TYPES 2u
enum model_activation { MODEL_ACTIVATION_SILU, MODEL_ACTIVATION_GELU_TANH };   /* silu, gelu_pytorch_tanh */
enum model_template { MODEL_TEMPLATE_SPEAKER, MODEL_TEMPLATE_GEMMA, MODEL_TEMPLATE_GEMMA4 };   /* speaker, gemma, gemma4; prompt.h */

struct model_attention {                /* of the layers of one type */
    uint32_t kv_head_count;             /* num_key_value_heads (local), global_num_key_value_heads (global; default the same) */
    uint32_t head_dim;                  /* head_dim (local), global_head_dim (global; default the same); even */
    double rope_base;                   /* rope_local_base_freq (local), rope_theta (global) */
    double rope_scale;                  /* rope_local_scale, rope_global_scale: positions are divided by it (linear scaling); default 1 */
    uint32_t rope_pairs;                /* the first this many of head_dim/2 pairs turn, the others stay: rope_local_pairs,
                                           rope_global_pairs; default head_dim / 2. Frequencies are base^(-2i/head_dim) all the same */
    uint32_t window;                    /* local: sliding_window, query i sees keys j with i - W < j <= i; global: 0 */
    uint32_t sinks;                     /* attention_sinks: the first s positions stay visible too (local only; default 0) */
};

struct model_config {
    char name[65];                      /* "name", else the folder's name */
    char family[17];                    /* "family": roost, gemma3, gemma4: what it was converted from, for people */
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t layer_count;               /* num_hidden_layers */
    uint32_t head_count;                /* num_attention_heads; a multiple of each kv_head_count */
    struct model_attention attention[MODEL_LAYER_TYPES];
    uint32_t context_tokens_max;        /* max_position_embeddings */
    float norm_epsilon;                 /* rms_norm_eps */
    float attention_scale;              /* "attention_scale", default 1/sqrt(head_dim); one for both types */
    float embedding_scale;              /* "embedding_scale": the looked-up row times this; default 1 */
    float logit_cap;                    /* final_logit_softcapping: cap * tanh(logit / cap); 0: none */
    bool qk_norm;                       /* "qk_norm", default true */
    bool v_norm;                        /* "v_norm": RMSNorm without weight on V; default false */
    bool sandwich_norm;                 /* "norm_placement": "pre" (default) or "sandwich": norms also behind attention and MLP */
    enum model_activation activation;   /* hidden_activation */
    uint32_t per_layer_input;           /* hidden_size_per_layer_input: 0, or the width of Gemma 4's per-layer embeddings */
    enum model_layer_type layer_types[MODEL_LAYERS_MAX];
    uint32_t intermediate_size[MODEL_LAYERS_MAX];   /* intermediate_size: a number, or a list with one a layer */
    uint16_t kv_producer[MODEL_LAYERS_MAX];   /* layer whose K and V layer i reads; i itself for a producer; never later than i;
                                                 the same layer type */
    uint16_t producer_count[MODEL_LAYER_TYPES];
    uint16_t producer_slot[MODEL_LAYERS_MAX]; /* producer layer -> its place in a page of its group */
    uint16_t last_producer;             /* prompt rows whose logits nobody wants stop after its K and V are stored */
    enum model_template chat_template;  /* "chat_template" */
    uint32_t bos_id;                    /* bos_token_id */
    uint32_t end_ids[MODEL_END_IDS_MAX];   /* eos_token_id, a number or a list: each ends a reply */
    uint32_t end_id_count;              /* at least 1; end_ids[0] ends a message in the template "speaker" */
    uint32_t turn_id;                   /* turn_token_id: opens a turn (<turn>, <start_of_turn>, <|turn>) */
    uint32_t text_id;                   /* text_token_id: ends the name ("speaker"), or closes a turn (<end_of_turn>, <turn|>) */
};

/* Reads DIR/config.json: bounded in size and depth, every key typed and ranged; an architecture, template or key
 * value that is not built is refused by name (STATUS_UNSUPPORTED). */
enum status model_config_load(const char *dir, struct model_config *out);

/* The same from the bytes of the file, for callers that digest what they parse. */
enum status model_config_parse(const char *dir, const char *text, size_t size, struct model_config *out);

/* Reads a whole regular file of at most size_max bytes (no links, no pipes) into memory that the caller frees; a NUL byte
 * is put behind the end. */
enum status model_file_read(const char *path, size_t size_max, char **text, size_t *size);

#endif
