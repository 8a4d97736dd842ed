#include "tests/unit/worker/unit.h"
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "worker/engine/tokenizer.h"

#define MARK "\xE2\x96\x81" /* U+2581 */

static const struct tokenizer_config folio = {.vocab_size = 4096, .bos_id = 1, .eos_id = 2, .turn_id = 3, .text_id = 4};
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

/* Cutting long texts (rule b) gives the ids of the parts, and the cut is where the header says. */
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
    static const struct tokenizer_config wrong[] = {
        {4095, 1, 2, 3, 4},    {4097, 1, 2, 3, 4},    {1, 1, 2, 3, 4},
        {1048576, 1, 2, 3, 4}, {4096, 0, 2, 3, 4},    {4096, 1, 5, 3, 4},
        {4096, 1, 2, 300, 4},  {4096, 1, 2, 3, 4096}, {4096, 1, 2, 3, UINT32_MAX},
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
    assert_int_equal(OPEN_WITH("\x12\x02\x18\x01"), STATUS_UNSUPPORTED);                 /* unigram */
    assert_int_equal(OPEN_WITH("\x12\x03\xC0\x01\x01"), STATUS_UNSUPPORTED); /* treat_whitespace_as_suffix */
    assert_int_equal(OPEN_WITH("\x0A\x03\x0A\x01q"), STATUS_INVALID);        /* one piece more */
    assert_int_equal(OPEN_WITH("\x0A\x00"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x0A\x7F"), STATUS_INVALID); /* longer than the file */
    assert_int_equal(OPEN_WITH("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x00"), STATUS_INVALID);
    assert_int_equal(OPEN_WITH("\x32\x01x"), STATUS_OK); /* an unknown field is ignored */
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
    };
    return cmocka_run_group_tests(tests, open_folio, close_folio);
}
