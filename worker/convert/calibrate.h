/* calibrate.h - the largest absolute value that each matrix sees in each input channel while the float backend reads a sample. */
#ifndef ROOST_WORKER_CONVERT_CALIBRATE_H
#define ROOST_WORKER_CONVERT_CALIBRATE_H
#include <stdint.h>
#include "common/status.h"
#include "worker/convert/tensor_list.h"

#define CALIBRATE_WINDOW 512u             /* tokens that are read at a time, or the context; each window starts at position 0 */
#define CALIBRATE_TOKENS_MAX 16384u       /* of the sample; what follows is not read */
#define CALIBRATE_BYTES_MAX (1u << 20)

struct calibration {
    float **ranges;                       /* (count of the list): (columns) of a matrix, owned; NULL for others */
    uint32_t count;
};

/* dir: a roost directory in float. path: token ids separated by white space, or UTF-8 text (which needs the directory's tokenizer; each window
 * then begins with bos). STATUS_INVALID: an empty sample, an id outside of the vocabulary. */
enum status calibrate(const char *dir, const char *path, uint32_t threads, const struct tensor_list *list, struct calibration *out);
void calibration_free(struct calibration *calibration);   /* accepts a zeroed one */

#endif
