#include "deploy/roost/options.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

enum status options_uint(const char *option, const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || value > max)
        return STATUS_FAIL(STATUS_INVALID, "%s takes a whole number from 0 to %llu, not '%s'", option,
                           (unsigned long long)max, text);
    *out = value;
    return STATUS_OK;
}

enum status options_float(const char *option, const char *text, double min, double max, float *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value < min || value > max)
        return STATUS_FAIL(STATUS_INVALID, "%s takes a number from %g to %g, not '%s'", option, min, max, text);
    *out = (float)value;
    return STATUS_OK;
}
