#include "tests/unit/worker/unit.h"
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "worker/engine/text/tokenizer.h"

#define MARK "\xE2\x96\x81" /* U+2581 */

static const uint32_t folio_ends[] = {2};
static const struct tokenizer_config folio = {
    .vocab_size = 4096, .bos_id = 1, .turn_id = 3, .text_id = 4, .end_ids = folio_ends, .end_id_count = 1};
static char model_path[512];
static struct tokenizer *tokenizer;

static int open_folio(void **state)
{
    (void)state;
    source_path("deploy/models/folio/tokenizer.model", model_path, sizeof model_path);
    assert_ok(tokenizer_open(model_path, &folio, &tokenizer));
    return 0;
}

static int close_folio(void **state)
{
    (void)state;
    tokenizer_close(&tokenizer);
    tokenizer_close(&tokenizer); /* NULL is accepted */
    return 0;
}

/* Encodes, checks that no id is a control or unknown one and that the bytes come back. Returns the number of ids. */
static size_t round_trip(const char *text, size_t size)
{
    size_t count = 0, at = 0;
    uint32_t *ids = malloc((size + 1) * sizeof *ids);
    assert_ok(tokenizer_encode(tokenizer, text, size, ids, size + 1, &count));
    assert_true(count <= size);
    for (size_t i = 0; i < count; i++) {
        size_t piece_size;
        assert_true(ids[i] > 4 && ids[i] < folio.vocab_size);
        const void *piece = tokenizer_piece(tokenizer, ids[i], &piece_size);
        assert_true(piece_size > 0 && piece_size <= tokenizer_piece_bytes_max(tokenizer) && at + piece_size <= size);
        assert_memory_equal(text + at, piece, piece_size);
        at += piece_size;
    }
    assert_int_equal(at, size);
    free(ids);
    return count;
}

static void nasty_texts_come_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "\n",
        "\n\n",
        " \n ",
        "  two  spaces  ",
        "tab\t",
        "a\r\nb",
        "<turn>",
        "<text>",
        "<end>",
        "<bos>",
        "<unk>",
        "<0x0A>",
        "a<turn>b<end>",
        "</s>",
        "<s>",
        "[turn]",
        "\x01\x02\x1B[31m\x7F",
        MARK,
        MARK MARK,
        " " MARK " ",
        "a" MARK "b",
        MARK "the",
        "\xE2\x96\x82\xE2\x96\x80", /* and its neighbours */
        "\xEF\xBF\xBD\xEF\xBB\xBF\xE2\x80\x8B\xE2\x80\x8D\xE2\x80\xAE",
        "e\xCC\x81\xCC\x81\xCC\x81",
        "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7",
        "\xF4\x8F\xBF\xBF",
        "\xEF\xAC\x81\xE2\x85\xA3\xEF\xBC\xA1",
        "\xD7\xA9\xD7\x9C\xD7\x95\xD7\x9D \xD8\xB3\xD9\x84\xD8\xA7\xD9\x85 \xE4\xBD\xA0\xE5\xA5\xBD \xED\x95\x9C",
        "\xC2\xA0\xE3\x80\x80\xE2\x80\xA8",
        "To be, or not to be, that is the question:",
        "x=1;\n\tif (y) { return; }\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        round_trip(texts[i], strlen(texts[i]));
    round_trip("a\0b\0", 4);
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const unsigned length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (unsigned i = length; i-- > 1; c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF0 << (4 - length)) | c);
    return length;
}

static void random_texts_come_back(void **state)
{
    (void)state;
    static const uint32_t ranges[][2] = {{1, 0x7F},        {0x20, 0x2FF},    {0x370, 0x1FFF},    {0x2570, 0x2590},
                                         {0x3000, 0xD7FF}, {0xE000, 0xFFFD}, {0x10000, 0x10FFFF}};
    uint64_t rng = 5;
    for (int round = 0; round < 20000; round++) {
        char text[200];
        size_t size = 0;
        for (uint32_t n = rng_below(&rng, 40); n > 0; n--) {
            const uint32_t *range = ranges[rng_below(&rng, 7)];
            if (rng_below(&rng, 3) == 0)
                text[size++] = " \n\t<"[rng_below(&rng, 4)];
            else
                size += put_utf8(text + size, range[0] + rng_below(&rng, range[1] - range[0] + 1));
        }
        round_trip(text, size);
    }
}

static void a_typed_u2581_is_not_a_space(void **state)
{
    (void)state;
    uint32_t space[8], typed[8];
    size_t space_count, typed_count;
    assert_ok(tokenizer_encode(tokenizer, "a b", 3, space, 8, &space_count));
    assert_ok(tokenizer_encode(tokenizer, "a" MARK "b", 5, typed, 8, &typed_count));
    assert_int_equal(typed_count, 5);
    assert_int_equal(typed[1], 5 + 0xE2); /* byte pieces follow the five control pieces */
    assert_int_equal(typed[2], 5 + 0x96);
    assert_int_equal(typed[3], 5 + 0x81);
}

static void pieces_of_control_ids_are_empty(void **state)
{
    (void)state;
    size_t size;
    for (uint32_t id = 0; id < 5; id++) {
        tokenizer_piece(tokenizer, id, &size);
        assert_int_equal(size, 0);
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint8_t *bytes = tokenizer_piece(tokenizer, 5 + byte, &size);
        assert_int_equal(size, 1);
        assert_int_equal(bytes[0], byte);
    }
    static const uint32_t outside[] = {4096, 4097, UINT32_MAX};
    for (int i = 0; i < 3; i++) {
        tokenizer_piece(tokenizer, outside[i], &size);
        assert_int_equal(size, 0);
    }
}

static void invalid_utf8_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"\xFF",     "a\xC3", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                        "\xE2\x82", "ok\x80"};
    uint32_t ids[16];
    size_t count = 99;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_int_equal(tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), ids, 16, &count), STATUS_INVALID);
}

static void counting_goes_past_the_capacity(void **state)
{
    (void)state;
    uint32_t ids[4] = {9, 9, 9, 9};
    size_t count;
    assert_ok(tokenizer_encode(tokenizer, "1234567", 7, ids, 2, &count));
    assert_int_equal(count, 7);
    assert_int_equal(ids[2], 9);
    assert_ok(tokenizer_encode(tokenizer, "1234567", 7, NULL, 0, &count));
    assert_int_equal(count, 7);
}

/* Cutting long texts (rule c) gives the ids of the parts, and the cut is where the header says. */
static void long_texts_are_cut_before_spaces(void **state)
{
    (void)state;
    static char text[300000];
    static uint32_t whole[300000], parts[300000];
    size_t size = 0, whole_count, at = 0, parts_count = 0;
    uint64_t rng = 8;
    while (size < sizeof text - 64)
        size += (size_t)sprintf(text + size, "%s%s",
                                (const char *[]){"the", "quick", "brown", "fox\n", "jumps, over"}[rng_below(&rng, 5)],
                                (const char *[]){" ", " ", "  ", "\n", ""}[rng_below(&rng, 5)]);
    assert_ok(tokenizer_encode(tokenizer, text, size, whole, 300000, &whole_count));
    while (at < size) { /* any earlier cut of the same kind gives the same ids */
        size_t end = at + 100, count;
        while (end < size && !(text[end] == ' ' && text[end - 1] != ' '))
            end++;
        if (end > size)
            end = size;
        assert_ok(tokenizer_encode(tokenizer, text + at, end - at, parts + parts_count, 300000 - parts_count, &count));
        parts_count += count;
        at = end;
    }
    assert_int_equal(whole_count, parts_count);
    assert_memory_equal(whole, parts, whole_count * sizeof whole[0]);
}

/* Row B12: bounded time per byte. The bound is generous (measured: 0.15 to 0.6 us a byte); quadratic time would be
 * 10^5. */
static void pathological_texts_take_linear_time(void **state)
{
    (void)state;
    static const char *const units[] = {"a",
                                        " ",
                                        "\n",
                                        "\xCC\x81",
                                        "\xE2\x80\x8B",
                                        "thethethe",
                                        "the quick brown fox ",
                                        MARK,
                                        "0",
                                        "\xF0\x9F\x99\x82",
                                        "ab",
                                        "<turn>"};
    const size_t size = 1 << 20;
    char *text = malloc(size + 64);
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        size_t at = 0;
        while (at < size) {
            memcpy(text + at, units[u], strlen(units[u]));
            at += strlen(units[u]);
        }
        const uint64_t start = clock_now_us();
        const size_t count = round_trip(text, at);
        const uint64_t took = clock_now_us() - start;
        print_message("%8.3f us a byte, %zu ids: 1 MiB of unit %zu\n", (double)took / (double)at, count, u);
        assert_true(took < 20 * at);
    }
    free(text);
}

/* ---- files that are not what they should be ---- */

static char *read_model(size_t *size)
{
    FILE *file = fopen(model_path, "rb");
    assert_non_null(file);
    char *bytes = malloc(1 << 20);
    *size = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

static enum status open_bytes(const void *bytes, size_t size, const struct tokenizer_config *config)
{
    char path[] = "/tmp/roost-tokenizer-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    close(fd);
    struct tokenizer *opened = NULL;
    const enum status st = tokenizer_open(path, config, &opened);
    assert_true((st == STATUS_OK) == (opened != NULL));
    if (opened != NULL)
        tokenizer_close(&opened);
    unlink(path);
    return st;
}

static void files_that_are_no_models(void **state)
{
    (void)state;
    struct tokenizer *opened = NULL;
    assert_int_equal(tokenizer_open("/nonexistent/tokenizer.model", &folio, &opened), STATUS_NOT_FOUND);
    assert_int_equal(tokenizer_open("/tmp", &folio, &opened), STATUS_INVALID);
    assert_int_equal(tokenizer_open("/dev/zero", &folio, &opened), STATUS_INVALID);
    char fifo[] = "/tmp/roost-fifo-XXXXXX";
    assert_non_null(mkdtemp(fifo));
    char path[64];
    snprintf(path, sizeof path, "%s/f", fifo);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(tokenizer_open(path, &folio, &opened), STATUS_INVALID); /* and does not wait for a writer */
    unlink(path);
    snprintf(path, sizeof path, "%s/large", fifo);
    FILE *large = fopen(path, "wb");
    assert_int_equal(ftruncate(fileno(large), (off_t)TOKENIZER_FILE_BYTES_MAX + 1), 0);
    fclose(large);
    assert_int_equal(tokenizer_open(path, &folio, &opened), STATUS_LIMIT);
    unlink(path);
    rmdir(fifo);
    assert_null(opened);
    assert_int_equal(open_bytes("", 0, &folio), STATUS_INVALID);
    assert_int_equal(open_bytes("{\"a\": 1}", 8, &folio), STATUS_INVALID);
}

static void truncated_and_random_files(void **state)
{
    (void)state;
    size_t size;
    char *bytes = read_model(&size);
    uint64_t rng = 77;
    for (size_t cut = 0; cut < size; cut += cut < 200 || cut > size - 300 ? 1 : 997)
        assert_int_not_equal(open_bytes(bytes, cut, &folio), STATUS_OK);
    char *noise = malloc(5000);
    for (int round = 0; round < 300; round++) {
        const size_t count = rng_below(&rng, 5000);
        for (size_t i = 0; i < count; i++)
            noise[i] = (char)rng_next(&rng);
        assert_int_not_equal(open_bytes(noise, count, &folio), STATUS_OK);
    }
    free(noise);
    /* Flipped bytes: refused or still lossless (opening probes it), never a crash. */
    unsigned refused = 0;
    for (int round = 0; round < 150; round++) {
        char *copy = malloc(size);
        memcpy(copy, bytes, size);
        for (uint32_t n = 1 + rng_below(&rng, 4); n > 0; n--)
            copy[rng_below(&rng, (uint32_t)size)] = (char)rng_next(&rng);
        refused += open_bytes(copy, size, &folio) != STATUS_OK;
        free(copy);
    }
    assert_true(refused > 10);
    free(bytes);
}

static void a_model_for_another_configuration(void **state)
{
    (void)state;
    size_t size;
    char *bytes = read_model(&size);
    static const uint32_t bad_ends[] = {2, 5};
    static const struct tokenizer_config wrong[] = {
        {4095, 1, 3, 4, folio_ends, 1},    {4097, 1, 3, 4, folio_ends, 1},   {1, 1, 3, 4, folio_ends, 1},
        {1048576, 1, 3, 4, folio_ends, 1}, {4096, 0, 3, 4, folio_ends, 1},   {4096, 1, 3, 4, bad_ends, 2},
        {4096, 1, 300, 4, folio_ends, 1},  {4096, 1, 3, 4096, folio_ends, 1}, {4096, 1, 3, UINT32_MAX, folio_ends, 1},
        {4096, 1, 3, 4, folio_ends, 0},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(open_bytes(bytes, size, &wrong[i]), STATUS_INVALID);
    free(bytes);
}

/* Appends a field to the end of the model file: for messages, protobuf merges it with the earlier one. */
static enum status open_with(const char *suffix, size_t suffix_size)
{
    size_t size;
    char *bytes = read_model(&size);
    memcpy(bytes + size, suffix, suffix_size);
    const enum status st = open_bytes(bytes, size + suffix_size, &folio);
    free(bytes);
    return st;
}
#define OPEN_WITH(suffix) open_with(suffix, sizeof suffix - 1)

static void models_that_lose_text(void **state)
{
    (void)state;
    assert_int_equal(OPEN_WITH("\x1A\x02\x18\x01"), STATUS_UNSUPPORTED);                 /* add_dummy_prefix */
    assert_int_equal(OPEN_WITH("\x1A\x02\x20\x01"), STATUS_UNSUPPORTED);                 /* remove_extra_whitespaces */
    assert_int_equal(OPEN_WITH("\x1A\x02\x28\x00"), STATUS_UNSUPPORTED);                 /* escape_whitespaces off */
    assert_int_equal(OPEN_WITH("\x1A\x06\x12\x04\x04\x00\x00\x00"), STATUS_UNSUPPORTED); /* precompiled_charsmap */
    assert_int_equal(OPEN_WITH("\x12\x03\x98\x02\x00"), STATUS_UNSUPPORTED);             /* byte_fallback off */
    assert_int_equal(OPEN_WITH("\x12\x02\x18\x01"), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_detail(), "a unigram model"));
    assert_int_equal(OPEN_WITH("\x12\x02\x18\x04"), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_detail(), "a character model"));
    assert_int_equal(OPEN_WITH("\x12\x03\xC0\x01\x01"), STATUS_UNSUPPORTED); /* treat_whitespace_as_suffix */
    assert_int_equal(OPEN_WITH("\x0A\x03\x0A\x01q"), STATUS_INVALID);        /* one piece more */
    assert_int_equal(OPEN_WITH("\x0A\x00"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x0A\x7F"), STATUS_INVALID); /* longer than the file */
    assert_int_equal(OPEN_WITH("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x00"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x32\x01x"), STATUS_OK); /* an unknown field is ignored */
}

/* ---- a model like Gemma's: user-defined pieces for marks, runs of white space and tags ---- */

struct writer { /* of the protobuf that tokenizer_model.h reads */
    uint8_t *bytes;
    size_t size, capacity;
};

static void put(struct writer *w, const void *bytes, size_t size)
{
    if (w->size + size > w->capacity) {
        w->capacity = 2 * (w->size + size);
        w->bytes = realloc(w->bytes, w->capacity);
        assert_non_null(w->bytes);
    }
    memcpy(w->bytes + w->size, bytes, size);
    w->size += size;
}

static void put_piece(struct writer *w, const char *text, float score, uint8_t type)
{
    const uint8_t size = (uint8_t)strlen(text);
    const uint8_t head[] = {0x0A, (uint8_t)(size + 9), 0x0A, size};
    assert_true(size < 100);
    put(w, head, sizeof head);
    put(w, text, size);
    put(w, "\x15", 1); /* score, fixed32 */
    put(w, &score, 4);
    put(w, (const uint8_t[]){0x18, type}, 2);
}

static const char *const gemma_user_defined[] = { /* from id 4 on */
    "<mask>", "[multimodal]", "<unused0>", "<unused1>", "<unused17>", "<start_of_turn>", "<end_of_turn>",
    "\n", "\n\n", "\n\n\n", "\n\n\n\n", MARK MARK, MARK MARK MARK, MARK MARK MARK MARK, "\t\t",
    "<table>", "</table>", "<td>", "</td>", "<h1>", "<b>", "</b>", "<code>", "<start_of_image>", "<|turn>", "<turn|>", "<|think|>",
    "<image_soft_token>", "[@BOS@]", "roost"};
enum { GEMMA_MASK = 4, GEMMA_UNUSED0 = 6, GEMMA_TURN = 9, GEMMA_END_TURN = 10, GEMMA_NEWLINE = 11, GEMMA_SPACES2 = 15,
       GEMMA_TABLE = 19, GEMMA_IMAGE = 27, GEMMA_TURN4 = 28, GEMMA_WORD = 33, GEMMA_BYTES = 34 };
static const uint32_t gemma_ends[] = {1, GEMMA_END_TURN};

/* pad, eos, bos, unk, the pieces above, 256 bytes, letters and short words, then made-up words up to vocab. */
static struct tokenizer_config write_gemma(struct writer *w, uint32_t vocab)
{
    static const char *const words[] = {"th", "he", "the", "er", "in", "an", "and", "re", "en", "on", "st", "or", "of", "tu", "rn", "turn",
                                        "sta", "star", "start", MARK "t", MARK "the", MARK "a", "mo", "del", "model", "us", "user", "<s"};
    uint32_t id = 0;
    char text[32];
    put_piece(w, "<pad>", 0, 3);
    put_piece(w, "<eos>", 0, 3);
    put_piece(w, "<bos>", 0, 3);
    put_piece(w, "<unk>", 0, 2);
    for (id = 4; id < GEMMA_BYTES; id++)
        put_piece(w, gemma_user_defined[id - 4], 0, 4);
    for (unsigned b = 0; b < 256; b++, id++) {
        snprintf(text, sizeof text, "<0x%02X>", b);
        put_piece(w, text, 0, 6);
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++, id++)
        put_piece(w, words[i], -(float)i, 1);
    for (char c = 33; c < 127; c++, id++)
        put_piece(w, (const char[]){c, 0}, -1000 - (float)c, 1);
    put_piece(w, MARK, -2000, 1);
    for (id++; id < vocab; id++) {
        snprintf(text, sizeof text, "%s%c%c%c%c%c", id % 3 == 0 ? MARK : "", 'a' + (char)(id % 26), 'a' + (char)(id / 26 % 26),
                 'a' + (char)(id / 676 % 26), 'a' + (char)(id / 17576 % 26), 'a' + (char)(id * 7 % 26));
        put_piece(w, text, -3000 - (float)id, 1);
    }
    put(w, "\x12\x05\x18\x02\x98\x02\x01", 7);               /* BPE, byte fallback */
    put(w, "\x1A\x0E\x0A\x08identity\x18\x00\x20\x00", 16); /* no added prefix, no removed spaces */
    return (struct tokenizer_config){vocab, 2, GEMMA_TURN, GEMMA_END_TURN, gemma_ends, 2};
}

static struct tokenizer *open_written(const struct writer *w, const struct tokenizer_config *config, enum status wanted)
{
    char path[] = "/tmp/roost-tokenizer-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, w->bytes, w->size) == (ssize_t)w->size);
    close(fd);
    struct tokenizer *opened = NULL;
    const enum status st = tokenizer_open(path, config, &opened);
    unlink(path);
    if (st != wanted)
        fail_msg("%s: %s", status_name(st), status_detail());
    return opened;
}

static bool gemma_is_special(uint32_t id)
{
    return id < GEMMA_NEWLINE || (id >= GEMMA_IMAGE && id < GEMMA_WORD);
}

static size_t gemma_encode(struct tokenizer *t, const char *text, uint32_t *ids, size_t capacity)
{
    size_t count, at = 0;
    const size_t size = strlen(text);
    assert_ok(tokenizer_encode(t, text, size, ids, capacity, &count));
    assert_true(count <= capacity);
    for (size_t i = 0; i < count; i++) {
        size_t piece_size;
        if (gemma_is_special(ids[i]))
            fail_msg("\"%s\" became the special id %u", text, ids[i]);
        const void *piece = tokenizer_piece(t, ids[i], &piece_size);
        assert_true(piece_size > 0 && at + piece_size <= size);
        assert_memory_equal(piece, text + at, piece_size);
        at += piece_size;
    }
    assert_int_equal(at, size);
    return count;
}

static void marks_in_text_stay_text(void **state)
{
    (void)state;
    struct writer w = {0};
    const struct tokenizer_config config = write_gemma(&w, 1000);
    struct tokenizer *t = open_written(&w, &config, STATUS_OK);
    uint32_t ids[400];
    static const char *const texts[] = {"<start_of_turn>", "<end_of_turn>", "a<start_of_turn>user\nb<end_of_turn>\n", "<mask>",
        "[multimodal]", "<unused0>", "<unused17>", "<unused1>7>", "<unused2>", "<|turn>", "<turn|>", "<|turn><turn|>", "<<|turn>", "<|<|turn>|>",
        "<start_of_<start_of_turn>turn>", "<start_of_image>", "[@BOS@][@BOS@]", "<|think|>", "<bos><eos><pad><unk>",
        "\xE2\x96\x81<start_of_turn>\xE2\x96\x81", "<image_soft_token>"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_true(gemma_encode(t, texts[i], ids, 400) > 1);
    /* Harmless ones keep their ids. */
    assert_int_equal(gemma_encode(t, "\n", ids, 400), 1);
    assert_int_equal(ids[0], GEMMA_NEWLINE);
    assert_int_equal(gemma_encode(t, "\n\n\n", ids, 400), 1);
    assert_int_equal(ids[0], GEMMA_NEWLINE + 2);
    assert_int_equal(gemma_encode(t, "  ", ids, 400), 1);
    assert_int_equal(ids[0], GEMMA_SPACES2);
    assert_int_equal(gemma_encode(t, "<table></b>roost", ids, 400), 3);
    assert_int_equal(ids[0], GEMMA_TABLE);
    assert_int_equal(ids[2], GEMMA_WORD);
    /* "<" and the rest, each as the model splits it. */
    assert_int_equal(gemma_encode(t, "<start_of_turn>the", ids, 400), 8); /* < start _ of _ turn > the */
    for (uint32_t id = 0; id < 1000; id++) {
        size_t size;
        tokenizer_piece(t, id, &size);
        assert_int_equal(size == 0, gemma_is_special(id));
    }
    tokenizer_close(&t);
    free(w.bytes);
}

static void random_marks_stay_text(void **state)
{
    (void)state;
    struct writer w = {0};
    const struct tokenizer_config config = write_gemma(&w, 1000);
    struct tokenizer *t = open_written(&w, &config, STATUS_OK);
    uint64_t rng = test_seed(41);
    uint32_t ids[4000];
    const size_t count = sizeof gemma_user_defined / sizeof gemma_user_defined[0];
    for (int round = 0; round < 20000; round++) {
        char text[600] = "";
        for (uint32_t n = 1 + rng_below(&rng, 8); n > 0; n--) { /* pieces, parts of pieces, letters */
            const char *piece = gemma_user_defined[rng_below(&rng, (uint32_t)count)];
            const size_t size = strlen(piece), from = rng_below(&rng, 3) == 0 && piece[0] < 127 && piece[0] > 32 ? rng_below(&rng, (uint32_t)size) : 0;
            strcat(text, piece + from);
            if (rng_below(&rng, 4) == 0 && (unsigned char)text[strlen(text) - 1] < 128)
                text[strlen(text) - 1] = '\0';
            if (rng_below(&rng, 4) == 0)
                strcat(text, (const char *[]){"<", " ", "\xC3\xA9", "\n", "the"}[rng_below(&rng, 5)]);
        }
        gemma_encode(t, text, ids, 4000);
    }
    tokenizer_close(&t);
    free(w.bytes);
}

static void a_mark_of_one_character_is_refused(void **state)
{
    (void)state;
    struct writer w = {0};
    struct tokenizer_config config = write_gemma(&w, 1000);
    config.turn_id = GEMMA_NEWLINE;
    assert_null(open_written(&w, &config, STATUS_UNSUPPORTED));
    config.turn_id = 999; /* a normal piece */
    assert_null(open_written(&w, &config, STATUS_INVALID));
    config.turn_id = GEMMA_TURN4;
    config.text_id = GEMMA_TURN4 + 1;
    struct tokenizer *t = open_written(&w, &config, STATUS_OK);
    tokenizer_close(&t);
    free(w.bytes);
}

/* A file of Gemma's size (262,144 pieces) opens in about 0.6 s here; the bound leaves room for slow machines and sanitizers. */
static void a_large_model_opens_quickly(void **state)
{
    (void)state;
    struct writer w = {0};
    const struct tokenizer_config config = write_gemma(&w, 262144);
    const uint64_t start = clock_now_us();
    struct tokenizer *t = open_written(&w, &config, STATUS_OK);
    const uint64_t took = clock_now_us() - start;
    print_message("%u pieces, %.1f MB: %.0f ms\n", config.vocab_size, (double)w.size / 1e6, (double)took / 1000);
    assert_true(took < 20000000);
    tokenizer_close(&t);
    free(w.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nasty_texts_come_back),
        cmocka_unit_test(random_texts_come_back),
        cmocka_unit_test(a_typed_u2581_is_not_a_space),
        cmocka_unit_test(pieces_of_control_ids_are_empty),
        cmocka_unit_test(invalid_utf8_is_refused),
        cmocka_unit_test(counting_goes_past_the_capacity),
        cmocka_unit_test(long_texts_are_cut_before_spaces),
        cmocka_unit_test(pathological_texts_take_linear_time),
        cmocka_unit_test(files_that_are_no_models),
        cmocka_unit_test(truncated_and_random_files),
        cmocka_unit_test(a_model_for_another_configuration),
        cmocka_unit_test(models_that_lose_text),
        cmocka_unit_test(marks_in_text_stay_text),
        cmocka_unit_test(random_marks_stay_text),
        cmocka_unit_test(a_mark_of_one_character_is_refused),
        cmocka_unit_test(a_large_model_opens_quickly),
    };
    return cmocka_run_group_tests(tests, open_folio, close_folio);
}
