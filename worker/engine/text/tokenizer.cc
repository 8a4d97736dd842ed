#include "worker/engine/text/tokenizer.h"
#include <fcntl.h>
#include <sentencepiece_processor.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>
#include "worker/engine/text/tokenizer_model.h"
extern "C" {
#include "common/utf8.h"
}

#define PROBE_PIECES_MAX 16384u /* opening a model of 262,144 pieces stays under a second */
#define SPACE_MARK "\xE2\x96\x81" /* U+2581: how sentencepiece writes a space */

struct tokenizer {
    sentencepiece::SentencePieceProcessor processor;
    std::string bytes;            /* the bytes of all ids, end to end */
    std::vector<uint32_t> starts; /* (vocab + 1), into bytes */
    std::vector<bool> from_text;  /* (vocab): not special */
    std::vector<std::string> marks; /* texts of the special user-defined pieces, sorted: what may not be read as one */
    uint32_t byte_ids[256];
    uint32_t piece_bytes_max = 1;
    bool cut_before_spaces = true; /* no piece has a space after something else: rule c of the header */
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

/* The elements that people write without attributes; Gemma's models have a piece for the tags of most. */
static const char *const html_elements[] = {
    "a",     "b",    "blockquote", "body", "br",   "caption", "code", "col",    "colgroup", "dd",  "del",   "div",   "dl", "dt",
    "em",    "h1",   "h2",         "h3",   "h4",   "h5",      "h6",   "head",   "hr",       "html", "i",    "img",   "ins", "kbd",
    "li",    "mark", "ol",         "p",    "pre",  "q",       "s",    "samp",   "small",    "span", "strike", "strong", "sub", "sup",
    "table", "tbody", "td",        "tfoot", "th",  "thead",   "title", "tr",    "tt",       "u",   "ul",    "var"};

static bool is_html_tag(const std::string &text)
{
    const size_t start = text.compare(0, 2, "</") == 0 ? 2 : 1;
    if (text.size() <= start + 1 || text.front() != '<' || text.back() != '>')
        return false;
    const std::string name = text.substr(start, text.size() - start - 1);
    return std::any_of(std::begin(html_elements), std::end(html_elements), [&](const char *e) { return name == e; });
}

/* Of a user-defined piece that the configuration does not name. */
static bool looks_special(const std::string &text)
{
    if (text.find("<|") != std::string::npos || text.find("|>") != std::string::npos)
        return true;
    const bool brackets = text.size() > 2 && ((text.front() == '<' && text.back() == '>') ||
                                              (text.front() == '[' && text.back() == ']'));
    return brackets && !is_html_tag(text);
}

static bool is_named(const struct tokenizer_config *config, uint32_t id)
{
    return id == config->bos_id || id == config->turn_id || id == config->text_id ||
           std::find(config->end_ids, config->end_ids + config->end_id_count, id) != config->end_ids + config->end_id_count;
}

/* The bytes that a piece stands for; *space_inside: one of them is a space behind something else. */
static std::string piece_bytes(const struct tokenizer_model_piece &piece, bool *space_inside)
{
    const std::string text((const char *)piece.text, piece.size), mark(SPACE_MARK);
    std::string bytes;
    bool after_other = false;
    for (size_t at = 0; at < text.size();) {
        if (text.compare(at, mark.size(), mark) == 0) {
            bytes.push_back(' ');
            *space_inside = *space_inside || after_other;
            at += mark.size();
        } else {
            /* A space itself never reaches a piece: sentencepiece has replaced it. */
            bytes.push_back(text[at++]);
            after_other = true;
        }
    }
    return bytes;
}

static size_t character_size(char lead)
{
    const unsigned char byte = (unsigned char)lead;
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

static enum status build_tables(const struct tokenizer_model &model, const struct tokenizer_config *config,
                                struct tokenizer *t)
{
    for (uint32_t id = 0; id < model.piece_count; id++) {
        const struct tokenizer_model_piece &piece = model.pieces[id];
        const bool user_defined = piece.type == TOKENIZER_PIECE_USER_DEFINED;
        bool space_inside = false, from_text = true;
        std::string bytes;
        if (piece.type == TOKENIZER_PIECE_BYTE) {
            bytes.push_back((char)piece.byte);
            t->byte_ids[piece.byte] = id;
        } else if (piece.type == TOKENIZER_PIECE_NORMAL || user_defined) {
            bytes = piece_bytes(piece, &space_inside);
        } else {
            from_text = false;
        }
        if (user_defined && (is_named(config, id) || looks_special(bytes))) {
            if (bytes.size() == character_size(bytes.front()))
                return STATUS_FAIL(STATUS_UNSUPPORTED, "the special piece %u is one character, which text may hold", id);
            t->marks.push_back(bytes);
            bytes.clear();
            from_text = false;
        }
        t->cut_before_spaces = t->cut_before_spaces && !space_inside;
        t->starts.push_back((uint32_t)t->bytes.size());
        t->bytes += bytes;
        t->from_text.push_back(from_text);
        t->piece_bytes_max = std::max(t->piece_bytes_max, (uint32_t)bytes.size());
    }
    t->starts.push_back((uint32_t)t->bytes.size());
    std::sort(t->marks.begin(), t->marks.end());
    return STATUS_OK;
}

static enum status check_control(const struct tokenizer_model &model, const char *what, uint32_t id)
{
    if (id >= model.piece_count || (model.pieces[id].type != TOKENIZER_PIECE_CONTROL &&
                                    model.pieces[id].type != TOKENIZER_PIECE_USER_DEFINED))
        return STATUS_FAIL(STATUS_INVALID, "config.json's %s %u is not a control piece of the tokenizer", what, id);
    return STATUS_OK;
}

static enum status check_config(const struct tokenizer_model &model, const struct tokenizer_config *config)
{
    if (config->end_id_count == 0)
        return STATUS_FAIL(STATUS_INVALID, "config.json names no eos_token_id");
    TRY(check_control(model, "bos_token_id", config->bos_id));
    for (uint32_t i = 0; i < config->end_id_count; i++)
        TRY(check_control(model, "eos_token_id", config->end_ids[i]));
    TRY(check_control(model, "turn_token_id", config->turn_id));
    return check_control(model, "text_token_id", config->text_id);
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

static enum status probe_all(const struct tokenizer *t, const struct tokenizer_model &model)
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
    /* Pieces as text: all but the normal ones (also the names of special pieces, which must come out as plain text), and of the
     * normal ones up to PROBE_PIECES_MAX, evenly spaced. */
    const uint32_t count = model.piece_count, stride = count / PROBE_PIECES_MAX + 1;
    for (uint32_t id = 0; id < count; id++) {
        const struct tokenizer_model_piece &piece = model.pieces[id];
        if (piece.type == TOKENIZER_PIECE_NORMAL && id % stride != 0)
            continue;
        bool space_inside = false;
        TRY(probe(t, std::string((const char *)piece.text, piece.size)));
        TRY(probe(t, piece_bytes(piece, &space_inside)));
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

    TRY(check_config(model, config));
    std::unique_ptr<struct tokenizer> t(new struct tokenizer());
    TRY(build_tables(model, config, t.get()));
    const auto loaded = t->processor.LoadFromSerializedProto(file);
    if (!loaded.ok())
        return STATUS_FAIL(STATUS_INVALID, "sentencepiece refuses the model: %s", loaded.ToString().c_str());
    if (t->processor.GetPieceSize() != (int)model.piece_count)
        return STATUS_FAIL(STATUS_INVALID, "sentencepiece counts %d pieces, the file has %u",
                           t->processor.GetPieceSize(), model.piece_count);
    TRY(probe_all(t.get(), model));
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

/* The end of the segment that starts at text[0]: rules c and d. A function of the text from there on. */
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

/* text holds no U+2581 and no mark. */
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

/* Whether a mark is written at text[0]: the sorted marks that begin alike are narrowed down, byte by byte. */
static bool mark_starts(const struct tokenizer *t, const char *text, size_t size)
{
    auto low = t->marks.begin(), high = t->marks.end();
    for (size_t n = 0; n < size && low != high; n++) {
        const unsigned char byte = (unsigned char)text[n];
        low = std::lower_bound(low, high, byte, [n](const std::string &mark, unsigned char b) {
            return (unsigned char)mark[n] < b;
        });
        high = std::upper_bound(low, high, byte, [n](unsigned char b, const std::string &mark) {
            return b < (unsigned char)mark[n];
        });
        if (low != high && low->size() == n + 1)
            return true;
    }
    return false;
}

/* Cuts marks apart (rule b). text holds no U+2581. */
static enum status encode_plain(const struct tokenizer *t, const char *text, size_t size, std::vector<int> *buffer,
                                struct id_sink *sink)
{
    size_t start = 0;
    for (size_t at = 0; at < size && !t->marks.empty(); at += character_size(text[at])) {
        if (!mark_starts(t, text + at, size - at))
            continue;
        const size_t cut = at + character_size(text[at]);
        TRY(encode_part(t, text + start, cut - start, buffer, sink));
        start = cut;
    }
    return encode_part(t, text + start, size - start, buffer, sink);
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
            TRY(encode_plain(tokenizer, text, part, &buffer, &sink));
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
