/* bench.h - what every benchmark does: arguments, quantiles, the processor's name, the JSON object of the last line. One thread. */
#ifndef ROOST_TESTS_BENCH_BENCH_H
#define ROOST_TESTS_BENCH_BENCH_H
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"

struct bench_options {
    const char *name;      /* "bench-w0" */
    const char *usage;     /* the arguments behind the name; a leading word in capitals is one that must be given */
};

struct bench_flag {        /* "--threads N"; a list ends with name NULL */
    const char *name;
    uint32_t *value;
    uint32_t min, max;
};

/* Reads the flags; returns the one plain argument (NULL where usage names none). Ends the program with 0 after --help and 2 on wrong use. */
const char *bench_arguments(const struct bench_options *options, int argc, char **argv, const struct bench_flag *flags);

/* Both sort the values. */
double bench_median(double *values, uint32_t count);
double bench_quantile(double *values, uint32_t count, double share);      /* share 0 .. 1; nearest rank */

void bench_print_processor(FILE *out);

/* {"bench": name, "command": ..., "processor": ... without the closing brace. */
void bench_json_begin(FILE *out, const struct bench_options *options, int argc, char **argv);

/* One line on stderr, overwritten by the next; nothing where stderr is no terminal. */
void bench_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* vocab_size of a model directory. */
enum status bench_vocabulary(const char *dir, uint32_t *vocab_size);

#endif
