/* metrics.c - owns the text of one answer, in a memory stream. */
#include "common/metrics.h"
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 128 /* ours have 30 to 50 */

struct metrics {
    FILE *stream;
    char *text;
    size_t size;
    char family[NAME_BYTES_MAX];
};

enum status metrics_create(struct metrics **out)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics)
        metrics->stream = open_memstream(&metrics->text, &metrics->size);
    if (!metrics || !metrics->stream) {
        free(metrics);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the metrics");
    }
    *out = metrics;
    return STATUS_OK;
}

void metrics_destroy(struct metrics **metrics)
{
    if (!*metrics)
        return;
    fclose((*metrics)->stream);
    free((*metrics)->text);
    free(*metrics);
    *metrics = NULL;
}

/* `escaped` are the characters that the format wants behind a backslash; a line break is always one. */
static void put_escaped(FILE *stream, const char *text, const char *escaped)
{
    for (; *text; text++) {
        if (*text == '\n') {
            fputs("\\n", stream);
            continue;
        }
        if (strchr(escaped, *text))
            putc('\\', stream);
        putc(*text, stream);
    }
}

static void put_number(FILE *stream, double value)
{
    if (isnan(value))
        fputs("NaN", stream);
    else if (isinf(value))
        fputs(value > 0 ? "+Inf" : "-Inf", stream);
    else if (value == floor(value) && fabs(value) < 9007199254740992.0) /* 2^53: exact as a whole number */
        fprintf(stream, "%.0f", value);
    else
        fprintf(stream, "%.15g", value);
}

void metrics_family(struct metrics *metrics, const char *name, enum metrics_type type, const char *help)
{
    static const char *const words[] = {
        [METRICS_COUNTER] = "counter", [METRICS_GAUGE] = "gauge", [METRICS_HISTOGRAM] = "histogram"};
    snprintf(metrics->family, sizeof metrics->family, "%s", name);
    fprintf(metrics->stream, "# HELP %s ", name);
    put_escaped(metrics->stream, help, "\\");
    fprintf(metrics->stream, "\n# TYPE %s %s\n", name, words[type]);
}

void metrics_value(struct metrics *metrics, const char *label, const char *value_of_label, double value)
{
    fputs(metrics->family, metrics->stream);
    if (label) {
        fprintf(metrics->stream, "{%s=\"", label);
        put_escaped(metrics->stream, value_of_label, "\\\"");
        fputs("\"}", metrics->stream);
    }
    putc(' ', metrics->stream);
    put_number(metrics->stream, value);
    putc('\n', metrics->stream);
}

void metrics_counter(struct metrics *metrics, const char *name, const char *help, uint64_t value)
{
    metrics_family(metrics, name, METRICS_COUNTER, help);
    fprintf(metrics->stream, "%s %" PRIu64 "\n", name, value);
}

void metrics_gauge(struct metrics *metrics, const char *name, const char *help, double value)
{
    metrics_family(metrics, name, METRICS_GAUGE, help);
    metrics_value(metrics, NULL, NULL, value);
}

void metrics_histogram(struct metrics *metrics, const char *name, const char *help, const double *bounds,
                       const uint64_t *counts, unsigned count, double sum)
{
    uint64_t total = 0;
    metrics_family(metrics, name, METRICS_HISTOGRAM, help);
    for (unsigned i = 0; i <= count; i++) {
        total += counts[i];
        fprintf(metrics->stream, "%s_bucket{le=\"", name);
        put_number(metrics->stream, i < count ? bounds[i] : INFINITY);
        fprintf(metrics->stream, "\"} %" PRIu64 "\n", total);
    }
    fprintf(metrics->stream, "%s_sum ", name);
    put_number(metrics->stream, sum);
    fprintf(metrics->stream, "\n%s_count %" PRIu64 "\n", name, total);
}

const char *metrics_text(struct metrics *metrics)
{
    bool good = fflush(metrics->stream) == 0 && !ferror(metrics->stream);
    return good ? metrics->text : NULL;
}
