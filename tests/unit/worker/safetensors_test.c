/* model.safetensors as hostile input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "worker/engine/model/safetensors.h"

static char dir_[] = "/tmp/roost-safetensors-XXXXXX";
static char path_[256];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir_))
        return -1;
    snprintf(path_, sizeof path_, "%s/model.safetensors", dir_);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path_);
    return rmdir(dir_);
}

static void write_file(uint64_t length, const char *header, size_t header_size, size_t data_size)
{
    FILE *file = fopen(path_, "wb");
    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> 8 * i & 0xff), file);
    fwrite(header, 1, header_size, file);
    for (size_t i = 0; i < data_size; i++)
        fputc((int)(i % 100), file);
    assert_int_equal(fclose(file), 0);
}

/* The header padded with spaces to a multiple of 8, then data_size bytes. */
static enum status open_text(const char *header, size_t data_size, struct safetensors **out)
{
    size_t size = strlen(header), padded = (size + 7) / 8 * 8;
    char *text = malloc(padded + 1);
    memset(text, ' ', padded);
    memcpy(text, header, size);
    write_file(padded, text, padded, data_size);
    free(text);
    return safetensors_open(path_, out);
}

static void assert_refused(enum status got, enum status want, const char *word, const char *what)
{
    if (got != want || !strstr(status_detail(), word))
        fail_msg("%.200s: %s, %s", what, status_name(got), status_detail());
}

static void good_file_is_read(void **state)
{
    (void)state;
    struct safetensors *file = NULL;
    enum status st = open_text("{\"__metadata__\":{\"format\":\"x\",\"k\":\"v\"},"
                               "\"b\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[8,14]},"
                               "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 14, &file);
    if (st != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_int_equal(safetensors_count(file), 2);
    assert_string_equal(safetensors_at(file, 0)->name, "a");
    const struct safetensors_tensor *b = safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 6);
    assert_int_equal(((const int8_t *)b->data)[0], 8);
    assert_null(safetensors_find(file, "c"));
    assert_string_equal(safetensors_metadata(file, "k"), "v");
    assert_null(safetensors_metadata(file, "l"));
    size_t size;
    assert_non_null(safetensors_bytes(file, &size));
    assert_true(size > 14);
    safetensors_close(&file);
    assert_null(file);
    safetensors_close(&file);
}

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static const struct refusal {
    const char *header;
    size_t data_size;
    enum status status;
    const char *word;
} refusals_[] = {
    {"", 0, STATUS_INVALID, "header"},
    {"not json", 0, STATUS_INVALID, "'{'"},
    {"[]", 0, STATUS_INVALID, "'{'"},
    {" {}", 0, STATUS_INVALID, "'{'"},
    {"{\"a\":", 0, STATUS_INVALID, "header"},
    {"{}x", 0, STATUS_INVALID, "header"},
    {"{}", 4, STATUS_INVALID, "after the last"},
    {"{\"a\":1}", 0, STATUS_INVALID, "want an object"},
    {"{\"a\":{}}", 0, STATUS_INVALID, "want an object"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("a", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "duplicate"},
    {"{\"a\":{\"dtype\":\"I8\",\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "duplicate"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4],\"more\":1}}", 4, STATUS_INVALID, "want an object"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"offsets\":[0,4]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"type\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "dtype"},
    {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "dtype"},
    {"{" T("a", "F64", "[1]", "0", "8") "}", 8, STATUS_UNSUPPORTED, "F64"},
    {"{" T("a", "F8_E4M3", "[4]", "0", "4") "}", 4, STATUS_UNSUPPORTED, "F8_E4M3"},
    {"{" T("a", "BF16", "[3]", "0", "4") "}", 4, STATUS_INVALID, "its shape needs 6"},
    {"{" T("a", "F16", "[9223372036854775807,2]", "0", "4") "}", 4, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[1]", "0", "1") "," T("b", "BF16", "[1]", "1", "3") "}", 3, STATUS_INVALID, "multiple of 2"},
    {"{" T("a", "Q4", "[2]", "0", "4") "}", 4, STATUS_INVALID, "unknown dtype"},
    {"{" T("a", "i8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "unknown dtype"},
    {"{" T("a", "I8", "4", "0", "4") "}", 4, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[]", "0", "1") "}", 1, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[1,1,1,1,4]", "0", "4") "}", 4, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[-4]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[4.0]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[\"4\"]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[0]", "0", "0") "}", 0, STATUS_INVALID, "positive"},
    {"{" T("a", "F32", "[4611686018427387905]", "0", "4") "}", 4, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[4294967296,4294967296]", "0", "0") "}", 0, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[65536,65536,65536,65536]", "0", "0") "}", 0, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[9223372036854775808]", "0", "4") "}", 4, STATUS_INVALID, "header"},
    {"{" T("a", "F32", "[2]", "0", "4") "}", 4, STATUS_INVALID, "its shape needs 8"},
    {"{" T("a", "I8", "[3]", "0", "4") "}", 4, STATUS_INVALID, "its shape needs 3"},
    {"{" T("a", "I8", "[8]", "0", "8") "}", 4, STATUS_INVALID, "bytes 0 to 8 of 4"},
    {"{" T("a", "I8", "[4]", "4", "0") "}", 4, STATUS_INVALID, "bytes 4 to 0"},
    {"{" T("a", "I8", "[4]", "-4", "0") "}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "0", "4.0") "}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "9223372036854775804", "9223372036854775807") "}", 4, STATUS_INVALID, "bytes"},
    {"{" T("a", "I8", "[4]", "18446744073709551612", "18446744073709551615") "}", 4, STATUS_INVALID, "header"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4,4]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":{\"0\":0,\"1\":4}}}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "2", "6") "}", 6, STATUS_INVALID, "overlaps"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "overlaps"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "5", "9") "}", 9, STATUS_INVALID, "gap"},
    {"{" T("a", "I8", "[4]", "1", "5") "}", 5, STATUS_INVALID, "gap"},
    {"{" T("a", "I8", "[4]", "0", "4") "}", 5, STATUS_INVALID, "1 bytes after"},
    {"{" T("a", "I8", "[1]", "0", "1") "," T("b", "F32", "[1]", "1", "5") "}", 5, STATUS_INVALID, "multiple of 4"},
    {"{" T("", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "name"},
    {"{\"__metadata__\":[]}", 0, STATUS_INVALID, "__metadata__"},
    {"{\"__metadata__\":{\"a\":1}}", 0, STATUS_INVALID, "not a string"},
    {"{\"a\\u0000b\":{}}", 0, STATUS_INVALID, "header"},
    {"{\"\xff\":{}}", 0, STATUS_INVALID, "header"},
};

static void element_sizes_are_known(void **state)
{
    (void)state;
    struct safetensors *file = NULL;
    enum status st = open_text("{" T("a", "BF16", "[2,3]", "0", "12") "," T("b", "F16", "[2]", "12", "16") ","
                               T("c", "F32", "[1]", "16", "20") "," T("d", "I8", "[3]", "20", "23") "}", 23, &file);
    if (st != STATUS_OK)
        fail_msg("%s", status_detail());
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_BF16, SAFETENSORS_F16, SAFETENSORS_F32, SAFETENSORS_I8};
    static const char *const names[] = {"BF16", "F16", "F32", "I8"};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(safetensors_at(file, i)->dtype, dtypes[i]);
        assert_string_equal(safetensors_dtype_name(dtypes[i]), names[i]);
    }
    safetensors_close(&file);
}

static void bad_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals_ / sizeof *refusals_; i++) {
        struct safetensors *file = NULL;
        enum status st = open_text(refusals_[i].header, refusals_[i].data_size, &file);
        assert_refused(st, refusals_[i].status, refusals_[i].word, refusals_[i].header);
        assert_null(file);
    }
}

static void bad_lengths_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        enum status status;
    } cases[] = {{0, STATUS_INVALID}, {1, STATUS_INVALID}, {3, STATUS_INVALID}, {100, STATUS_INVALID}, {(16u << 20) + 1, STATUS_LIMIT},
                 {1ull << 63, STATUS_LIMIT}, {UINT64_MAX, STATUS_LIMIT}, {UINT64_MAX - 7, STATUS_LIMIT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct safetensors *file = NULL;
        write_file(cases[i].length, "{}", 2, 0);
        assert_refused(safetensors_open(path_, &file), cases[i].status, "header", "length");
    }
}

static void deep_headers_are_refused(void **state)
{
    (void)state;
    size_t size = 1 << 20;
    char *text = malloc(size);
    struct safetensors *file = NULL;
    memset(text, '[', size);
    memcpy(text, "{\"a\":", 5);
    write_file(size, text, size, 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "header", "depth");
    free(text);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    struct safetensors *file = NULL;
    char other[300];
    snprintf(other, sizeof other, "%s/other", dir_);
    unlink(path_);
    assert_int_equal(safetensors_open(path_, &file), STATUS_NOT_FOUND);
    assert_int_equal(mkfifo(path_, 0600), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "regular", "fifo");
    unlink(path_);
    assert_int_equal(mkdir(path_, 0700), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "regular", "directory");
    rmdir(path_);
    write_file(2, "{}", 2, 0);
    assert_int_equal(safetensors_open(path_, &file), STATUS_OK);
    safetensors_close(&file);
    assert_int_equal(rename(path_, other), 0);
    assert_int_equal(symlink(other, path_), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "link", "symlink");
    unlink(path_);
    unlink(other);
    for (size_t size = 0; size < 8; size++) {
        FILE *out = fopen(path_, "wb");
        fwrite("\2\0\0\0\0\0\0\0", 1, size, out);
        fclose(out);
        assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "too short", "tiny");
    }
}

static void every_truncation_and_flip_ends_well(void **state)
{
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"x\"}," T("a", "F32", "[2]", "0", "8") "," T("b", "I8", "[2,3]", "8", "14") "}  ";
    size_t size = sizeof header - 1;
    struct safetensors *file = NULL;
    for (size_t data = 0; data < 14; data++) {
        write_file(size, header, size, data);
        assert_int_not_equal(safetensors_open(path_, &file), STATUS_OK);
    }
    for (size_t keep = 0; keep < size; keep++) {
        write_file(size, header, keep, 0);
        assert_int_not_equal(safetensors_open(path_, &file), STATUS_OK);
    }
    char *copy = malloc(size);
    for (size_t at = 0; at < size; at++)
        for (int bit = 0; bit < 8; bit++) {      /* whatever the flip means, nothing may break */
            memcpy(copy, header, size);
            copy[at] = (char)(copy[at] ^ (1 << bit));
            write_file(size, copy, size, 14);
            if (safetensors_open(path_, &file) == STATUS_OK)
                safetensors_close(&file);
        }
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_file_is_read),
        cmocka_unit_test(element_sizes_are_known),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_lengths_are_refused),
        cmocka_unit_test(deep_headers_are_refused),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(every_truncation_and_flip_ends_well),
    };
    return cmocka_run_group_tests_name("safetensors", tests, setup, teardown);
}
