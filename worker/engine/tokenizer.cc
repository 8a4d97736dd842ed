#include "worker/engine/tokenizer.h"
#include <fcntl.h>
#include <sentencepiece_processor.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>
#include "worker/engine/tokenizer_model.h"
extern "C" {
#include "common/utf8.h"
}

#define SPACE_MARK "\xE2\x96\x81" /* U+2581: how sentencepiece writes a space */

struct tokenizer {
    sentencepiece::SentencePieceProcessor processor;
    std::string bytes;            /* the bytes of all ids, end to end */
    std::vector<uint32_t> starts; /* (vocab + 1), into bytes */
    std::vector<bool> from_text;  /* (vocab): normal, user-defined and byte pieces */
    uint32_t byte_ids[256];
    uint32_t piece_bytes_max = 1;
    bool cut_before_spaces = true; /* no piece has a space after something else: rule b of the header */
};

static enum status read_file(const char *path, std::string *out)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat info;
    enum status st = STATUS_OK;
    if (fstat(fd, &info) != 0) {
        st = STATUS_FAIL(STATUS_IO, "cannot stat %s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = STATUS_FAIL(STATUS_INVALID, "%s is not a regular file", path);
    } else if (info.st_size > (off_t)TOKENIZER_FILE_BYTES_MAX) {
        st = STATUS_FAIL(STATUS_LIMIT, "%s has %lld bytes, more than %u", path, (long long)info.st_size,
                         TOKENIZER_FILE_BYTES_MAX);
    } else {
        size_t done = 0;
        try {
            out->resize((size_t)info.st_size);
        } catch (...) {
            st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %s", path);
        }
        while (st == STATUS_OK && done < out->size()) {
            const ssize_t got = read(fd, &(*out)[done], out->size() - done);
            if (got > 0)
                done += (size_t)got;
            else if (got == 0)
                st = STATUS_FAIL(STATUS_IO, "%s became shorter while it was read", path);
            else if (errno != EINTR)
                st = STATUS_FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        }
    }
    close(fd);
    return st;
}

static enum status build_tables(const struct tokenizer_model &model, struct tokenizer *t)
{
    const std::string mark(SPACE_MARK);
    for (uint32_t id = 0; id < model.piece_count; id++) {
        const struct tokenizer_model_piece &piece = model.pieces[id];
        t->starts.push_back((uint32_t)t->bytes.size());
        bool from_text = true, after_other = false;
        if (piece.type == TOKENIZER_PIECE_BYTE) {
            t->bytes.push_back((char)piece.byte);
            t->byte_ids[piece.byte] = id;
        } else if (piece.type == TOKENIZER_PIECE_NORMAL || piece.type == TOKENIZER_PIECE_USER_DEFINED) {
            const std::string text((const char *)piece.text, piece.size);
            for (size_t at = 0; at < text.size();) {
                if (text.compare(at, mark.size(), mark) == 0) {
                    t->bytes.push_back(' ');
                    t->cut_before_spaces = t->cut_before_spaces && !after_other;
                    at += mark.size();
                } else {
                    /* A space itself never reaches a piece: sentencepiece has replaced it. */
                    t->bytes.push_back(text[at++]);
                    after_other = true;
                }
            }
        } else {
            from_text = false;
        }
        t->from_text.push_back(from_text);
        const uint32_t size = (uint32_t)t->bytes.size() - t->starts.back();
        if (size > t->piece_bytes_max)
            t->piece_bytes_max = size;
    }
    t->starts.push_back((uint32_t)t->bytes.size());
    return STATUS_OK;
}

static enum status check_control(const struct tokenizer_model &model, const char *what, uint32_t id)
{
    if (id >= model.piece_count || model.pieces[id].type != TOKENIZER_PIECE_CONTROL)
        return STATUS_FAIL(STATUS_INVALID, "config.json's %s %u is not a control piece of the tokenizer", what, id);
    return STATUS_OK;
}

/* Encodes text and requires its ids' bytes to be the text. */
static enum status probe(const struct tokenizer *t, const std::string &text)
{
    std::vector<uint32_t> ids(text.size() + 1);
    size_t count = 0;
    TRY(tokenizer_encode(t, text.data(), text.size(), ids.data(), ids.size(), &count));
    std::string back;
    for (size_t i = 0; i < count && i < ids.size(); i++) {
        size_t size;
        const char *bytes = (const char *)tokenizer_piece(t, ids[i], &size);
        back.append(bytes, size);
    }
    if (back != text) {
        char quoted[80];
        return STATUS_FAIL(STATUS_UNSUPPORTED, "the tokenizer does not keep the text \"%s\"",
                           utf8_quote(text.data(), text.size(), quoted, sizeof quoted));
    }
    return STATUS_OK;
}

static enum status probe_all(const struct tokenizer *t)
{
    static const char *const texts[] = {
        "a",
        " ",
        "  ",
        " a",
        "a ",
        "  two  spaces  ",
        "\n",
        "\r\n\t",
        "\x01\x7F",
        "The quick brown fox.",
        "0123456789",
        "\xEF\xAC\x81 \xE2\x91\xA0 \xEF\xBC\xA1 \xC2\xBD",       /* ligature fi, circled 1, full-width A, one half */
        "e\xCC\x81 \xC3\xA9 \xE2\x84\xAB \xC2\xA0 \xE3\x80\x80", /* combining acute, angstrom, two odd spaces */
        "\xE2\x80\x8B\xEF\xBB\xBF\xC2\xAD",                      /* zero width, byte order mark, soft hyphen */
        "\xF0\x9F\x99\x82\xF4\x8F\xBF\xBF\xEF\xBF\xBD",          /* emoji, U+10FFFF, U+FFFD */
        SPACE_MARK,
        " a" SPACE_MARK "b ",
        "<0x41>",
        "<unk><s></s>",
    };
    for (const char *text : texts)
        TRY(probe(t, text));
    TRY(probe(t, std::string("a\0b", 3)));
    /* Every piece as text: also the names of control pieces, which must come out as plain text. */
    for (int id = 0; id < t->processor.GetPieceSize(); id++) {
        TRY(probe(t, t->processor.IdToPiece(id)));
        size_t size;
        const char *bytes = (const char *)tokenizer_piece(t, (uint32_t)id, &size);
        if (size > 1 && t->from_text[(size_t)id])
            TRY(probe(t, std::string(bytes, size)));
    }
    return STATUS_OK;
}

static enum status open_model(const char *path, const struct tokenizer_config *config,
                              std::unique_ptr<struct tokenizer> *out)
{
    std::string file;
    struct tokenizer_model model;
    TRY(read_file(path, &file));
    TRY(tokenizer_model_read(file.data(), file.size(), config->vocab_size, &model));
    struct model_guard {
        struct tokenizer_model *model;
        ~model_guard()
        {
            tokenizer_model_free(model);
        }
    } guard{&model};

    TRY(check_control(model, "bos_token_id", config->bos_id));
    TRY(check_control(model, "eos_token_id", config->eos_id));
    TRY(check_control(model, "turn_token_id", config->turn_id));
    TRY(check_control(model, "text_token_id", config->text_id));
    std::unique_ptr<struct tokenizer> t(new struct tokenizer());
    TRY(build_tables(model, t.get()));
    const auto loaded = t->processor.LoadFromSerializedProto(file);
    if (!loaded.ok())
        return STATUS_FAIL(STATUS_INVALID, "sentencepiece refuses the model: %s", loaded.ToString().c_str());
    if (t->processor.GetPieceSize() != (int)model.piece_count)
        return STATUS_FAIL(STATUS_INVALID, "sentencepiece counts %d pieces, the file has %u",
                           t->processor.GetPieceSize(), model.piece_count);
    TRY(probe_all(t.get()));
    *out = std::move(t);
    return STATUS_OK;
}

enum status tokenizer_open(const char *path, const struct tokenizer_config *config, struct tokenizer **out)
{
    try {
        std::unique_ptr<struct tokenizer> t;
        const enum status st = open_model(path, config, &t);
        if (st != STATUS_OK)
            return STATUS_FAIL(st, "%s: %s", path, status_detail());
        *out = t.release();
        return STATUS_OK;
    } catch (const std::bad_alloc &) {
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory", path);
    } catch (const std::exception &error) {
        return STATUS_FAIL(STATUS_INVALID, "%s: %s", path, error.what());
    } catch (...) {
        return STATUS_FAIL(STATUS_INVALID, "%s: sentencepiece failed", path);
    }
}

void tokenizer_close(struct tokenizer **tokenizer)
{
    delete *tokenizer;
    *tokenizer = nullptr;
}

struct id_sink {
    uint32_t *ids;
    size_t capacity, count;
};

static void sink_add(struct id_sink *sink, uint32_t id)
{
    if (sink->count < sink->capacity)
        sink->ids[sink->count] = id;
    sink->count++;
}

/* The end of the segment that starts at text[0]: rules b and c. A function of the text from there on. */
static size_t segment_end(const struct tokenizer *t, const char *text, size_t size)
{
    if (size <= TOKENIZER_SEGMENT_MIN)
        return size;
    const size_t limit = size < TOKENIZER_SEGMENT_MAX ? size : TOKENIZER_SEGMENT_MAX;
    for (size_t at = TOKENIZER_SEGMENT_MIN; t->cut_before_spaces && at < limit; at++)
        if (text[at] == ' ' && text[at - 1] != ' ')
            return at;
    size_t end = limit;
    while (end < size && ((unsigned char)text[end] & 0xC0) == 0x80)
        end--;
    return end;
}

/* text holds no U+2581. */
static enum status encode_part(const struct tokenizer *t, const char *text, size_t size, std::vector<int> *buffer,
                               struct id_sink *sink)
{
    while (size > 0) {
        const size_t end = segment_end(t, text, size);
        const auto encoded = t->processor.Encode(absl::string_view(text, end), buffer);
        if (!encoded.ok())
            return STATUS_FAIL(STATUS_INTERNAL, "sentencepiece cannot encode: %s", encoded.ToString().c_str());
        for (const int id : *buffer) {
            if (id < 0 || (size_t)id >= t->from_text.size() || !t->from_text[(size_t)id])
                return STATUS_FAIL(STATUS_INTERNAL, "text became the control or unknown id %d", id);
            sink_add(sink, (uint32_t)id);
        }
        text += end;
        size -= end;
    }
    return STATUS_OK;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, uint32_t *ids,
                             size_t capacity, size_t *count)
{
    static const char mark[] = SPACE_MARK;
    struct id_sink sink = {ids, capacity, 0};
    if (!utf8_valid(text, size))
        return STATUS_FAIL(STATUS_INVALID, "the text is not valid UTF-8");
    try {
        std::vector<int> buffer;
        while (size > 0) {
            const char *found = (const char *)memmem(text, size, mark, 3);
            const size_t part = found == nullptr ? size : (size_t)(found - text);
            TRY(encode_part(tokenizer, text, part, &buffer, &sink));
            text += part;
            size -= part;
            if (found != nullptr) {
                for (unsigned i = 0; i < 3; i++)
                    sink_add(&sink, tokenizer->byte_ids[(unsigned char)mark[i]]);
                text += 3;
                size -= 3;
            }
        }
    } catch (const std::bad_alloc &) {
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to encode a text");
    } catch (...) {
        return STATUS_FAIL(STATUS_INTERNAL, "sentencepiece failed on a text");
    }
    *count = sink.count;
    return STATUS_OK;
}

const void *tokenizer_piece(const struct tokenizer *tokenizer, uint32_t id, size_t *size)
{
    if (id + (size_t)1 >= tokenizer->starts.size()) {
        *size = 0;
        return "";
    }
    *size = tokenizer->starts[id + 1] - tokenizer->starts[id];
    return tokenizer->bytes.data() + tokenizer->starts[id];
}

uint32_t tokenizer_piece_bytes_max(const struct tokenizer *tokenizer)
{
    return tokenizer->piece_bytes_max;
}
