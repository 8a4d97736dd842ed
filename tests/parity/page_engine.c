/* page-engine - the engine's side of test_page.py.
 *
 *     page-engine model FAMILY RECIPE DIR     writes a random model (random_model.h) into DIR, which exists
 *     page-engine pick VOCAB LOGITS < CASES   LOGITS: float32 (cases, vocab). Prints, a line a case: the id drawn, its log probability as
 *                                             bits, then the most likely ids, each with its log probability
 *
 * A case is numbers: temperature, top_p, min_p, repetition, presence, frequency (float32 bits), top_k, tokens_min, seed, choice, then five
 * lists, each with its length in front: prompt, reply, masked, end ids, and bias as pairs of an id and float32 bits. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "tests/unit/worker/random_model.h"
#include "worker/engine/text/sampler.h"

#define LIST_MAX 1024u

struct list {
    uint32_t count, values[2 * LIST_MAX];
};

static bool read_u32(uint32_t *out)
{
    return scanf("%" SCNu32, out) == 1;
}

static bool read_float(float *out)
{
    uint32_t bits;
    if (!read_u32(&bits))
        return false;
    memcpy(out, &bits, sizeof bits);
    return true;
}

static bool read_list(struct list *list, uint32_t each)
{
    if (!read_u32(&list->count) || list->count > LIST_MAX)
        return false;
    for (uint32_t i = 0; i < each * list->count; i++)
        if (!read_u32(&list->values[i]))
            return false;
    return true;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static enum status print_case(struct sampler *sampler, const struct sampler_options *options, const struct sampler_history *history,
                              const float *logits)
{
    uint32_t id;
    struct sampler_logprobs logprobs;
    TRY(sampler_pick(sampler, options, history, logits, &id));
    sampler_logprobs(sampler, logits, id, SAMPLER_LOGPROBS_MAX, &logprobs);
    printf("%u %u", id, bits_of(logprobs.chosen));
    for (uint32_t i = 0; i < logprobs.count; i++)
        printf(" %u %u", logprobs.ids[i], bits_of(logprobs.values[i]));
    putchar('\n');
    return STATUS_OK;
}

/* STATUS_NOT_FOUND: no more cases. */
static enum status pick_one(struct sampler *sampler, uint32_t vocab, FILE *file, float *logits)
{
    static struct list prompt, reply, masked, ends, bias;
    static uint32_t ids[2 * LIST_MAX], bias_ids[LIST_MAX];
    static float bias_values[LIST_MAX];
    struct sampler_options options = {0};
    struct sampler_history history = {.ids = ids};
    if (!read_float(&options.temperature))
        return STATUS_NOT_FOUND;
    const bool whole = read_float(&options.top_p) && read_float(&options.min_p) && read_float(&options.repetition_penalty) &&
                       read_float(&options.presence_penalty) && read_float(&options.frequency_penalty) && read_u32(&options.top_k) &&
                       read_u32(&options.tokens_min) && scanf("%" SCNu64, &options.seed) == 1 && read_u32(&history.choice) &&
                       read_list(&prompt, 1) && read_list(&reply, 1) && read_list(&masked, 1) && read_list(&ends, 1) && read_list(&bias, 2);
    if (!whole || fread(logits, sizeof *logits, vocab, file) != vocab)
        return STATUS_FAIL(STATUS_INVALID, "half a case");
    history.prompt_count = prompt.count;
    history.count = prompt.count + reply.count;
    memcpy(ids, prompt.values, prompt.count * sizeof *ids);
    memcpy(ids + prompt.count, reply.values, reply.count * sizeof *ids);
    for (uint32_t i = 0; i < bias.count; i++) {
        bias_ids[i] = bias.values[2 * i];
        memcpy(&bias_values[i], &bias.values[2 * i + 1], sizeof *bias_values);
    }
    options.bias_ids = bias_ids, options.bias_values = bias_values, options.bias_count = bias.count;
    options.masked = masked.values, options.masked_count = masked.count;
    options.end_ids = ends.values, options.end_count = ends.count;
    TRY(sampler_check(&options, vocab));
    return print_case(sampler, &options, &history, logits);
}

static enum status pick(uint32_t vocab, const char *path)
{
    struct sampler *sampler = NULL;
    float *logits = malloc(vocab * sizeof *logits);
    FILE *file = fopen(path, "rb");
    enum status st = STATUS_OK;
    if (logits == NULL || file == NULL)
        st = STATUS_FAIL(STATUS_IO, "cannot read %s", path);
    if (st == STATUS_OK)
        st = sampler_create(vocab, &sampler);
    while (st == STATUS_OK)
        st = pick_one(sampler, vocab, file, logits);
    sampler_destroy(&sampler);
    if (file != NULL)
        (void)fclose(file);
    free(logits);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status write_model(const char *family, const char *recipe, const char *dir)
{
    const struct random_model *shape;
    for (unsigned i = 0; (shape = random_model_at(i)) != NULL; i++)
        for (unsigned r = 0; strcmp(shape->name, family) == 0 && r < RANDOM_RECIPES; r++)
            if (strcmp(random_recipe_name((enum random_recipe)r), recipe) == 0) {
                struct random_model wanted = *shape;
                wanted.recipe = (enum random_recipe)r;
                return random_model_write(&wanted, dir);
            }
    return STATUS_FAIL(STATUS_NOT_FOUND, "no family %s or no recipe %s", family, recipe);
}

int main(int argc, char **argv)
{
    enum status st = hash_setup();
    if (st == STATUS_OK && argc == 5 && strcmp(argv[1], "model") == 0) {
        st = write_model(argv[2], argv[3], argv[4]);
    } else if (st == STATUS_OK && argc == 4 && strcmp(argv[1], "pick") == 0) {
        st = pick((uint32_t)strtoul(argv[2], NULL, 10), argv[3]);
    } else if (st == STATUS_OK) {
        fputs("usage: page-engine model FAMILY RECIPE DIR | page-engine pick VOCAB LOGITS\n", stderr);
        return 2;
    }
    if (st == STATUS_OK)
        return 0;
    fprintf(stderr, "page-engine: %s\n", status_detail());
    return 1;
}
