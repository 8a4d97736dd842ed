/* parity-forward - runs ids through a model directory on the backend that its format asks for, and writes the logits.
 *
 *     parity-forward DIR IDS OUT [GREEDY]
 *
 * IDS: a file of numbers. OUT: float32 (rows, vocab), a row for each id and for each greedy token but the last. The first ids run in chunks,
 * the GREEDY tokens behind them one at a time; those are printed, one a line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/hash.h"
#include "worker/engine/model/model.h"
#include "worker/eval/sequence.h"

#define IDS_MAX 65536u

static uint32_t ids[IDS_MAX];

static enum status read_ids(const char *path, uint32_t vocab, uint32_t *count)
{
    unsigned long id;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return STATUS_FAIL(STATUS_NOT_FOUND, "cannot read %s", path);
    *count = 0;
    while (*count < IDS_MAX && fscanf(file, "%lu", &id) == 1 && id < vocab)
        ids[(*count)++] = (uint32_t)id;
    const int whole = feof(file) && *count > 0;
    (void)fclose(file);
    return whole ? STATUS_OK : STATUS_FAIL(STATUS_INVALID, "%s is not a list of at most %u ids below %u", path, IDS_MAX, vocab);
}

static uint32_t highest(const float *row, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

static enum status run(const struct model *model, struct sequence *sequence, uint32_t count, uint32_t greedy, FILE *out)
{
    const uint32_t vocab = model->config.vocab_size;
    float *logits = malloc((size_t)SEQUENCE_CHUNK_TOKENS * vocab * sizeof *logits);
    enum status st = logits == NULL ? STATUS_FAIL(STATUS_NO_MEMORY, "no memory for logits") : STATUS_OK;
    const float *last = logits;
    for (uint32_t done = 0, chunk; st == STATUS_OK && done < count; done += chunk) {
        chunk = count - done < SEQUENCE_CHUNK_TOKENS ? count - done : SEQUENCE_CHUNK_TOKENS;
        st = sequence_run(sequence, ids + done, chunk, logits);
        if (st == STATUS_OK && fwrite(logits, sizeof *logits * vocab, chunk, out) != chunk)
            st = STATUS_FAIL(STATUS_IO, "cannot write the logits");
        last = logits + (size_t)(chunk - 1) * vocab;
    }
    for (uint32_t i = 0; st == STATUS_OK && i < greedy; i++) {
        const uint32_t token = highest(last, vocab);
        printf("%u\n", token);
        if (i + 1 == greedy)
            break;
        st = sequence_run(sequence, &token, 1, logits);
        if (st == STATUS_OK && fwrite(logits, sizeof *logits * vocab, 1, out) != 1)
            st = STATUS_FAIL(STATUS_IO, "cannot write the logits");
        last = logits;
    }
    free(logits);
    return st;
}

static enum status forward(const char *dir, const char *ids_path, const char *out_path, uint32_t greedy)
{
    enum status st;
    struct model *model = NULL;
    struct sequence *sequence = NULL;
    uint32_t count = 0;
    FILE *out = NULL;
    TRY(hash_setup());
    TRY_GOTO(model_load(dir, &model), st, done);
    TRY_GOTO(read_ids(ids_path, model->config.vocab_size, &count), st, done);
    TRY_GOTO(sequence_create(model, count + greedy, 2, &sequence), st, done);
    out = fopen(out_path, "wb");
    st = out == NULL ? STATUS_FAIL(STATUS_IO, "cannot write %s", out_path) : run(model, sequence, count, greedy, out);
done:
    if (out != NULL && fclose(out) != 0 && st == STATUS_OK)
        st = STATUS_FAIL(STATUS_IO, "cannot write %s", out_path);
    sequence_destroy(&sequence);
    model_destroy(&model);
    return st;
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 5) {
        fputs("usage: parity-forward DIR IDS OUT [GREEDY]\n", stderr);
        return 2;
    }
    if (forward(argv[1], argv[2], argv[3], argc == 5 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0) == STATUS_OK)
        return 0;
    fprintf(stderr, "parity-forward: %s\n", status_detail());
    return 1;
}
