/* checkpoint_fixture.h - small Hugging Face directories with the tensor names and shapes of each family, written here and not taken
 * from the converter's own lists. Values are drawn from a seed. */
#ifndef ROOST_TESTS_CONVERT_CHECKPOINT_FIXTURE_H
#define ROOST_TESTS_CONVERT_CHECKPOINT_FIXTURE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIXTURE_TENSORS_MAX 512

struct fixture_tensor {
    char name[128];
    const char *dtype;              /* F32, BF16, F16, or another that is written as bytes of zeros */
    unsigned rows, columns;         /* columns 0: one dimension */
    float *values;                  /* (rows, columns), exact in the dtype; owned */
};

struct fixture {
    char dir[256];                  /* owned on disk: scratch/NAME */
    char *config;                   /* JSON; owned */
    struct fixture_tensor tensors[FIXTURE_TENSORS_MAX];
    unsigned count;
    uint64_t seed;
};

/* A scratch folder for one test; removed with everything in it. */
void fixture_scratch(char path[256]);
void fixture_remove(const char *path);

/* 6 layers of 64, MQA; conditional: with the names and a vision part of Gemma3ForConditionalGeneration. */
void fixture_gemma3(struct fixture *fixture, const char *scratch, const char *dtype, bool conditional);
/* 10 layers of 128, the last 4 shared and twice as wide, per-layer inputs of 32. */
void fixture_gemma4(struct fixture *fixture, const char *scratch, const char *dtype, bool conditional);
void fixture_free(struct fixture *fixture);

struct fixture_tensor *fixture_add(struct fixture *fixture, const char *dtype, unsigned rows, unsigned columns, const char *name);
struct fixture_tensor *fixture_find(struct fixture *fixture, const char *name);
void fixture_drop(struct fixture *fixture, const char *name);
/* Replaces the first `from` of the configuration. */
void fixture_edit(struct fixture *fixture, const char *from, const char *to);

/* Writes config.json and the weights, into so many shards. */
void fixture_write(const struct fixture *fixture, unsigned shards);
void fixture_write_text(const char *dir, const char *name, const char *text);

#endif
