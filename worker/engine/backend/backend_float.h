/* backend_float.h - what backend_float_ops cannot say; for evaluation (`roost model eval`) and tests.
 *
 * The float backend computes a model in float32 with sums in double and K and V kept as float32. It runs roost-float models, and
 * roost-int8 ones with their weights read as float(weight) * scale and activations left as they are. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_FLOAT_H
#define ROOST_WORKER_ENGINE_BACKEND_FLOAT_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct backend;
struct model;
struct model_matrix;

/* From now on the named matrix ("model.layers.3.mlp.down_proj.weight"; NULL: every matrix) computes as it does in int8_model:
 * input rows quantised by its scheme, integer products, scales. An embedding's rows are then looked up in int8 as well. kv: also
 * Q, K and V go through int8, one scale a head. Each call replaces what the one before it asked for; int8_model NULL and kv false:
 * nothing is emulated. int8_model is borrowed until then, has the same shape as the backend's own model, and may be that model.
 * Not between chunks of one sequence. STATUS_NOT_FOUND: no such matrix. STATUS_INVALID: another shape, or not int8. */
enum status backend_float_emulate(struct backend *backend, const struct model *int8_model, const char *matrix_name, bool kv);

/* From now on fn sees the input rows (count, matrix columns) of every linear layer, on the calling thread, before they are used (calibration).
 * NULL: nobody. */
typedef void backend_float_observer(void *user, const struct model_matrix *matrix, const float *rows, uint32_t count);
void backend_float_observe(struct backend *backend, backend_float_observer *fn, void *user);

#endif
