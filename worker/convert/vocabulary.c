#include "worker/convert/vocabulary.h"
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/convert/input_file.h"
#include "worker/engine/text/tokenizer.h"
#include "worker/engine/text/tokenizer_model.h"

#define GEMMA_TURN_ID 105u            /* <start_of_turn>, <end_of_turn> of Gemma 3 and <|turn>, <turn|> of Gemma 4 */
#define GEMMA_TEXT_ID 106u

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
        const uint8_t byte = *(*at)++;
        *out |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return true;
    }
    return false;
}

/* Pieces are the file's fields number 1, of wire type 2; all others of a ModelProto are skipped by their length. 0: not such a file. */
static uint32_t count_pieces(const char *bytes, size_t size)
{
    const uint8_t *at = (const uint8_t *)bytes, *end = at + size;
    uint32_t count = 0;
    while (at < end) {
        uint64_t key, length;
        if (!read_varint(&at, end, &key) || (key & 7) != 2 || !read_varint(&at, end, &length) || length > (uint64_t)(end - at))
            return 0;
        at += length;
        count += key >> 3 == 1;
    }
    return count;
}

static enum status find_piece(const struct tokenizer_model *model, const char *path, const char *text, uint32_t *id)
{
    const size_t size = strlen(text);
    for (uint32_t i = 0; i < model->piece_count; i++) {
        const struct tokenizer_model_piece *piece = &model->pieces[i];
        const bool control = piece->type == TOKENIZER_PIECE_CONTROL || piece->type == TOKENIZER_PIECE_USER_DEFINED;
        if (control && piece->size == size && memcmp(piece->text, text, size) == 0) {
            *id = i;
            return STATUS_OK;
        }
    }
    return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: it has no control piece %s, which the chat template needs", path, text);
}

static bool has_end(const struct model_config *config, uint32_t id)
{
    for (uint32_t i = 0; i < config->end_id_count; i++)
        if (config->end_ids[i] == id)
            return true;
    return false;
}

/* A reply ends where its turn is closed, also where the configuration (of a model that was not tuned to chat) does not say so. */
static enum status add_closing(struct model_config *config)
{
    if (has_end(config, config->text_id))
        return STATUS_OK;
    if (config->end_id_count == MODEL_END_IDS_MAX)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "config.json: eos_token_id: over %u ids with the one that closes a turn", MODEL_END_IDS_MAX);
    config->end_ids[config->end_id_count++] = config->text_id;
    return STATUS_OK;
}

static enum status check_ids(const struct model_config *config)
{
    if (config->bos_id >= config->vocab_size || config->turn_id >= config->vocab_size || config->text_id >= config->vocab_size)
        return STATUS_FAIL(STATUS_INVALID, "config.json: a control id is outside of the vocabulary of %u", config->vocab_size);
    for (uint32_t i = 0; i < config->end_id_count; i++)
        if (config->end_ids[i] >= config->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "config.json: eos_token_id %u is outside of the vocabulary of %u", config->end_ids[i],
                               config->vocab_size);
    return STATUS_OK;
}

static enum status use_pieces(const struct tokenizer_model *model, const char *path, struct family_config *family)
{
    struct model_config *config = &family->config;
    config->vocab_size = model->piece_count;
    if (family->opening) {
        TRY(find_piece(model, path, family->opening, &config->turn_id));
        TRY(find_piece(model, path, family->closing, &config->text_id));
        TRY(add_closing(config));
    }
    return check_ids(config);
}

enum status vocabulary_read(const char *dir, struct family_config *family, char **bytes, size_t *size)
{
    char path[PATH_MAX];
    struct tokenizer_model model = { 0 };
    TRY(input_file_path(dir, "tokenizer.model", path));
    enum status st = input_file_read(path, TOKENIZER_FILE_BYTES_MAX, bytes, size);
    if (st == STATUS_NOT_FOUND)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is missing: only sentencepiece tokenizers can be reproduced; where the repository has "
                           "tokenizer.json alone, take tokenizer.model from the original one", path);
    if (st != STATUS_OK)
        return st;
    const uint32_t pieces = count_pieces(*bytes, *size);
    if (pieces == 0 || pieces > family->config.vocab_size)
        st = pieces == 0 ? STATUS_FAIL(STATUS_UNSUPPORTED, "%s: not a sentencepiece model", path)
                         : STATUS_FAIL(STATUS_INVALID, "%s: %u pieces, but config.json has a vocabulary of %u", path, pieces,
                                       family->config.vocab_size);
    else if ((st = tokenizer_model_read(*bytes, *size, pieces, &model)) != STATUS_OK) {
        char detail[512];
        snprintf(detail, sizeof detail, "%s", status_detail());
        st = STATUS_FAIL(st, "%s: %s", path, detail);
    } else {
        st = use_pieces(&model, path, family);
        tokenizer_model_free(&model);
    }
    if (st != STATUS_OK) {
        free(*bytes);
        *bytes = NULL;
    }
    return st;
}

/* ---- without a tokenizer ---- */

static uint32_t free_id(const struct model_config *config, uint32_t from)
{
    for (uint32_t id = from; id < config->vocab_size; id++)
        if (id != config->bos_id && id != config->turn_id && !has_end(config, id))
            return id;
    return 0;                          /* check_ids and model_config_parse then say so */
}

enum status vocabulary_invent(struct family_config *family)
{
    struct model_config *config = &family->config;
    if (!family->opening)
        return check_ids(config);
    const bool own = config->vocab_size > GEMMA_TEXT_ID;
    config->turn_id = UINT32_MAX;
    config->turn_id = own ? GEMMA_TURN_ID : free_id(config, 3);
    config->text_id = own ? GEMMA_TEXT_ID : free_id(config, 3);
    TRY(add_closing(config));
    return check_ids(config);
}
