/* bench_report.c - results as tables (Markdown) and as JSON, with the checks that ran before. A number that is not there is null, or a dash. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench.h"

#define CHECKS_MAX 128u

struct check {                     /* a line of the checks' file: STATUS, seconds, name, words, separated by tabs */
    char status[16], seconds[16], name[96], words[512];
};

struct checks {
    struct check lines[CHECKS_MAX];
    uint32_t count, failed;
};

struct bench_result *bench_add(struct bench *bench, const char *group, double bytes, double ops, double expected, const char *format, ...)
{
    if (bench->result_count == bench->result_capacity) {
        bench->result_capacity = 2 * bench->result_capacity + 64;
        bench->results = realloc(bench->results, bench->result_capacity * sizeof *bench->results);
        if (!bench->results)
            abort();
    }
    struct bench_result *result = &bench->results[bench->result_count++];
    *result = (struct bench_result){.group = group, .microseconds = NAN, .bytes = bytes, .ops = ops, .expected = expected, .peer_microseconds = NAN};
    va_list list;
    va_start(list, format);
    vsnprintf(result->name, sizeof result->name, format, list);
    va_end(list);
    if (!bench->dry)
        fprintf(stderr, "bench: %s: %s\n", group, result->name);
    return result;
}

void bench_fail(struct bench *bench, const char *format, ...)
{
    char words[160];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    bench->failures++;
    fprintf(stderr, "bench: %s\n", words);
    if (bench->result_count > 0) {
        char *note = bench->results[bench->result_count - 1].note;
        if (*note == '\0')
            memcpy(note, words, sizeof words);
    }
}

void bench_name(const struct bench *bench, char *name, size_t size)
{
    size_t at = 0;
    for (const char *from = bench->device; *from && at + 1 < size; from++) {
        if (isalnum((unsigned char)*from))
            name[at++] = (char)tolower((unsigned char)*from);
        else if (at > 0 && name[at - 1] != '-')
            name[at++] = '-';
    }
    while (at > 0 && name[at - 1] == '-')
        at--;
    name[at] = '\0';
}

static void read_checks(const char *path, struct checks *checks)
{
    char line[1024];
    FILE *file = path ? fopen(path, "r") : NULL;
    checks->count = checks->failed = 0;
    while (file && checks->count < CHECKS_MAX && fgets(line, sizeof line, file)) {
        struct check *check = &checks->lines[checks->count];
        char *fields[4] = {line, NULL, NULL, NULL};
        line[strcspn(line, "\n")] = '\0';
        for (unsigned i = 1; i < 4; i++) {
            char *tab = strchr(fields[i - 1], '\t');
            if (tab)
                *tab = '\0';
            fields[i] = tab ? tab + 1 : fields[i - 1] + strlen(fields[i - 1]);
        }
        snprintf(check->status, sizeof check->status, "%.15s", fields[0]);
        snprintf(check->seconds, sizeof check->seconds, "%.15s", fields[1]);
        snprintf(check->name, sizeof check->name, "%.95s", fields[2]);
        snprintf(check->words, sizeof check->words, "%.511s", fields[3]);
        checks->failed += strcmp(check->status, "failed") == 0;
        checks->count += *check->name != '\0';
    }
    if (file)
        fclose(file);
}

static bool in_mma(const struct bench_result *result)        /* int8 products are most of the work */
{
    return strcmp(result->group, "matrices") == 0 || strcmp(result->group, "attention") == 0 || strcmp(result->group, "steps") == 0;
}

static double gigabytes(const struct bench_result *r) { return r->bytes > 0 ? r->bytes / r->microseconds * 1e-3 : NAN; }
static double tops(const struct bench_result *r) { return r->ops > 0 ? r->ops / r->microseconds * 1e-6 : NAN; }

/* Of the ceiling that is nearer. */
static double share(const struct bench *bench, const struct bench_result *result, const char **of)
{
    const double read = gigabytes(result) / bench->read_gbs, multiply = in_mma(result) ? tops(result) / bench->mma_tops : NAN;
    const bool products = isfinite(multiply) && (!isfinite(read) || multiply > read);
    *of = products ? "multiply" : "read";
    return products ? multiply : read;
}

/* ---- Markdown ---- */

static void cell(FILE *file, double value)
{
    if (!isfinite(value))
        fprintf(file, " – |");
    else
        fprintf(file, " %.*f |", value < 10 ? 2 : value < 1000 ? 1 : 0, value);
}

static void table_row(FILE *file, const struct bench *bench, const struct bench_result *r)
{
    const char *of;
    const double part = share(bench, r, &of);
    fprintf(file, "| %s |", r->name);
    if (!bench->dry)
        cell(file, r->microseconds);
    cell(file, r->expected);
    if (!bench->dry) {
        cell(file, gigabytes(r));
        cell(file, tops(r));
        if (isfinite(part))
            fprintf(file, " %.2f %s |", part, of);
        else
            fprintf(file, " – |");
        if (!r->peer)
            fprintf(file, " |");
        else if (isfinite(r->peer_microseconds))
            fprintf(file, " %.1f (%.2fx) |", r->peer_microseconds, r->peer_microseconds / r->microseconds);
        else
            fprintf(file, " not there |");
        fprintf(file, " %s |", r->note);
    } else {
        cell(file, r->bytes > 0 ? r->bytes / r->expected * 1e-3 : NAN);
        cell(file, r->ops > 0 ? r->ops / r->expected * 1e-6 : NAN);
    }
    fputc('\n', file);
}

void bench_print_tables(const struct bench *bench, void *out)
{
    FILE *file = out;
    const char *group = "";
    for (uint32_t i = 0; i < bench->result_count; i++) {
        const struct bench_result *r = &bench->results[i];
        if (strcmp(group, r->group) != 0) {
            group = r->group;
            if (bench->dry)
                fprintf(file, "\n#### %c%s\n\n| case | expected, us | GB/s | TOPS |\n| --- | --- | --- | --- |\n", toupper((unsigned char)*group), group + 1);
            else
                fprintf(file, "\n## %c%s\n\n| case | us | expected | GB/s | TOPS | share of | peer%s%s, us | |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
                        toupper((unsigned char)*group), group + 1, r->peer ? ": " : "", r->peer ? r->peer : "");
        }
        table_row(file, bench, r);
    }
}

static void print_device(FILE *file, const struct bench *bench)
{
    fprintf(file, "%s, %u multiprocessors, %zu MiB, L2 %zu MiB, driver for CUDA %d.%d, runtime %d.%d", bench->device, bench->multiprocessors,
            bench->memory_bytes >> 20, bench->l2_bytes >> 20, bench->driver / 1000, bench->driver % 1000 / 10, bench->runtime / 1000,
            bench->runtime % 1000 / 10);
}

static bool write_markdown(const struct bench *bench, const struct checks *checks, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    fprintf(file, "# %s\n\nWritten by `tests/gpu/run` on this GPU: ", bench->device);
    print_device(file, bench);
    fprintf(file, ".\nTimes are medians; `share of` is of the ceiling of this run that is nearer; `expected` is docs/performance/gpu.md's arithmetic.\n");
    fprintf(file, "\n## Checks\n\n");
    if (checks->count == 0)
        fprintf(file, "Not run.\n");
    else
        fprintf(file, "%s%u of %u failed.%s\n\n| | s | |\n| --- | --- | --- |\n", checks->failed ? "**" : "", checks->failed, checks->count,
                checks->failed ? "**" : "");
    for (uint32_t i = 0; i < checks->count; i++) {
        const struct check *c = &checks->lines[i];
        const bool failed = strcmp(c->status, "failed") == 0;
        fprintf(file, "| %s | %s | %s%s%s %s |\n", c->name, c->seconds, failed ? "**" : "", c->status, failed ? "**" : "", c->words);
    }
    if (bench->result_count == 0)
        fprintf(file, "\n## Benchmarks\n\nNot run.\n");
    bench_print_tables(bench, file);
    return fclose(file) == 0;
}

/* ---- JSON ---- */

static void text(FILE *file, const char *value)
{
    fputc('"', file);
    for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(file, "\\%c", *c);
        else if (*c < 0x20 || *c > 0x7e)
            fprintf(file, "\\u%04x", *c);
        else
            fputc(*c, file);
    }
    fputc('"', file);
}

static void number(FILE *file, const char *key, double value)
{
    fprintf(file, ", \"%s\": ", key);
    if (isfinite(value))
        fprintf(file, "%.6g", value);
    else
        fprintf(file, "null");
}

static void word(FILE *file, const char *key, const char *value)
{
    fprintf(file, ", \"%s\": ", key);
    text(file, value);
}

static void write_result(FILE *file, const struct bench *bench, const struct bench_result *r)
{
    const char *of;
    const double part = share(bench, r, &of);
    fprintf(file, "  {\"group\": ");
    text(file, r->group);
    word(file, "name", r->name);
    number(file, "microseconds", r->microseconds);
    number(file, "expected_microseconds", r->expected);
    number(file, "bytes", r->bytes);
    number(file, "ops", r->ops);
    number(file, "gigabytes_per_second", gigabytes(r));
    number(file, "tops", tops(r));
    number(file, "share", part);
    word(file, "share_of", of);
    if (r->peer) {
        word(file, "peer", r->peer);
        number(file, "peer_microseconds", r->peer_microseconds);
    }
    if (*r->note)
        word(file, "note", r->note);
    fputc('}', file);
}

static bool write_json(const struct bench *bench, const struct checks *checks, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    fprintf(file, "{\"device\": ");
    text(file, bench->device);
    fprintf(file, ", \"multiprocessors\": %u, \"memory_bytes\": %zu, \"l2_bytes\": %zu, \"driver\": %d, \"runtime\": %d", bench->multiprocessors,
            bench->memory_bytes, bench->l2_bytes, bench->driver, bench->runtime);
    number(file, "read_gigabytes_per_second", bench->read_gbs);
    number(file, "multiply_tops", bench->mma_tops);
    fprintf(file, ", \"checks_failed\": %u, \"benchmarks_failed\": %u,\n \"checks\": [\n", checks->failed, bench->failures);
    for (uint32_t i = 0; i < checks->count; i++) {
        const struct check *c = &checks->lines[i];
        fprintf(file, "  {\"name\": ");
        text(file, c->name);
        word(file, "status", c->status);
        number(file, "seconds", strtod(c->seconds, NULL));
        word(file, "words", c->words);
        fprintf(file, "}%s\n", i + 1 < checks->count ? "," : "");
    }
    fprintf(file, " ],\n \"results\": [\n");
    for (uint32_t i = 0; i < bench->result_count; i++) {
        write_result(file, bench, &bench->results[i]);
        fprintf(file, "%s\n", i + 1 < bench->result_count ? "," : "");
    }
    fprintf(file, " ]}\n");
    return fclose(file) == 0;
}

bool bench_write(const struct bench *bench, const char *checks_file, const char *dir)
{
    static struct checks checks;
    char name[200], path[2][1024];
    bench_name(bench, name, sizeof name);
    snprintf(path[0], sizeof path[0], "%s/gpu-%s.json", dir, name);
    snprintf(path[1], sizeof path[1], "%s/gpu-%s.md", dir, name);
    read_checks(checks_file, &checks);
    if (!write_json(bench, &checks, path[0]) || !write_markdown(bench, &checks, path[1])) {
        perror(dir);
        return false;
    }
    printf("%s\n%s\n", path[0], path[1]);
    return true;
}
