#include "worker/engine/model/known_answer.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/hash.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model.h"

struct answer {
    uint32_t *prompt_ids, *reply_ids; /* owned */
    uint32_t prompt_count, reply_count;
    char digest[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
};

static void answer_free(struct answer *answer)
{
    free(answer->prompt_ids);
    free(answer->reply_ids);
    *answer = (struct answer){0};
}

struct sequence {                  /* pages of a single conversation */
    void *memory[BACKEND_GROUPS_MAX];     /* owned: arenas */
    void **pages[BACKEND_GROUPS_MAX];     /* owned */
};

static void sequence_close(const struct known_answer_run *run, struct sequence *sequence)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        run->ops->arena_destroy(run->backend, BACKEND_TIER_DEVICE, &sequence->memory[group]);
        free(sequence->pages[group]);
    }
}

static enum status sequence_open(const struct known_answer_run *run, uint32_t tokens, struct sequence *sequence)
{
    const size_t count = (tokens + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = run->ops->page_bytes(run->backend, group);
        if (bytes == 0)
            continue;
        TRY(run->ops->arena_create(run->backend, BACKEND_TIER_DEVICE, count * bytes, &sequence->memory[group]));
        sequence->pages[group] = calloc(count, sizeof *sequence->pages[group]);
        if (sequence->pages[group] == NULL)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
        for (size_t i = 0; i < count; i++)
            sequence->pages[group][i] = (char *)sequence->memory[group] + i * bytes;
    }
    return STATUS_OK;
}

static enum status forward(const struct known_answer_run *run, const struct sequence *sequence, const uint32_t *tokens, uint32_t start,
                           uint32_t count, float *logits)
{
    struct backend_run one = {.tokens = tokens, .count = count, .start = start, .logits = logits, .logit_rows = logits != NULL};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        one.pages[group] = sequence->pages[group];
    const struct backend_batch batch = {.runs = &one, .run_count = 1};
    return run->ops->forward(run->backend, &batch, NULL);
}

static uint32_t highest(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Fills reply_ids and digest from prompt_ids and the two counts. */
static enum status answer_compute(const struct known_answer_run *run, struct answer *answer)
{
    const uint32_t vocab = run->model->config.vocab_size;
    struct sequence sequence = {0};
    struct hash_stream *hash = NULL;
    uint8_t digest[HASH_DIGEST_BYTES];
    enum status st;
    float *logits = calloc(vocab, sizeof *logits);
    if (logits == NULL) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
        goto done;
    }
    TRY_GOTO(sequence_open(run, answer->prompt_count + answer->reply_count, &sequence), st, done);
    TRY_GOTO(hash_stream_create(NULL, 0, &hash), st, done);
    for (uint32_t start = 0; start < answer->prompt_count;) {
        const uint32_t left = answer->prompt_count - start, count = left < run->chunk_tokens ? left : run->chunk_tokens;
        TRY_GOTO(forward(run, &sequence, answer->prompt_ids + start, start, count, count == left ? logits : NULL), st, done);
        start += count;
    }
    for (uint32_t i = 0; i < answer->reply_count; i++) {
        hash_stream_update(hash, logits, vocab * sizeof *logits);
        answer->reply_ids[i] = highest(logits, vocab);
        if (i + 1 < answer->reply_count)
            TRY_GOTO(forward(run, &sequence, &answer->reply_ids[i], answer->prompt_count + i, 1, logits), st, done);
    }
    hash_stream_final(hash, digest);
    hash_hex(digest, sizeof digest, answer->digest);
    st = STATUS_OK;
done:
    hash_stream_destroy(&hash);
    sequence_close(run, &sequence);
    free(logits);
    return st;
}

/* ---- writing ---- */

static enum status answer_choose(const struct model *model, struct answer *answer)
{
    const struct model_config *config = &model->config;
    const uint32_t room = config->context_tokens_max;
    if (room < 2)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "a context of %u tokens is too short for a known answer", room);
    answer->prompt_count = room / 2 < KNOWN_ANSWER_PROMPT_IDS ? room / 2 : KNOWN_ANSWER_PROMPT_IDS;
    answer->reply_count = room / 2 < KNOWN_ANSWER_REPLY_IDS ? room / 2 : KNOWN_ANSWER_REPLY_IDS;
    answer->prompt_ids = calloc(answer->prompt_count, sizeof *answer->prompt_ids);
    answer->reply_ids = calloc(answer->reply_count, sizeof *answer->reply_ids);
    if (answer->prompt_ids == NULL || answer->reply_ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
    answer->prompt_ids[0] = config->bos_id;
    for (uint32_t i = 1; i < answer->prompt_count; i++) /* spread over the vocabulary; any ids would do */
        answer->prompt_ids[i] = (uint32_t)(hash_mix(1, i) % config->vocab_size);
    return STATUS_OK;
}

static json_t *json_ids(const uint32_t *ids, uint32_t count)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < count; i++)
        if (array != NULL && json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static enum status path_join(const char *dir, const char *suffix, char *path, size_t size)
{
    const int length = snprintf(path, size, "%s/" KNOWN_ANSWER_FILE "%s", dir, suffix);
    if (length < 0 || (size_t)length >= size)
        return STATUS_FAIL(STATUS_INVALID, "the path of the model directory is too long");
    return STATUS_OK;
}

static enum status write_file(const char *dir, const char *text)
{
    char path[4096], temporary[4096];
    TRY(path_join(dir, "", path, sizeof path));
    TRY(path_join(dir, ".new", temporary, sizeof temporary));
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return STATUS_FAIL(STATUS_IO, "cannot create %s: %s", temporary, strerror(errno));
    const size_t size = strlen(text);
    size_t done = 0;
    bool ok = true;
    while (ok && done < size) {
        const ssize_t wrote = write(fd, text + done, size - done);
        if (wrote >= 0)
            done += (size_t)wrote;
        else
            ok = errno == EINTR;
    }
    ok = ok && fsync(fd) == 0;
    int error = errno;
    if (close(fd) != 0 && ok) {
        ok = false;
        error = errno;
    }
    if (ok && rename(temporary, path) != 0) {
        ok = false;
        error = errno;
    }
    if (!ok) {
        (void)unlink(temporary);
        return STATUS_FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(error));
    }
    return STATUS_OK;
}

enum status known_answer_write(const char *dir, const struct known_answer_run *run)
{
    struct answer answer = {0};
    json_t *root = NULL;
    char *text = NULL;
    enum status st;
    TRY_GOTO(answer_choose(run->model, &answer), st, done);
    TRY_GOTO(answer_compute(run, &answer), st, done);
    root = json_pack("{s:o?, s:o?, s:s}", "prompt_ids", json_ids(answer.prompt_ids, answer.prompt_count), "reply_ids",
                     json_ids(answer.reply_ids, answer.reply_count), "logits_digest", answer.digest);
    text = root == NULL ? NULL : json_dumps(root, JSON_COMPACT);
    if (text == NULL) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
        goto done;
    }
    st = write_file(dir, text);
done:
    free(text);
    json_decref(root);
    answer_free(&answer);
    return st;
}

/* ---- checking ---- */

static enum status read_json(const char *dir, json_t **out)
{
    char path[4096];
    TRY(path_join(dir, "", path, sizeof path));
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat info;
    enum status st = STATUS_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size > (off_t)KNOWN_ANSWER_FILE_BYTES_MAX) {
        st = STATUS_FAIL(STATUS_INVALID, "%s is not a regular file of at most %u bytes", path,
                         KNOWN_ANSWER_FILE_BYTES_MAX);
    } else {
        json_error_t error;
        *out = json_loadfd(fd, JSON_REJECT_DUPLICATES, &error);
        if (*out == NULL)
            st = STATUS_FAIL(STATUS_INVALID, "%s: line %d: %s", path, error.line, error.text);
    }
    close(fd);
    return st;
}

static enum status read_ids(const json_t *root, const char *key, uint32_t vocab, uint32_t **ids, uint32_t *count)
{
    const json_t *array = json_object_get(root, key);
    const size_t size = json_array_size(array);
    if (size == 0 || size > KNOWN_ANSWER_IDS_MAX)
        return STATUS_FAIL(STATUS_INVALID, KNOWN_ANSWER_FILE ": %s must be a list of 1 to %u ids", key,
                           KNOWN_ANSWER_IDS_MAX);
    *ids = calloc(size, sizeof **ids);
    if (*ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
    for (size_t i = 0; i < size; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= vocab)
            return STATUS_FAIL(STATUS_INVALID, KNOWN_ANSWER_FILE ": %s[%zu] is not an id below %u", key, i, vocab);
        (*ids)[i] = (uint32_t)json_integer_value(value);
    }
    *count = (uint32_t)size;
    return STATUS_OK;
}

static enum status answer_read(const char *dir, const struct model_config *config, struct answer *answer)
{
    json_t *root = NULL;
    enum status st;
    TRY(read_json(dir, &root));
    TRY_GOTO(read_ids(root, "prompt_ids", config->vocab_size, &answer->prompt_ids, &answer->prompt_count), st, done);
    TRY_GOTO(read_ids(root, "reply_ids", config->vocab_size, &answer->reply_ids, &answer->reply_count), st, done);
    const char *digest = json_string_value(json_object_get(root, "logits_digest"));
    if (digest == NULL || strlen(digest) != sizeof answer->digest - 1 || json_object_size(root) != 3)
        st = STATUS_FAIL(STATUS_INVALID,
                         KNOWN_ANSWER_FILE ": it must hold prompt_ids, reply_ids and a logits_digest of 64 digits");
    else if (answer->prompt_count + answer->reply_count > config->context_tokens_max)
        st = STATUS_FAIL(STATUS_INVALID, KNOWN_ANSWER_FILE ": it has more ids than the context of %u",
                         config->context_tokens_max);
    else
        memcpy(answer->digest, digest, sizeof answer->digest);
done:
    json_decref(root);
    return st;
}

enum status known_answer_check(const char *dir, const struct known_answer_run *run)
{
    struct answer expected = {0}, found = {0};
    enum status st;
    TRY_GOTO(answer_read(dir, &run->model->config, &expected), st, done);
    found = expected;
    found.reply_ids = calloc(expected.reply_count, sizeof *found.reply_ids);
    if (found.reply_ids == NULL) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the known answer");
        goto done;
    }
    TRY_GOTO(answer_compute(run, &found), st, done);
    const bool same_ids = memcmp(expected.reply_ids, found.reply_ids, expected.reply_count * sizeof(uint32_t)) == 0;
    if (!same_ids || strcmp(expected.digest, found.digest) != 0)
        st = STATUS_FAIL(
            STATUS_CORRUPT,
            "this machine does not compute the model's known answer (%s differ): the model files, the processor or "
            "this build are not what %s/" KNOWN_ANSWER_FILE
            " was made with; after a wanted change of the model, seal it "
            "again",
            same_ids ? "the logits" : "the reply ids", dir);
done:
    free(found.reply_ids);
    answer_free(&expected);
    return st;
}
