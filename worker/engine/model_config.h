/* model_config.h - the shape of a model, read from config.json (Hugging Face keys where they exist).
 * Plain data, immutable after loading, shared by every thread. Every size is bounded here, so later products cannot overflow. */
#ifndef ROOST_WORKER_ENGINE_MODEL_CONFIG_H
#define ROOST_WORKER_ENGINE_MODEL_CONFIG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define MODEL_LAYERS_MAX 256
#define MODEL_WIDTH_MAX 65536u          /* hidden, intermediate: int32 sums are exact up to K = 133,144 */
#define MODEL_HEAD_DIM_MAX 512u
#define MODEL_HEADS_MAX 256u
#define MODEL_VOCAB_MAX 1048576u
#define MODEL_CONTEXT_MAX 1048576u
#define MODEL_CONFIG_BYTES_MAX (1u << 20)   /* of config.json; a list entry a layer is some 30 bytes */

enum model_layer_type { MODEL_LAYER_GLOBAL, MODEL_LAYER_LOCAL };   /* full_attention, sliding_attention */
enum model_activation { MODEL_ACTIVATION_SILU, MODEL_ACTIVATION_GELU_TANH };   /* silu, gelu_pytorch_tanh */

struct model_config {
    char name[65];                      /* "name", else the folder's name */
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t layer_count;               /* num_hidden_layers */
    uint32_t head_count;                /* num_attention_heads */
    uint32_t kv_head_count;             /* num_key_value_heads: 1 is MQA; divides head_count */
    uint32_t head_dim;                  /* even */
    uint32_t context_tokens_max;        /* max_position_embeddings */
    uint32_t window;                    /* sliding_window W: query i sees keys j with i - W < j <= i on local layers */
    float norm_epsilon;                 /* rms_norm_eps */
    double rope_base_global;            /* rope_theta */
    double rope_base_local;             /* rope_local_base_freq */
    float attention_scale;              /* "attention_scale", default 1/sqrt(head_dim) */
    bool qk_norm;                       /* "qk_norm", default true for RoostForCausalLM */
    enum model_activation activation;   /* hidden_activation */
    enum model_layer_type layer_types[MODEL_LAYERS_MAX];
    uint16_t kv_producer[MODEL_LAYERS_MAX];   /* layer whose K and V layer i reads; i itself for a producer; never later than i;
                                                 the same layer type */
    uint16_t producer_count;
    uint16_t producer_slot[MODEL_LAYERS_MAX]; /* producer layer -> its place in a page (0 .. producer_count-1) */
    uint32_t bos_id, eos_id, turn_id, text_id;   /* control tokens of the "speaker" template */
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
