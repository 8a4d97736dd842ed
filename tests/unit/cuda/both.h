/* both.h - one sequence on the CPU backend and on the CUDA backend, whose logits and pages are compared bit for bit. */
#ifndef ROOST_TESTS_CUDA_BOTH_H
#define ROOST_TESTS_CUDA_BOTH_H
#include "backend_fixture.h"
#include "tests/cuda_emulation/emulation.h"
#include "tests/unit/worker/unit.h"
#include "worker/engine/backend/backend_cpu.h"
#include "worker/engine/backend/cuda/backend_cuda.h"

#define ROWS_MAX 256
#define CONFIG(full) ((struct backend_config){.rows_max = ROWS_MAX, .threads = 1, .full_depth = (full)})

static const struct backend_ops *const cpu_ = &backend_cpu_ops, *const cuda_ = &backend_cuda_ops;

struct both {                          /* one sequence on both backends */
    struct model *model;
    struct backend *cpu, *cuda;
    struct session on_cpu, on_cuda;
    uint32_t tokens[ROWS_MAX];
};

static inline void both_open(struct both *both, struct model *model, struct backend *cpu, struct backend *cuda, uint64_t salt)
{
    *both = (struct both){.model = model, .cpu = cpu, .cuda = cuda};
    tokens_fill(model, salt, both->tokens, ROWS_MAX);
    session_open(&both->on_cpu, cpu_, model, cpu, both->tokens);
    session_open_on_device(&both->on_cuda, cuda_, model, cuda, both->tokens);
}

static inline void both_close(struct both *both)
{
    session_close(&both->on_cpu);
    session_close(&both->on_cuda);
}

static inline void check_logits(const struct both *both, const float *want, const float *got, uint32_t rows, const char *what)
{
    const size_t vocab = both->model->config.vocab_size;
    for (size_t i = 0; i < rows * vocab; i++)
        if (memcmp(&want[i], &got[i], sizeof want[i]) != 0)
            fail_msg("%s, %s: logit %zu of row %zu is %a, not %a", both->model->config.name, what, i % vocab, i / vocab, (double)got[i],
                     (double)want[i]);
}

static inline void check_pages(const struct both *both, uint32_t tokens, const char *what)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = cpu_->page_bytes(both->cpu, group);
        assert_int_equal(bytes, cuda_->page_bytes(both->cuda, group));
        for (unsigned page = 0; bytes > 0 && page < (tokens + 63) / 64; page++) {
            void *image = session_page(&both->on_cuda, group, page);
            if (memcmp(image, both->on_cpu.pages[group][page], bytes) != 0)
                fail_msg("%s, %s: page %u of group %u has other bytes", both->model->config.name, what, page, group);
            free(image);
        }
    }
}

#endif
