/* The wire format: https://protobuf.dev/programming-guides/encoding. The fields: sentencepiece_model.proto of
 * sentencepiece 0.1.97; numbers below are that file's. */
#include "worker/engine/text/tokenizer_model.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"
#include "worker/engine/text/tokenizer.h"

/* TrainerSpec.ModelType */
#define MODEL_TYPE_UNIGRAM 1u
#define MODEL_TYPE_BPE 2u

struct reader {
    const uint8_t *at, *end;
};

struct field {
    uint32_t number;
    uint32_t wire;  /* 0 varint, 1 fixed64, 2 bytes, 5 fixed32 */
    uint64_t value; /* varint, fixed */
    const uint8_t *bytes;
    size_t size;
};

static bool read_varint(struct reader *reader, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (reader->at == reader->end)
            return false;
        const uint8_t byte = *reader->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* STATUS_AGAIN at the end of the message. */
static enum status read_field(struct reader *reader, struct field *field)
{
    uint64_t key;
    if (reader->at == reader->end)
        return STATUS_AGAIN;
    if (!read_varint(reader, &key) || key >> 3 == 0 || key >> 3 > 0x1FFFFFFF)
        return STATUS_INVALID;
    *field = (struct field){.number = (uint32_t)(key >> 3), .wire = (uint32_t)(key & 7)};
    const size_t left = (size_t)(reader->end - reader->at);
    switch (field->wire) {
    case 0: return read_varint(reader, &field->value) ? STATUS_OK : STATUS_INVALID;
    case 1:
    case 5: {
        const unsigned width = field->wire == 1 ? 8 : 4;
        if (left < width)
            return STATUS_INVALID;
        for (unsigned i = 0; i < width; i++)
            field->value |= (uint64_t)reader->at[i] << (8 * i);
        reader->at += width;
        return STATUS_OK;
    }
    case 2: {
        uint64_t size;
        if (!read_varint(reader, &size) || size > (uint64_t)(reader->end - reader->at))
            return STATUS_INVALID;
        field->bytes = reader->at;
        field->size = (size_t)size;
        reader->at += size;
        return STATUS_OK;
    }
    default: return STATUS_INVALID; /* groups were never used here */
    }
}

static enum status refuse(const char *what)
{
    return STATUS_FAIL(STATUS_INVALID, "not a sentencepiece model: %s", what);
}

static bool wire_is(const struct field *field, uint32_t wire)
{
    return field->wire == wire;
}

static int hex_value(uint8_t digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

static enum status read_piece(const struct field *outer, struct tokenizer_model_piece *piece)
{
    struct reader reader = {outer->bytes, outer->bytes + outer->size};
    struct field field;
    enum status st;
    uint64_t type = TOKENIZER_PIECE_NORMAL;
    *piece = (struct tokenizer_model_piece){0};
    while ((st = read_field(&reader, &field)) == STATUS_OK) {
        if (field.number == 1 && wire_is(&field, 2)) {
            if (field.size == 0 || field.size > TOKENIZER_PIECE_BYTES_MAX)
                return refuse("a piece is empty or too long");
            piece->text = field.bytes;
            piece->size = (uint32_t)field.size;
        } else if (field.number == 2 && wire_is(&field, 5)) {
            const uint32_t bits = (uint32_t)field.value;
            float score;
            memcpy(&score, &bits, sizeof score);
            if (!isfinite(score))
                return refuse("a score is not a number");
        } else if (field.number == 3 && wire_is(&field, 0)) {
            type = field.value;
        } else if (field.number <= 3) {
            return refuse("a field of a piece has the wrong type");
        }
    }
    if (st != STATUS_AGAIN)
        return refuse("a piece is cut short");
    if (piece->text == NULL)
        return refuse("a piece has no text");
    if (type < TOKENIZER_PIECE_NORMAL || type > TOKENIZER_PIECE_BYTE)
        return refuse("a piece has an unknown type");
    piece->type = (enum tokenizer_piece_type)type;
    if (!utf8_valid((const char *)piece->text, piece->size) || memchr(piece->text, 0, piece->size) != NULL)
        return refuse("the text of a piece is not UTF-8");
    if (piece->type == TOKENIZER_PIECE_BYTE) {
        const uint8_t *t = piece->text;
        const int high = piece->size == 6 ? hex_value(t[3]) : -1, low = piece->size == 6 ? hex_value(t[4]) : -1;
        if (high < 0 || low < 0 || memcmp(t, "<0x", 3) != 0 || t[5] != '>')
            return refuse("a byte piece is not written <0xNN>");
        piece->byte = (uint8_t)(16 * high + low);
    }
    return STATUS_OK;
}

static const char *model_type_name(uint64_t type)
{
    static const char *const names[] = {"unigram", "BPE", "word", "character"};
    return type >= MODEL_TYPE_UNIGRAM && type <= 4 ? names[type - MODEL_TYPE_UNIGRAM] : "unknown";
}

static enum status check_trainer(const struct field *outer, bool *byte_fallback, uint64_t *model_type)
{
    struct reader reader = {outer->bytes, outer->bytes + outer->size};
    struct field field;
    enum status st;
    while ((st = read_field(&reader, &field)) == STATUS_OK) {
        switch (field.number) {
        case 3: /* model_type */
            if (!wire_is(&field, 0))
                return refuse("model_type has the wrong type");
            *model_type = field.value;
            break;
        case 24: /* treat_whitespace_as_suffix */
            if (!wire_is(&field, 0) || field.value != 0)
                return STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer writes spaces as suffixes");
            break;
        case 35: /* byte_fallback */
            if (!wire_is(&field, 0))
                return refuse("byte_fallback has the wrong type");
            *byte_fallback = field.value != 0;
            break;
        default: break;
        }
    }
    return st == STATUS_AGAIN ? STATUS_OK : refuse("trainer_spec is cut short");
}

static enum status check_normalizer(const struct field *outer, bool *dummy_prefix, bool *extra_whitespaces)
{
    struct reader reader = {outer->bytes, outer->bytes + outer->size};
    struct field field;
    enum status st;
    while ((st = read_field(&reader, &field)) == STATUS_OK) {
        const bool is_flag = field.number >= 3 && field.number <= 5;
        if (field.number <= 6 && !wire_is(&field, is_flag ? 0 : 2))
            return refuse("a field of normalizer_spec has the wrong type");
        if ((field.number == 2 || field.number == 6) && field.size != 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer normalises text, which would change what was typed");
        if (field.number == 3)
            *dummy_prefix = field.value != 0;
        if (field.number == 4)
            *extra_whitespaces = field.value != 0;
        if (field.number == 5 && field.value == 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer does not escape spaces");
    }
    return st == STATUS_AGAIN ? STATUS_OK : refuse("normalizer_spec is cut short");
}

enum status tokenizer_model_read(const void *bytes, size_t size, uint32_t vocab_size, struct tokenizer_model *out)
{
    struct tokenizer_model model = {0};
    struct reader reader = {bytes, (const uint8_t *)bytes + size};
    struct field field;
    bool byte_fallback = false, normalizer = false;
    uint64_t model_type = MODEL_TYPE_UNIGRAM; /* where the file names none */
    bool dummy_prefix = true, extra_whitespaces = true; /* the format's defaults */
    bool byte_seen[256] = {false};
    uint32_t byte_count = 0, unknown_count = 0;
    enum status st, end;

    model.pieces = calloc(vocab_size, sizeof *model.pieces);
    if (model.pieces == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u pieces", vocab_size);
    while ((end = read_field(&reader, &field)) == STATUS_OK) {
        if (field.number > 5)
            continue;
        if (!wire_is(&field, 2)) {
            st = refuse("a field has the wrong type");
            goto fail;
        }
        if (field.number == 1) {
            if (model.piece_count == vocab_size) {
                st =
                    STATUS_FAIL(STATUS_INVALID, "the tokenizer has more than the %u pieces of config.json", vocab_size);
                goto fail;
            }
            struct tokenizer_model_piece *piece = &model.pieces[model.piece_count];
            TRY_GOTO(read_piece(&field, piece), st, fail);
            model.piece_count++;
            unknown_count += piece->type == TOKENIZER_PIECE_UNKNOWN;
            if (piece->type == TOKENIZER_PIECE_BYTE && !byte_seen[piece->byte]) {
                byte_seen[piece->byte] = true;
                byte_count++;
            }
        } else if (field.number == 2) {
            TRY_GOTO(check_trainer(&field, &byte_fallback, &model_type), st, fail);
        } else if (field.number == 3) {
            TRY_GOTO(check_normalizer(&field, &dummy_prefix, &extra_whitespaces), st, fail);
            normalizer = true;
        } else if (field.number == 5 && field.size != 0) {
            st = STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer changes text when decoding");
            goto fail;
        }
    }
    if (end != STATUS_AGAIN) {
        st = refuse("the file is cut short or damaged");
        goto fail;
    }
    if (model.piece_count == 0)
        st = refuse("it has no pieces");
    else if (model.piece_count != vocab_size)
        st = STATUS_FAIL(STATUS_INVALID, "the tokenizer has %u pieces, config.json says %u", model.piece_count,
                         vocab_size);
    else if (model_type != MODEL_TYPE_BPE)
        st = STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer is a %s model; only BPE models are built", model_type_name(model_type));
    else if (!byte_fallback || byte_count != 256)
        st = STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer lacks byte fallback: it has %u of 256 byte pieces",
                         byte_count);
    else if (unknown_count != 1)
        st = refuse("it needs one unknown piece");
    else if (!normalizer || dummy_prefix || extra_whitespaces)
        st = STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer adds or removes spaces");
    else
        st = STATUS_OK;
    if (st != STATUS_OK)
        goto fail;
    *out = model;
    return STATUS_OK;
fail:
    tokenizer_model_free(&model);
    return st;
}

void tokenizer_model_free(struct tokenizer_model *model)
{
    free(model->pieces);
    *model = (struct tokenizer_model){0};
}
