#include "tests/bench/bench.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "worker/engine/model/model_config.h"

static void wrong_use(const struct bench_options *options, const char *what, const char *argument)
{
    fprintf(stderr, "%s: %s%s\nusage: %s %s\n", options->name, what, argument, options->name, options->usage);
    exit(2);
}

static const struct bench_flag *find_flag(const struct bench_flag *flags, const char *name)
{
    for (; flags->name; flags++)
        if (strcmp(flags->name, name) == 0)
            return flags;
    return NULL;
}

const char *bench_arguments(const struct bench_options *options, int argc, char **argv, const struct bench_flag *flags)
{
    const char *plain = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            printf("usage: %s %s\n", options->name, options->usage);
            exit(0);
        }
        if (strncmp(argv[i], "--", 2) != 0) {
            if (plain)
                wrong_use(options, "one argument too many: ", argv[i]);
            plain = argv[i];
            continue;
        }
        const struct bench_flag *flag = find_flag(flags, argv[i]);
        if (!flag)
            wrong_use(options, "unknown flag ", argv[i]);
        if (++i == argc)
            wrong_use(options, "no value behind ", argv[i - 1]);
        char *end;
        const unsigned long value = strtoul(argv[i], &end, 10);
        if (*end || end == argv[i] || value < flag->min || value > flag->max)
            wrong_use(options, "out of range: ", argv[i]);
        *flag->value = (uint32_t)value;
    }
    if (!plain && options->usage[0] >= 'A' && options->usage[0] <= 'Z')
        wrong_use(options, "an argument is missing", "");
    return plain;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(double *values, uint32_t count, double share)
{
    if (count == 0)
        return 0;
    qsort(values, count, sizeof *values, compare);
    const uint32_t rank = (uint32_t)(share * count);
    return values[rank < count ? rank : count - 1];
}

double bench_median(double *values, uint32_t count)
{
    return bench_quantile(values, count, 0.5);
}

void bench_print_processor(FILE *out)
{
    char line[256] = "";
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file) && strncmp(line, "model name", 10) != 0)
        line[0] = '\0';
    if (file)
        fclose(file);
    char *name = strchr(line, ':');
    line[strcspn(line, "\n")] = '\0';
    fprintf(out, "%s", name ? name + 2 : "unknown");
}

void bench_json_begin(FILE *out, const struct bench_options *options, int argc, char **argv)
{
    fprintf(out, "{\"bench\":\"%s\",\"command\":\"%s", options->name, options->name);
    for (int i = 1; i < argc; i++) {
        fputc(' ', out);
        for (const char *c = argv[i]; *c; c++)
            if (*c != '"' && *c != '\\' && (unsigned char)*c >= ' ')
                fputc(*c, out);
    }
    fputs("\",\"processor\":\"", out);
    bench_print_processor(out);
    fputc('"', out);
}

void bench_progress(const char *format, ...)
{
    if (!isatty(STDERR_FILENO))
        return;
    va_list args;
    va_start(args, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
}

enum status bench_vocabulary(const char *dir, uint32_t *vocab_size)
{
    struct model_config *config = malloc(sizeof *config);
    if (!config)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a configuration");
    const enum status st = model_config_load(dir, config);
    *vocab_size = config->vocab_size;
    free(config);
    return st;
}
