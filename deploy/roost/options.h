/* options.h - numbers of the command line, with clear words when they are none. */
#ifndef ROOST_DEPLOY_ROOST_OPTIONS_H
#define ROOST_DEPLOY_ROOST_OPTIONS_H
#include <stdint.h>
#include "common/status.h"

/* STATUS_INVALID with a detail that names the option. *out is untouched then. */
enum status options_uint(const char *option, const char *text, uint64_t max, uint64_t *out);
enum status options_float(const char *option, const char *text, double min, double max, float *out);

#endif
