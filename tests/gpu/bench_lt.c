/* bench_lt.c - cuBLASLt's int8 product with our epilogue behind it, opened at run time where it is there; its header has to be there when this is
 * compiled. It has no scales by row, so its int32 sums go through memory. */
#include <dlfcn.h>
#include "bench.h"

#if !defined(ROOST_CUDA_EMULATION) && __has_include(<cublasLt.h>)
#include <cublasLt.h>

#define WORKSPACE ((size_t)32 << 20)
#define ROWS_WHOLE 16u             /* a number of rows that it has kernels for, where it has none for less */

#define FUNCTIONS(X) X(cublasLtCreate) X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescSetAttribute) X(cublasLtMatmulDescDestroy) \
    X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceSetAttribute) \
    X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmul)

static struct {
    bool tried, there;
    cublasLtHandle_t handle;
#define X(name) __typeof__(&name) name;
    FUNCTIONS(X)
#undef X
} lt_;

static bool open_library(void)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"};
    void *library = NULL;
    lt_.tried = true;
    for (unsigned i = 0; i < sizeof names / sizeof *names && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return false;
#define X(name) \
    *(void **)&lt_.name = dlsym(library, #name); \
    if (!lt_.name) \
        return false;
    FUNCTIONS(X)
#undef X
    return lt_.cublasLtCreate(&lt_.handle) == CUBLAS_STATUS_SUCCESS;
}

struct product {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t weight, a, out;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    const struct bench *bench;
    const struct cuda_gemm *job;
    const void *a_data;
    void *const *weights;
    uint32_t copies;
    void *out_data, *workspace;
};

static bool launch(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct product *p = user;
    const int32_t one = 1, zero = 0;
    return lt_.cublasLtMatmul(lt_.handle, p->operation, &one, p->weights[turn % p->copies], p->weight, p->a_data, p->a, &zero, p->out_data, p->out,
                              p->out_data, p->out, &p->found.algo, p->workspace, WORKSPACE, stream) == CUBLAS_STATUS_SUCCESS &&
           bench_scale(p->bench, p->job, p->out_data, stream);
}

/* Row-major (rows, depth) times (outputs, depth)^T is column-major (outputs, depth)^T^T times (depth, rows): out (rows, outputs) row-major. */
static bool describe(struct product *p, uint32_t rows, uint32_t outputs, uint32_t depth)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const size_t workspace = WORKSPACE;
    int count = 0;
    return lt_.cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32I, CUDA_R_32I) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatrixLayoutCreate(&p->weight, CUDA_R_8I, depth, outputs, depth) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatrixLayoutCreate(&p->a, CUDA_R_8I, depth, rows, depth) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatrixLayoutCreate(&p->out, CUDA_R_32I, outputs, rows, outputs) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatmulPreferenceCreate(&p->preference) == CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace) ==
               CUBLAS_STATUS_SUCCESS &&
           lt_.cublasLtMatmulAlgoGetHeuristic(lt_.handle, p->operation, p->weight, p->a, p->out, p->out, p->preference, 1, &p->found, &count) ==
               CUBLAS_STATUS_SUCCESS && count == 1;
}

static void forget(struct product *p)
{
    if (p->preference)
        (void)lt_.cublasLtMatmulPreferenceDestroy(p->preference);
    if (p->out)
        (void)lt_.cublasLtMatrixLayoutDestroy(p->out);
    if (p->a)
        (void)lt_.cublasLtMatrixLayoutDestroy(p->a);
    if (p->weight)
        (void)lt_.cublasLtMatrixLayoutDestroy(p->weight);
    if (p->operation)
        (void)lt_.cublasLtMatmulDescDestroy(p->operation);
}

/* rows: of the product, at least the job's. */
static double measure(struct bench *bench, const struct cuda_gemm *job, uint32_t rows, void *const *weights, uint32_t copies)
{
    struct product p = {.bench = bench, .job = job, .a_data = bench_bytes(bench, (size_t)rows * job->depth), .weights = weights, .copies = copies,
                        .out_data = bench_new(bench, (size_t)rows * job->outputs * sizeof(int32_t)), .workspace = bench_new(bench, WORKSPACE)};
    const double time = p.a_data && p.out_data && p.workspace && describe(&p, rows, job->outputs, job->depth) && launch(&p, 0, bench->stream)
                            ? bench_time(bench, launch, &p) : NAN;
    forget(&p);
    return time;
}

double bench_lt(struct bench *bench, const struct cuda_gemm *job, void *const *weights, uint32_t copies, uint32_t *rows_taken)
{
    const uint32_t rows = job->rows, failures = bench->failures, whole = (rows + ROWS_WHOLE - 1) / ROWS_WHOLE * ROWS_WHOLE;
    if (!lt_.tried)
        lt_.there = open_library();
    if (!lt_.there)
        return NAN;
    double time = measure(bench, job, rows, weights, copies);
    *rows_taken = rows;
    if (isnan(time) && whole != rows) {
        time = measure(bench, job, whole, weights, copies);
        *rows_taken = whole;
    }
    bench->failures = failures;            /* a peer's are not ours */
    return time;
}

#else

double bench_lt(struct bench *bench, const struct cuda_gemm *job, void *const *weights, uint32_t copies, uint32_t *rows_taken)
{
    (void)bench, (void)job, (void)weights, (void)copies, (void)rows_taken;
    return NAN;
}

#endif
