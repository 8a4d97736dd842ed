/* matrix_test.c - the equality matrix: every way to a reply gives the same tokens and the same bits of logits, on every machine.
 *
 *   matrix_test pairwise [FAMILY ...]    rows that cover every pair of values, for each family of models (default: all)
 *   matrix_test product                  the full product of the axes for one tiny model
 * The digests are committed in tests/golden/equality_matrix.txt. ROOST_GOLDEN_WRITE=1 makes them again, from plain runs, on standard output.
 * ROOST_MATRIX_EVERY=N takes every N-th row (sanitizers). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/log.h"
#include "tests/equality/matrix_run.h"
#include "tests/unit/worker/random_model.h"

#define GOLDEN_MAX 1024u

struct golden { char key[96]; char digest[65]; bool new; };

static struct golden goldens[GOLDEN_MAX];
static uint32_t golden_count, compared;
static bool writing;

static void read_goldens(void)
{
    char path[4096], line[256];
    const char *source = getenv("ROOST_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/tests/golden/equality_matrix.txt", source != NULL ? source : ".");
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL && golden_count < GOLDEN_MAX)
        if (line[0] != '#' && sscanf(line, "%95s %64s", goldens[golden_count].key, goldens[golden_count].digest) == 2)
            golden_count++;
    if (file != NULL)
        fclose(file);
}

static void row_key(const char *family, const struct matrix_row *row, uint32_t choice, char key[96])
{
    snprintf(key, 96, "%s/%s/%s/%s/%u", family, random_recipe_name(row->value[MATRIX_RECIPE]), row->value[MATRIX_PROMPT] ? "long" : "short",
             row->value[MATRIX_SAMPLING] ? "sampled" : "greedy", choice);
}

static struct golden *find_golden(const char *key)
{
    for (uint32_t i = 0; i < golden_count; i++)
        if (strcmp(goldens[i].key, key) == 0)
            return &goldens[i];
    return NULL;
}

static void hex_of(const struct matrix_digest *digest, char hex[65])
{
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest->bytes[i]);
}

/* What a row is compared with when digests are written: alone, cold, one chunk, one thread. */
static void add_goldens(const char *family, const char *dir, uint32_t kv_bytes, const struct matrix_row *row)
{
    struct matrix_row plain = *row;
    struct matrix_outcome outcome;
    plain.value[MATRIX_BATCH] = plain.value[MATRIX_STATE] = plain.value[MATRIX_THREADS] = plain.value[MATRIX_DEPTH] = 0;
    plain.value[MATRIX_RESUME] = 0;
    plain.value[MATRIX_CHUNK] = 4;
    plain.value[MATRIX_CHOICES] = 1;
    if (matrix_run(dir, kv_bytes, &plain, &outcome) != STATUS_OK) {
        fprintf(stderr, "%s: %s\n", family, status_detail());
        exit(1);
    }
    for (uint32_t choice = 0; choice < MATRIX_CHOICES_MAX && golden_count < GOLDEN_MAX; choice++) {
        row_key(family, row, choice, goldens[golden_count].key);
        hex_of(&outcome.choices[choice], goldens[golden_count].digest);
        goldens[golden_count++].new = true;
    }
}

static bool compare(const char *key, const struct matrix_digest *digest)
{
    char hex[65];
    const struct golden *golden = find_golden(key);
    hex_of(digest, hex);
    if (golden == NULL)
        fprintf(stderr, "no digest is committed for %s: see tests/golden/README.md\n", key);
    compared++;
    return golden != NULL && strcmp(golden->digest, hex) == 0;
}

static void print_row(FILE *out, const char *family, const struct matrix_row *row)
{
    fprintf(out, "%s: batch %u, chunk %u, %s, %u thread(s), n = %u, %s, %s prompt, %s, %s%s", family, matrix_batch(row),
            matrix_chunk(row, MATRIX_CONTEXT), matrix_state_names[row->value[MATRIX_STATE]], row->value[MATRIX_THREADS] + 1,
            matrix_choices(row), row->value[MATRIX_DEPTH] ? "full depth" : "early exit", row->value[MATRIX_PROMPT] ? "long" : "short",
            row->value[MATRIX_SAMPLING] ? "sampled" : "greedy", random_recipe_name(row->value[MATRIX_RECIPE]),
            row->value[MATRIX_RESUME] ? ", resumed" : "");
}

struct tally { uint32_t rows, failed, cached[MATRIX_STATES], suspended[MATRIX_STATES], of[MATRIX_STATES]; };

static void run_row(const char *family, const char *dir, uint32_t kv_bytes, const struct matrix_row *row, struct tally *tally)
{
    struct matrix_outcome outcome;
    char key[96];
    row_key(family, row, 0, key);
    if (writing && find_golden(key) == NULL)
        add_goldens(family, dir, kv_bytes, row);
    const enum status st = matrix_run(dir, kv_bytes, row, &outcome);
    const uint32_t state = row->value[MATRIX_STATE];
    bool good = st == STATUS_OK;
    for (uint32_t choice = 0; good && choice < matrix_choices(row); choice++) {
        row_key(family, row, choice, key);
        good = compare(key, &outcome.choices[choice]);
    }
    tally->rows++;
    tally->of[state]++;
    tally->cached[state] += outcome.cached_tokens > 0;
    tally->suspended[state] += outcome.suspended;
    if (!good) {
        tally->failed++;
        fputs("DIFFERS: ", stderr);
        print_row(stderr, family, row);
        fprintf(stderr, " (%u tokens cached)%s%s\n", outcome.cached_tokens, st == STATUS_OK ? "" : ": ", st == STATUS_OK ? "" : status_detail());
    }
}

static uint32_t every(void)
{
    const char *text = getenv("ROOST_MATRIX_EVERY");
    const long value = text != NULL ? atol(text) : 1;
    return value > 0 ? (uint32_t)value : 1;
}

/* Each state must have come about, or its rows show nothing. */
static bool states_happened(const char *family, const struct tally *tally)
{
    bool good = true;
    for (uint32_t state = 0; state < MATRIX_STATES; state++) {
        const bool wants_cached = state == MATRIX_CACHED || state == MATRIX_INSIDE || state == MATRIX_HOST;
        /* Not in each row: others may make room first. So only of all rows together. */
        const bool wants_suspended = (state == MATRIX_PREEMPTED || state == MATRIX_RECOMPUTED) && every() == 1;
        if (tally->of[state] > 0 && ((wants_cached && tally->cached[state] < tally->of[state]) || (state == MATRIX_COLD && tally->cached[state] > 0) ||
                                     (wants_suspended && tally->suspended[state] == 0))) {
            fprintf(stderr, "%s: state %s: of %u rows %u found something cached, %u suspended something\n", family, matrix_state_names[state],
                    tally->of[state], tally->cached[state], tally->suspended[state]);
            good = false;
        }
    }
    return good;
}

static void prepare_shape(struct random_model *shape)
{
    shape->tokenizer = true;
    shape->vocab_size = 4096;
    shape->context_tokens = MATRIX_CONTEXT;
}

/* All rows of a family; the models of its recipes are made as they are needed. */
static bool run_pairwise(const struct random_model *family, uint64_t seed)
{
    char dirs[RANDOM_RECIPES][RANDOM_MODEL_PATH_MAX] = {{0}};
    struct matrix_row *rows;
    struct tally tally = {0};
    uint32_t kv_bytes = 0;
    const uint32_t count = matrix_pairwise(seed, &rows);
    for (uint32_t i = 0; i < count; i += every()) {
        const uint32_t recipe = rows[i].value[MATRIX_RECIPE];
        struct random_model shape = *family;
        prepare_shape(&shape);
        shape.recipe = (enum random_recipe)recipe;
        if (dirs[recipe][0] == '\0' && random_model_create(&shape, dirs[recipe]) != STATUS_OK)
            abort();
        if (kv_bytes == 0 && matrix_kv_bytes(dirs[recipe], &kv_bytes) != STATUS_OK) {
            fprintf(stderr, "%s: %s\n", family->name, status_detail());
            tally.failed++;
            break;
        }
        run_row(family->name, dirs[recipe], kv_bytes, &rows[i], &tally);
    }
    for (uint32_t recipe = 0; recipe < RANDOM_RECIPES; recipe++)
        if (dirs[recipe][0] != '\0')
            random_model_remove(dirs[recipe]);
    free(rows);
    const bool happened = states_happened(family->name, &tally);
    printf("# %-10s %4u rows, %u differ\n", family->name, tally.rows, tally.failed);
    fflush(stdout);
    return tally.failed == 0 && happened;
}

static bool run_product(void)
{
    static const unsigned producers[] = {0, 1, 0};
    const struct random_model tiny = {
        .name = "tiny", .seed = 9, .hidden_size = 64, .intermediate_size = 128, .head_count = 2, .kv_head_count = 1, .head_dim = 32,
        .window = 24, .layers = "LGL", .kv_producer = producers, .activation = "silu",
    };
    struct random_model shape = tiny;
    char dir[RANDOM_MODEL_PATH_MAX];
    struct tally tally = {0};
    struct matrix_row row;
    uint32_t kv_bytes;
    prepare_shape(&shape);
    if (random_model_create(&shape, dir) != STATUS_OK || matrix_kv_bytes(dir, &kv_bytes) != STATUS_OK)
        abort();
    for (uint32_t number = 0; matrix_product(number, &row); number += every())
        run_row(tiny.name, dir, kv_bytes, &row, &tally);
    random_model_remove(dir);
    const bool happened = states_happened(tiny.name, &tally);
    printf("# %-10s %4u rows, %u differ\n", tiny.name, tally.rows, tally.failed);
    return tally.failed == 0 && happened;
}

static bool wanted(int argc, char **argv, const char *family)
{
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], family) == 0)
            return true;
    return argc <= 2;
}

int main(int argc, char **argv)
{
    const struct random_model *family;
    bool good = true;
    if (argc < 2 || (strcmp(argv[1], "pairwise") != 0 && strcmp(argv[1], "product") != 0)) {
        fprintf(stderr, "usage: matrix_test pairwise [FAMILY ...] | product\n");
        return 2;
    }
    log_setup(&(struct log_config){.level = LOG_LEVEL_ERROR});
    writing = getenv("ROOST_GOLDEN_WRITE") != NULL;
    if (!writing)
        read_goldens();
    if (strcmp(argv[1], "product") == 0)
        good = run_product();
    else
        for (unsigned i = 0; (family = random_model_at(i)) != NULL; i++)
            if (wanted(argc, argv, family->name))
                good = run_pairwise(family, i + 1) && good;
    for (uint32_t i = 0; i < golden_count; i++)
        if (goldens[i].new)
            printf("%s %s\n", goldens[i].key, goldens[i].digest);
    printf("# %u digests compared\n", compared);
    return good ? 0 : 1;
}
