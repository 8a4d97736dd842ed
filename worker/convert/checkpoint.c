#include "worker/convert/checkpoint.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "worker/convert/input_file.h"

struct shard {
    char path[PATH_MAX];
    const uint8_t *map;            /* owned */
    size_t size;
    json_t *header;                /* owned: keeps the names */
};

struct checkpoint {
    struct shard *shards;          /* (shard_count), owned */
    unsigned shard_count;
    struct checkpoint_tensor *tensors;   /* by name, owned */
    unsigned count;
};

void checkpoint_close(struct checkpoint **checkpoint)
{
    struct checkpoint *self = *checkpoint;
    if (!self)
        return;
    for (unsigned i = 0; i < self->shard_count; i++) {
        if (self->shards[i].map)
            (void)munmap((void *)self->shards[i].map, self->shards[i].size);
        json_decref(self->shards[i].header);
    }
    free(self->shards);
    free(self->tensors);
    free(self);
    *checkpoint = NULL;
}

/* ---- one file ---- */

static enum status map_shard(struct shard *shard)
{
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   /* O_NONBLOCK: a FIFO must not wait for a writer */
    if (fd < 0)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", shard->path, strerror(errno));
    enum status st = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) != 0)
        st = STATUS_FAIL(STATUS_IO, "%s: %s", shard->path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = STATUS_FAIL(STATUS_INVALID, "%s: not a regular file", shard->path);
    else if (info.st_size < 10)
        st = STATUS_FAIL(STATUS_INVALID, "%s: %lld bytes, too short for a safetensors file", shard->path, (long long)info.st_size);
    if (st == STATUS_OK) {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            st = STATUS_FAIL(STATUS_IO, "%s: mmap: %s", shard->path, strerror(errno));
        } else {
            shard->map = map;
            shard->size = (size_t)info.st_size;
        }
    }
    (void)close(fd);
    return st;
}

static enum status parse_header(struct shard *shard, size_t *data_at)
{
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | shard->map[i];
    if (length > CHECKPOINT_HEADER_BYTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%s: header of %llu bytes, at most %u are allowed", shard->path, (unsigned long long)length,
                           CHECKPOINT_HEADER_BYTES_MAX);
    if (length < 2 || length > shard->size - 8)
        return STATUS_FAIL(STATUS_INVALID, "%s: header of %llu bytes in a file of %zu: truncated, or not safetensors", shard->path,
                           (unsigned long long)length, shard->size);
    json_error_t error;
    shard->header = json_loadb((const char *)shard->map + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!shard->header)
        return STATUS_FAIL(STATUS_INVALID, "%s: header: %.120s (byte %d)", shard->path, error.text, error.position);
    if (!json_is_object(shard->header))
        return STATUS_FAIL(STATUS_INVALID, "%s: the header is not an object", shard->path);
    *data_at = 8 + (size_t)length;
    return STATUS_OK;
}

static enum status parse_dtype(const struct shard *shard, struct checkpoint_tensor *tensor, const json_t *value, unsigned *element_bytes)
{
    static const struct {
        const char *name;
        enum checkpoint_dtype dtype;
        unsigned bytes;
    } dtypes[] = {
        { "F32", CHECKPOINT_F32, 4 },     { "BF16", CHECKPOINT_BF16, 2 },   { "F16", CHECKPOINT_F16, 2 },
        { "I8", CHECKPOINT_I8, 1 },       { "BOOL", CHECKPOINT_OTHER, 1 },  { "U8", CHECKPOINT_OTHER, 1 },
        { "I16", CHECKPOINT_OTHER, 2 },   { "U16", CHECKPOINT_OTHER, 2 },   { "I32", CHECKPOINT_OTHER, 4 },
        { "U32", CHECKPOINT_OTHER, 4 },   { "I64", CHECKPOINT_OTHER, 8 },   { "U64", CHECKPOINT_OTHER, 8 },
        { "F64", CHECKPOINT_OTHER, 8 },   { "F8_E4M3", CHECKPOINT_OTHER, 1 }, { "F8_E5M2", CHECKPOINT_OTHER, 1 },
    };
    const char *name = json_string_value(value);
    for (size_t i = 0; name && i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            tensor->dtype = dtypes[i].dtype;
            tensor->dtype_name = dtypes[i].name;
            *element_bytes = dtypes[i].bytes;
            return STATUS_OK;
        }
    return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: unknown dtype %.32s", shard->path, tensor->name, name ? name : "(not a string)");
}

static bool read_size(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static enum status parse_tensor(const struct shard *shard, size_t data_at, const json_t *entry, struct checkpoint_tensor *tensor)
{
    unsigned element_bytes = 0;
    size_t length = strlen(tensor->name);
    if (length == 0 || length > CHECKPOINT_NAME_BYTES_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: a tensor name of %zu bytes, want 1 to %u", shard->path, length, CHECKPOINT_NAME_BYTES_MAX);
    TRY(parse_dtype(shard, tensor, json_object_get(entry, "dtype"), &element_bytes));
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape) || json_array_size(shape) > CHECKPOINT_RANK_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: shape is not a list of at most %u sizes", shard->path, tensor->name,
                           CHECKPOINT_RANK_MAX);
    tensor->rank = (unsigned)json_array_size(shape);
    tensor->bytes = element_bytes;
    for (unsigned i = 0; i < tensor->rank; i++)
        if (!read_size(json_array_get(shape, i), &tensor->shape[i]) ||
            __builtin_mul_overflow(tensor->bytes, tensor->shape[i], &tensor->bytes))
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: size %u of the shape is wrong", shard->path, tensor->name, i);
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin, end, data_size = shard->size - data_at;
    if (json_array_size(offsets) != 2 || !read_size(json_array_get(offsets, 0), &begin) || !read_size(json_array_get(offsets, 1), &end))
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: data_offsets is not two sizes", shard->path, tensor->name);
    if (begin > end || end > data_size)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: bytes %llu to %llu of %llu: the file is truncated or damaged", shard->path,
                           tensor->name, (unsigned long long)begin, (unsigned long long)end, (unsigned long long)data_size);
    if (end - begin != tensor->bytes)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: %llu bytes, but its shape needs %llu", shard->path, tensor->name,
                           (unsigned long long)(end - begin), (unsigned long long)tensor->bytes);
    tensor->data = shard->map + data_at + begin;
    return STATUS_OK;
}

/* Appends the shard's tensors. */
static enum status read_shard(struct checkpoint *self, struct shard *shard)
{
    size_t data_at = 0;
    TRY(map_shard(shard));
    TRY(parse_header(shard, &data_at));
    size_t entries = json_object_size(shard->header);
    if (entries + self->count > CHECKPOINT_TENSORS_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%s: over %u tensors", shard->path, CHECKPOINT_TENSORS_MAX);
    struct checkpoint_tensor *tensors = realloc(self->tensors, (self->count + entries + 1) * sizeof *tensors);
    if (!tensors)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %zu tensors", shard->path, entries);
    self->tensors = tensors;
    const char *key;
    json_t *value;
    json_object_foreach(shard->header, key, value) {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        struct checkpoint_tensor *tensor = &self->tensors[self->count];
        *tensor = (struct checkpoint_tensor){ .name = key };
        TRY(parse_tensor(shard, data_at, value, tensor));
        self->count++;
    }
    return STATUS_OK;
}

/* ---- the directory ---- */

static int compare_name(const void *a, const void *b)
{
    const struct checkpoint_tensor *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static enum status add_shard(struct checkpoint *self, const char *dir, const char *name)
{
    struct shard *shard = &self->shards[self->shard_count];
    TRY(input_file_path(dir, name, shard->path));
    self->shard_count++;
    return read_shard(self, shard);
}

/* Every file that the index names, once; then each tensor of the index must have been found. */
static enum status read_index(struct checkpoint *self, const char *dir, const char *path, const json_t *map)
{
    const char *shard_names[CHECKPOINT_SHARDS_MAX];
    const char *key;
    json_t *value;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: weight_map is missing or empty", path);
    json_object_foreach((json_t *)map, key, value) {
        const char *name = json_string_value(value);
        bool known = false;
        if (!name || name[0] == '\0' || name[0] == '.' || strchr(name, '/'))
            return STATUS_FAIL(STATUS_INVALID, "%s: weight_map: %.128s: want the name of a file in this directory", path, key);
        for (unsigned i = 0; i < self->shard_count && !known; i++)
            known = strcmp(shard_names[i], name) == 0;
        if (known)
            continue;
        if (self->shard_count == CHECKPOINT_SHARDS_MAX)
            return STATUS_FAIL(STATUS_LIMIT, "%s: over %u files", path, CHECKPOINT_SHARDS_MAX);
        shard_names[self->shard_count] = name;
        TRY(add_shard(self, dir, name));
    }
    qsort(self->tensors, self->count, sizeof *self->tensors, compare_name);
    json_object_foreach((json_t *)map, key, value) {
        if (!checkpoint_find(self, key))
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s is in no file", path, key);
    }
    return STATUS_OK;
}

static enum status open_index(struct checkpoint *self, const char *dir, const char *path)
{
    json_t *index;
    TRY(input_file_read_json(path, &index));
    enum status st = read_index(self, dir, path, json_object_get(index, "weight_map"));
    json_decref(index);
    return st;
}

enum status checkpoint_open(const char *dir, struct checkpoint **out)
{
    char single[PATH_MAX], index[PATH_MAX];
    enum status st;
    TRY(input_file_path(dir, "model.safetensors", single));
    TRY(input_file_path(dir, "model.safetensors.index.json", index));
    struct checkpoint *self = calloc(1, sizeof *self);
    if (self)
        self->shards = calloc(CHECKPOINT_SHARDS_MAX, sizeof *self->shards);
    if (!self || !self->shards) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory", dir);
        goto fail;
    }
    if (access(single, F_OK) == 0) {
        st = add_shard(self, dir, "model.safetensors");
    } else if (access(index, F_OK) == 0) {
        st = open_index(self, dir, index);
    } else {
        st = STATUS_FAIL(STATUS_NOT_FOUND, "%s: neither model.safetensors nor model.safetensors.index.json", dir);
    }
    if (st != STATUS_OK)
        goto fail;
    qsort(self->tensors, self->count, sizeof *self->tensors, compare_name);
    for (unsigned i = 1; i < self->count; i++)
        if (strcmp(self->tensors[i - 1].name, self->tensors[i].name) == 0) {
            st = STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s is in two files", dir, self->tensors[i].name);
            goto fail;
        }
    *out = self;
    return STATUS_OK;
fail:
    checkpoint_close(&self);
    return st;
}

unsigned checkpoint_count(const struct checkpoint *checkpoint)
{
    return checkpoint->count;
}

const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *checkpoint, unsigned index)
{
    return &checkpoint->tensors[index];
}

const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    struct checkpoint_tensor key = { .name = name };
    if (checkpoint->count == 0)
        return NULL;
    return bsearch(&key, checkpoint->tensors, checkpoint->count, sizeof key, compare_name);
}

const char *checkpoint_metadata(const struct checkpoint *checkpoint, const char *key)
{
    if (checkpoint->shard_count != 1)
        return NULL;
    return json_string_value(json_object_get(json_object_get(checkpoint->shards[0].header, "__metadata__"), key));
}

void checkpoint_release(const struct checkpoint_tensor *tensor)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)tensor->data + page - 1) & ~(page - 1), end = ((uintptr_t)tensor->data + tensor->bytes) & ~(page - 1);
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);   /* a hint: the file still has the bytes */
}

/* ---- elements ---- */

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31)
        return float_of_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        const float small = (float)fraction * 0x1p-24f;              /* zero or denormal: exact */
        return sign ? -small : small;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

void checkpoint_read(const struct checkpoint_tensor *tensor, uint64_t first, size_t count, float *out)
{
    if (tensor->dtype == CHECKPOINT_F32) {
        memcpy(out, tensor->data + 4 * first, 4 * count);
        return;
    }
    if (tensor->dtype == CHECKPOINT_I8) {
        const int8_t *source = (const int8_t *)tensor->data + first;
        for (size_t i = 0; i < count; i++)
            out[i] = (float)source[i];
        return;
    }
    const uint8_t *source = tensor->data + 2 * first;
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, source + 2 * i, sizeof half);
        out[i] = tensor->dtype == CHECKPOINT_BF16 ? float_of_bits((uint32_t)half << 16) : float_of_half(half);
    }
}
