/* gpu-bench: benchmarks of kernels and of whole steps on the first GPU, written beside what is expected (tests/gpu/README.md). Ends with 77 where
 * there is no GPU, with 1 where a case could not be timed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench.h"

static const char usage_[] =
    "gpu-bench [--out DIR] [--checks FILE] [--torch FILE] [--repeats N] [--no-bench] [--tiny]\n"
    "gpu-bench --device            its name, and as a file's name\n"
    "gpu-bench --expected NAME     without a GPU: what is expected on an H200, \"H100 80GB HBM3\" or A100-SXM4-80GB\n";

static void run_cases(struct bench *bench)
{
    bench_ceilings(bench);
    bench_matrices(bench);
    bench_attention(bench);
    bench_rows(bench);
    bench_steps(bench);
}

static int print_expected(const char *device)
{
    struct bench bench = {.dry = true, .read_gbs = NAN, .mma_tops = NAN};
    if (!bench_rates_of(device, &bench.rates)) {
        fprintf(stderr, "gpu-bench: nothing is known of %s\n", device);
        return 2;
    }
    run_cases(&bench);
    bench_print_tables(&bench, stdout);
    bench_close(&bench);
    return 0;
}

int main(int argc, char **argv)
{
    const char *out = NULL, *checks = NULL;
    struct bench bench = {.repeats = 7};
    bool cases = true, device = false;
    for (int i = 1; i < argc; i++) {
        const bool more = i + 1 < argc;
        if (strcmp(argv[i], "--tiny") == 0)
            bench.tiny = true, bench.repeats = 1;
        else if (strcmp(argv[i], "--no-bench") == 0)
            cases = false;
        else if (strcmp(argv[i], "--device") == 0)
            device = true;
        else if (strcmp(argv[i], "--out") == 0 && more)
            out = argv[++i];
        else if (strcmp(argv[i], "--checks") == 0 && more)
            checks = argv[++i];
        else if (strcmp(argv[i], "--torch") == 0 && more)
            bench.torch_file = argv[++i];
        else if (strcmp(argv[i], "--repeats") == 0 && more)
            bench.repeats = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--expected") == 0 && more)
            return print_expected(argv[++i]);
        else
            return fputs(usage_, stderr), 2;
    }
    if (bench.repeats < 1 || bench.repeats > 64)
        return fputs("gpu-bench: want 1 to 64 repeats\n", stderr), 2;
    if (!bench_open(&bench)) {
        printf("skipped: no GPU\n");
        return 77;
    }
    char name[200];
    bench_name(&bench, name, sizeof name);
    bool written = true;
    if (device) {
        printf("%s\n%s\n", bench.device, name);
    } else {
        if (cases)
            run_cases(&bench);
        bench_print_tables(&bench, stdout);
        written = out == NULL || bench_write(&bench, checks, out);
    }
    const int status = !written ? 2 : bench.failures > 0;
    bench_close(&bench);
    return status;
}
