/* metrics.h - writes metrics in Prometheus' text format (exposition format 0.0.4). Names are roost_<program>_<what>_<unit>[_total]. A writer is
 * used for one answer; values are read when they are asked for, so nothing is kept here. Labels take few values: states, codes, reasons, workers;
 * never conversations, tenants or clients. */
#ifndef ROOST_COMMON_METRICS_H
#define ROOST_COMMON_METRICS_H
#include <stdint.h>
#include "common/status.h"

struct metrics;

enum metrics_type { METRICS_COUNTER, METRICS_GAUGE, METRICS_HISTOGRAM };

enum status metrics_create(struct metrics **out);
void metrics_destroy(struct metrics **metrics);       /* accepts NULL */

/* Starts a family: # HELP and # TYPE once. */
void metrics_family(struct metrics *metrics, const char *name, enum metrics_type type, const char *help);
/* A sample of the family begun last. label NULL: none; value_of_label is escaped. */
void metrics_value(struct metrics *metrics, const char *label, const char *value_of_label, double value);
/* Family and one sample without labels. */
void metrics_counter(struct metrics *metrics, const char *name, const char *help, uint64_t value);
void metrics_gauge(struct metrics *metrics, const char *name, const char *help, double value);
/* A histogram of fixed buckets, cumulative by le: (count) upper bounds in seconds, (count + 1) counts, the last one above all bounds. */
void metrics_histogram(struct metrics *metrics, const char *name, const char *help, const double *bounds, const uint64_t *counts,
                       unsigned count, double sum);
/* This process, under the names that Prometheus' own libraries use: memory, descriptors and their limit, processor time, start. */
void metrics_process(struct metrics *metrics);
/* The text; borrowed until the next call. NULL: no memory was left somewhere. */
const char *metrics_text(struct metrics *metrics);

#endif
