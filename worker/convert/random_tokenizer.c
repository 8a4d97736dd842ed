#include "worker/convert/random_tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/text/tokenizer_model.h"

#define SPACE "\xe2\x96\x81"                   /* U+2581, how sentencepiece writes a space */
#define LETTERS_MAX 6u

/* Fields of sentencepiece_model.proto: ModelProto 1 pieces, 2 trainer_spec, 3 normalizer_spec. All lengths here are below 128. */
static void write_piece(FILE *out, const char *text, enum tokenizer_piece_type type, uint32_t id)
{
    const float score = type == TOKENIZER_PIECE_NORMAL ? -(float)id : 0;
    const size_t length = strlen(text);
    fputc(0x0a, out);
    fputc((int)(2 + length + 5 + 2), out);
    fputc(0x0a, out);
    fputc((int)length, out);
    fputs(text, out);
    fputc(0x15, out);                          /* 2: float score, higher merges first */
    fwrite(&score, sizeof score, 1, out);
    fputc(0x18, out);                          /* 3: type */
    fputc((int)type, out);
}

static void write_fixed(FILE *out, enum model_template chat_template)
{
    static const char *const names[][2] = { [MODEL_TEMPLATE_SPEAKER] = { "<turn>", "<text>" },
                                            [MODEL_TEMPLATE_GEMMA] = { "<start_of_turn>", "<end_of_turn>" },
                                            [MODEL_TEMPLATE_GEMMA4] = { "<|turn>", "<turn|>" } };
    write_piece(out, "<unk>", TOKENIZER_PIECE_UNKNOWN, RANDOM_TOKENIZER_UNKNOWN);
    write_piece(out, "<bos>", TOKENIZER_PIECE_CONTROL, RANDOM_TOKENIZER_BOS);
    write_piece(out, "<eos>", TOKENIZER_PIECE_CONTROL, RANDOM_TOKENIZER_EOS);
    write_piece(out, names[chat_template][0], TOKENIZER_PIECE_CONTROL, RANDOM_TOKENIZER_TURN);
    write_piece(out, names[chat_template][1], TOKENIZER_PIECE_CONTROL, RANDOM_TOKENIZER_TEXT);
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text[16];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        write_piece(out, text, TOKENIZER_PIECE_BYTE, RANDOM_TOKENIZER_BYTES + byte);
    }
}

/* All strings of a length in order, after a space or bare, until there are enough pieces. */
static void write_strings(FILE *out, unsigned length, bool after_space, uint32_t pieces, uint32_t *id)
{
    char text[16];
    unsigned digits[LETTERS_MAX] = { 0 };
    const size_t start = after_space ? strlen(SPACE) : 0;
    memcpy(text, SPACE, start);
    for (bool more = true; more && *id < pieces;) {
        for (unsigned i = 0; i < length; i++)
            text[start + i] = (char)('a' + digits[i]);
        text[start + length] = '\0';
        write_piece(out, text, TOKENIZER_PIECE_NORMAL, (*id)++);
        more = false;
        for (unsigned i = length; i-- > 0 && !more;) {
            more = ++digits[i] < 26;
            if (!more)
                digits[i] = 0;
        }
    }
}

enum status random_tokenizer_write(enum model_template chat_template, uint32_t pieces, char **bytes, size_t *size)
{
    /* trainer_spec: 3 model_type = 2 (BPE), 35 byte_fallback; normalizer_spec: 1 name, 3 add_dummy_prefix, 4
     * remove_extra_whitespaces, 5 escape_whitespaces. */
    static const uint8_t specs[] = { 0x12, 5, 0x18, 2, 0x98, 2, 1, 0x1a, 16, 0x0a, 8, 'i', 'd', 'e', 'n', 't', 'i', 't', 'y',
                                     0x18, 0, 0x20, 0, 0x28, 1 };
    uint32_t id = RANDOM_TOKENIZER_BYTES + 256;
    *bytes = NULL;
    FILE *out = open_memstream(bytes, size);
    if (!out)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a tokenizer");
    write_fixed(out, chat_template);
    for (unsigned length = 1; length <= LETTERS_MAX && id < pieces; length++) {
        write_strings(out, length - 1, true, pieces, &id);
        write_strings(out, length, false, pieces, &id);
    }
    fwrite(specs, sizeof specs, 1, out);
    const bool bad = ferror(out) || id != pieces;
    if (fclose(out) != 0 || bad) {
        free(*bytes);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a tokenizer of %u pieces", pieces);
    }
    return STATUS_OK;
}
