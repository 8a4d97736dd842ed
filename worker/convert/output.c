#include "worker/convert/output.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALIGNMENT 64u

struct entry {
    char *name;                    /* owned */
    enum output_dtype dtype;
    uint64_t rows, columns, bytes;
    uint64_t at;                   /* in the data, after output_begin */
};

struct output {
    char dst[PATH_MAX], partial[PATH_MAX];
    int directory;                 /* of partial, locked; -1 */
    int file;                      /* model.safetensors; -1 */
    struct entry *entries;
    uint32_t count, capacity;
    char *metadata;                /* owned: members of the JSON object, each followed by a comma */
    uint64_t data_at, size;        /* of the file */
    bool finished;
};

static const char *const dtype_names[] = { [OUTPUT_F32] = "F32", [OUTPUT_BF16] = "BF16", [OUTPUT_I8] = "I8" };
static const unsigned dtype_bytes[] = { [OUTPUT_F32] = 4, [OUTPUT_BF16] = 2, [OUTPUT_I8] = 1 };

/* A directory of plain files. */
void output_remove(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(dir), entry->d_name, 0);
    (void)closedir(dir);
    (void)rmdir(path);
}

void output_destroy(struct output **output)
{
    struct output *self = *output;
    if (!self)
        return;
    if (self->file >= 0)
        (void)close(self->file);
    if (self->directory >= 0 && !self->finished)
        output_remove(self->partial);
    if (self->directory >= 0)
        (void)close(self->directory);
    for (uint32_t i = 0; i < self->count; i++)
        free(self->entries[i].name);
    free(self->entries);
    free(self->metadata);
    free(self);
    *output = NULL;
}

static enum status set_paths(struct output *self, const char *dst)
{
    size_t length = strlen(dst);
    while (length > 1 && dst[length - 1] == '/')
        length--;
    if (length == 0 || length + sizeof ".partial" > sizeof self->dst)
        return STATUS_FAIL(STATUS_INVALID, "the destination's path is empty or too long");
    snprintf(self->dst, sizeof self->dst, "%.*s", (int)length, dst);
    snprintf(self->partial, sizeof self->partial, "%.*s.partial", (int)length, dst);
    struct stat info;
    if (lstat(self->dst, &info) == 0)
        return STATUS_FAIL(STATUS_EXISTS, "%s exists already: remove it or choose another name", self->dst);
    return STATUS_OK;
}

/* Makes the partial directory, or takes over one that a killed run has left. */
static enum status take_directory(struct output *self)
{
    if (mkdir(self->partial, 0777) != 0 && errno != EEXIST)
        return STATUS_FAIL(STATUS_IO, "%s: %s", self->partial, strerror(errno));
    int fd = open(self->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return STATUS_FAIL(STATUS_IO, "%s: %s", self->partial, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        (void)close(fd);
        return STATUS_FAIL(STATUS_EXISTS, "%s: another conversion is writing it", self->partial);
    }
    self->directory = fd;
    DIR *dir = fdopendir(dup(fd));
    if (!dir)
        return STATUS_FAIL(STATUS_IO, "%s: %s", self->partial, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(fd, entry->d_name, 0);
    (void)closedir(dir);
    return STATUS_OK;
}

static enum status open_file(const struct output *self, const char *name, int *out)
{
    *out = openat(self->directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (*out < 0)
        return STATUS_FAIL(STATUS_IO, "%s/%s: %s", self->partial, name, strerror(errno));
    return STATUS_OK;
}

enum status output_create(const char *dst, struct output **out)
{
    enum status st;
    struct output *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an output");
    self->directory = self->file = -1;
    self->metadata = strdup("");
    if (!self->metadata) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an output");
        goto fail;
    }
    TRY_GOTO(set_paths(self, dst), st, fail);
    TRY_GOTO(take_directory(self), st, fail);
    TRY_GOTO(open_file(self, "model.safetensors", &self->file), st, fail);
    *out = self;
    return STATUS_OK;
fail:
    output_destroy(&self);
    return st;
}

enum status output_add(struct output *output, const char *name, enum output_dtype dtype, uint64_t rows, uint64_t columns, uint32_t *index)
{
    if (output->count == output->capacity) {
        const uint32_t capacity = output->capacity ? 2 * output->capacity : 256;
        struct entry *entries = realloc(output->entries, capacity * sizeof *entries);
        if (!entries)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u tensors", capacity);
        output->entries = entries;
        output->capacity = capacity;
    }
    struct entry *entry = &output->entries[output->count];
    *entry = (struct entry){ .name = strdup(name), .dtype = dtype, .rows = rows, .columns = columns };
    if (!entry->name)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a tensor's name");
    entry->bytes = dtype_bytes[dtype] * rows * (columns ? columns : 1);    /* model_config.h bounds every size: no overflow */
    *index = output->count++;
    return STATUS_OK;
}

enum status output_add_metadata(struct output *output, const char *key, const char *value)
{
    char *longer;
    if (asprintf(&longer, "%s\"%s\":\"%s\",", output->metadata, key, value) < 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for metadata");
    free(output->metadata);
    output->metadata = longer;
    return STATUS_OK;
}

static enum status write_at(const struct output *self, int fd, uint64_t at, const void *data, size_t size)
{
    for (const uint8_t *from = data; size > 0;) {
        ssize_t wrote = pwrite(fd, from, size, (off_t)at);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return STATUS_FAIL(STATUS_IO, "%s: %s", self->partial, wrote < 0 ? strerror(errno) : "nothing was written");
        from += wrote;
        at += (uint64_t)wrote;
        size -= (size_t)wrote;
    }
    return STATUS_OK;
}

/* The class a tensor's place belongs to: see the order in output.h. */
static unsigned place_class(const struct entry *entry)
{
    return entry->bytes % ALIGNMENT == 0 ? 0 : 1 + (unsigned)entry->dtype;
}

static void set_places(struct output *self)
{
    uint64_t at = 0;
    for (unsigned class = 0; class <= 1 + OUTPUT_I8; class++)
        for (uint32_t i = 0; i < self->count; i++)
            if (place_class(&self->entries[i]) == class) {
                self->entries[i].at = at;
                at += self->entries[i].bytes;
            }
    self->size = at;               /* of the data, so far */
}

static enum status make_header(const struct output *self, char **text, size_t *size)
{
    *text = NULL;
    FILE *out = open_memstream(text, size);
    if (!out)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a header");
    fprintf(out, "{\"__metadata__\":{%.*s}", (int)(self->metadata[0] ? strlen(self->metadata) - 1 : 0), self->metadata);
    for (uint32_t i = 0; i < self->count; i++) {
        const struct entry *entry = &self->entries[i];
        fprintf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", entry->name, dtype_names[entry->dtype], (unsigned long long)entry->rows);
        if (entry->columns)
            fprintf(out, ",%llu", (unsigned long long)entry->columns);
        fprintf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)entry->at, (unsigned long long)(entry->at + entry->bytes));
    }
    fputc('}', out);
    while ((ftell(out) + 8) % ALIGNMENT != 0)
        fputc(' ', out);
    const bool bad = ferror(out);
    if (fclose(out) != 0 || bad) {
        free(*text);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a header");
    }
    return STATUS_OK;
}

enum status output_begin(struct output *output)
{
    char *header;
    size_t size;
    uint8_t length[8];
    set_places(output);
    TRY(make_header(output, &header, &size));
    for (unsigned i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)size >> 8 * i);
    output->data_at = 8 + size;
    output->size += output->data_at;
    enum status st = STATUS_OK;
    int error = posix_fallocate(output->file, 0, (off_t)output->size);
    if (error != 0)
        st = STATUS_FAIL(STATUS_IO, "%s/model.safetensors: %llu bytes: %s", output->partial, (unsigned long long)output->size, strerror(error));
    if (st == STATUS_OK)
        st = write_at(output, output->file, 0, length, sizeof length);
    if (st == STATUS_OK)
        st = write_at(output, output->file, 8, header, size);
    free(header);
    return st;
}

enum status output_write(struct output *output, uint32_t index, uint64_t at, const void *data, size_t size)
{
    return write_at(output, output->file, output->data_at + output->entries[index].at + at, data, size);
}

enum status output_write_file(struct output *output, const char *name, const void *data, size_t size)
{
    int fd;
    TRY(open_file(output, name, &fd));
    enum status st = write_at(output, fd, 0, data, size);
    if (st == STATUS_OK && fsync(fd) != 0)
        st = STATUS_FAIL(STATUS_IO, "%s/%s: %s", output->partial, name, strerror(errno));
    (void)close(fd);
    return st;
}

enum status output_finish(struct output *output)
{
    char parent[PATH_MAX];
    if (fsync(output->file) != 0 || fsync(output->directory) != 0)
        return STATUS_FAIL(STATUS_IO, "%s: %s", output->partial, strerror(errno));
    struct stat info;
    if (lstat(output->dst, &info) == 0)              /* rename would replace an empty directory */
        return STATUS_FAIL(STATUS_EXISTS, "%s exists already: remove it or choose another name", output->dst);
    if (rename(output->partial, output->dst) != 0)
        return STATUS_FAIL(STATUS_IO, "%s to %s: %s", output->partial, output->dst, strerror(errno));
    output->finished = true;
    snprintf(parent, sizeof parent, "%s", output->dst);
    int fd = open(dirname(parent), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);                             /* the rename itself; without it a crash may undo it, whole */
        (void)close(fd);
    }
    return STATUS_OK;
}

uint64_t output_bytes(const struct output *output)
{
    return output->size;
}
