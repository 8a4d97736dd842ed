#include "worker/engine/model/safetensors.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_BYTES_MAX 256u

struct pair {
    const char *key, *value;   /* in header */
};

struct safetensors {
    const uint8_t *map;        /* owned: the mapping */
    size_t size;
    json_t *header;            /* owned: keeps the names and metadata */
    struct safetensors_tensor *tensors;   /* owned: by name */
    unsigned count;
    struct pair *metadata;     /* owned */
    unsigned metadata_count;
};

void safetensors_close(struct safetensors **file)
{
    struct safetensors *self = *file;
    if (!self)
        return;
    free(self->metadata);
    free(self->tensors);
    json_decref(self->header);
    if (self->map)
        (void)munmap((void *)self->map, self->size);
    free(self);
    *file = NULL;
}

static enum status map_file(const char *path, struct safetensors *self)
{
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ELOOP)
            return STATUS_FAIL(STATUS_INVALID, "%s: a symbolic link, want a regular file", path);
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", path, strerror(errno));
    }
    enum status st = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        st = STATUS_FAIL(STATUS_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = STATUS_FAIL(STATUS_INVALID, "%s: not a regular file", path);
    } else if (info.st_size < 8) {
        st = STATUS_FAIL(STATUS_INVALID, "%s: %lld bytes, too short for a header length", path, (long long)info.st_size);
    } else {
        self->size = (size_t)info.st_size;
        void *map = mmap(NULL, self->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            st = STATUS_FAIL(STATUS_IO, "%s: mmap: %s", path, strerror(errno));
        else
            self->map = map;
    }
    (void)close(fd);
    return st;
}

static enum status parse_header(const char *path, struct safetensors *self, size_t *data_at)
{
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | self->map[i];
    if (length > SAFETENSORS_HEADER_BYTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%s: header of %llu bytes, at most %u are allowed", path, (unsigned long long)length,
                           SAFETENSORS_HEADER_BYTES_MAX);
    if (length < 2)
        return STATUS_FAIL(STATUS_INVALID, "%s: header of %llu bytes", path, (unsigned long long)length);
    if (length > self->size - 8)
        return STATUS_FAIL(STATUS_INVALID, "%s: header of %llu bytes in a file of %zu", path, (unsigned long long)length, self->size);
    if (self->map[8] != '{')
        return STATUS_FAIL(STATUS_INVALID, "%s: the header does not begin with '{'", path);
    json_error_t error;
    self->header = json_loadb((const char *)self->map + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!self->header)
        return STATUS_FAIL(STATUS_INVALID, "%s: header: %.120s (byte %d)", path, error.text, error.position);
    if (!json_is_object(self->header))
        return STATUS_FAIL(STATUS_INVALID, "%s: the header is not an object", path);
    *data_at = 8 + (size_t)length;
    return STATUS_OK;
}

static enum status parse_metadata(const char *path, struct safetensors *self, json_t *metadata)
{
    if (!json_is_object(metadata))
        return STATUS_FAIL(STATUS_INVALID, "%s: __metadata__ is not an object", path);
    self->metadata = calloc(json_object_size(metadata) + 1, sizeof *self->metadata);
    if (!self->metadata)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for metadata", path);
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return STATUS_FAIL(STATUS_INVALID, "%s: __metadata__ %.64s is not a string", path, key);
        self->metadata[self->metadata_count++] = (struct pair){key, json_string_value(value)};
    }
    return STATUS_OK;
}

static const struct dtype {
    const char *name;
    unsigned bytes;
} dtypes[] = {
    [SAFETENSORS_I8] = {"I8", 1}, [SAFETENSORS_BF16] = {"BF16", 2}, [SAFETENSORS_F16] = {"F16", 2}, [SAFETENSORS_F32] = {"F32", 4}};

const char *safetensors_dtype_name(enum safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}

static enum status parse_dtype(const char *path, const char *name, const json_t *value, enum safetensors_dtype *out)
{
    static const char *const not_built[] = {"BOOL", "U8", "U16", "I16", "U32", "I32", "U64", "I64", "F64", "F8_E4M3", "F8_E5M2"};
    const char *text = json_string_value(value);
    if (!text)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: dtype is missing or not a string", path, name);
    for (unsigned i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(text, dtypes[i].name) == 0) {
            *out = (enum safetensors_dtype)i;
            return STATUS_OK;
        }
    for (size_t i = 0; i < sizeof not_built / sizeof *not_built; i++)
        if (strcmp(text, not_built[i]) == 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor %.128s: dtype %s is not supported, only I8, BF16, F16 and F32", path, name, text);
    return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: unknown dtype %.32s", path, name, text);
}

static bool read_size(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static enum status parse_shape(const char *path, const json_t *shape, struct safetensors_tensor *tensor)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape) || rank < 1 || rank > SAFETENSORS_RANK_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: shape is not a list of 1 to %u sizes", path, tensor->name,
                           SAFETENSORS_RANK_MAX);
    tensor->rank = (unsigned)rank;
    tensor->bytes = dtypes[tensor->dtype].bytes;
    for (unsigned i = 0; i < tensor->rank; i++) {
        if (!read_size(json_array_get(shape, i), &tensor->shape[i]) || tensor->shape[i] == 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: size %u of the shape is not a positive integer", path,
                               tensor->name, i);
        if (__builtin_mul_overflow(tensor->bytes, tensor->shape[i], &tensor->bytes))
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: the shape overflows", path, tensor->name);
    }
    return STATUS_OK;
}

static enum status parse_tensor(const char *path, const struct safetensors *self, size_t data_at, json_t *entry,
                                struct safetensors_tensor *tensor)
{
    if (strlen(tensor->name) > NAME_BYTES_MAX || tensor->name[0] == '\0')
        return STATUS_FAIL(STATUS_INVALID, "%s: a tensor name has %zu bytes, want 1 to %u", path, strlen(tensor->name), NAME_BYTES_MAX);
    if (!json_is_object(entry) || json_object_size(entry) != 3)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: want an object of dtype, shape and data_offsets", path, tensor->name);
    TRY(parse_dtype(path, tensor->name, json_object_get(entry, "dtype"), &tensor->dtype));
    TRY(parse_shape(path, json_object_get(entry, "shape"), tensor));

    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin, end, data_size = self->size - data_at;
    if (json_array_size(offsets) != 2 || !read_size(json_array_get(offsets, 0), &begin) || !read_size(json_array_get(offsets, 1), &end))
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: data_offsets is not two sizes", path, tensor->name);
    if (begin > end || end > data_size)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: bytes %llu to %llu of %llu", path, tensor->name,
                           (unsigned long long)begin, (unsigned long long)end, (unsigned long long)data_size);
    if (end - begin != tensor->bytes)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: %llu bytes, but its shape needs %llu", path, tensor->name,
                           (unsigned long long)(end - begin), (unsigned long long)tensor->bytes);
    tensor->data = self->map + data_at + begin;
    const struct dtype *dtype = &dtypes[tensor->dtype];
    if ((data_at + begin) % dtype->bytes != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: %s data at byte %llu, not on a multiple of %u", path, tensor->name,
                           dtype->name, (unsigned long long)(data_at + begin), dtype->bytes);
    return STATUS_OK;
}

static int compare_place(const void *a, const void *b)
{
    const struct safetensors_tensor *left = a, *right = b;
    return left->data < right->data ? -1 : left->data > right->data;
}

static int compare_name(const void *a, const void *b)
{
    const struct safetensors_tensor *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static enum status check_places(const char *path, const struct safetensors *self, size_t data_at)
{
    const uint8_t *at = self->map + data_at;
    qsort(self->tensors, self->count, sizeof *self->tensors, compare_place);
    for (unsigned i = 0; i < self->count; i++) {
        const struct safetensors_tensor *tensor = &self->tensors[i];
        if ((const uint8_t *)tensor->data != at)
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s: %s the one before it", path, tensor->name,
                               (const uint8_t *)tensor->data < at ? "overlaps" : "leaves a gap after");
        at += tensor->bytes;
    }
    if (at != self->map + self->size)
        return STATUS_FAIL(STATUS_INVALID, "%s: %zu bytes after the last tensor", path, (size_t)(self->map + self->size - at));
    return STATUS_OK;
}

static enum status parse_tensors(const char *path, struct safetensors *self, size_t data_at)
{
    size_t entries = json_object_size(self->header);
    if (entries > SAFETENSORS_TENSORS_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%s: %zu tensors, at most %u are allowed", path, entries, SAFETENSORS_TENSORS_MAX);
    self->tensors = calloc(entries + 1, sizeof *self->tensors);
    if (!self->tensors)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %zu tensors", path, entries);
    const char *key;
    json_t *value;
    json_object_foreach(self->header, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            TRY(parse_metadata(path, self, value));
            continue;
        }
        struct safetensors_tensor *tensor = &self->tensors[self->count];
        tensor->name = key;
        TRY(parse_tensor(path, self, data_at, value, tensor));
        self->count++;
    }
    TRY(check_places(path, self, data_at));
    qsort(self->tensors, self->count, sizeof *self->tensors, compare_name);
    return STATUS_OK;
}

enum status safetensors_open(const char *path, struct safetensors **out)
{
    struct safetensors *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory", path);
    enum status st;
    size_t data_at = 0;
    TRY_GOTO(map_file(path, self), st, fail);
    TRY_GOTO(parse_header(path, self, &data_at), st, fail);
    TRY_GOTO(parse_tensors(path, self, data_at), st, fail);
    *out = self;
    return STATUS_OK;
fail:
    safetensors_close(&self);
    return st;
}

unsigned safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, unsigned index)
{
    return &file->tensors[index];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    struct safetensors_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->count, sizeof *file->tensors, compare_name);
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    for (unsigned i = 0; i < file->metadata_count; i++)
        if (strcmp(file->metadata[i].key, key) == 0)
            return file->metadata[i].value;
    return NULL;
}

unsigned safetensors_metadata_count(const struct safetensors *file)
{
    return file->metadata_count;
}

void safetensors_metadata_at(const struct safetensors *file, unsigned index, const char **key, const char **value)
{
    *key = file->metadata[index].key;
    *value = file->metadata[index].value;
}

const void *safetensors_bytes(const struct safetensors *file, size_t *size)
{
    *size = file->size;
    return file->map;
}
