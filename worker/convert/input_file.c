#include "worker/convert/input_file.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status read_all(int fd, const char *path, char *buffer, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t got = read(fd, buffer + have, size - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return STATUS_FAIL(STATUS_IO, "%s: %s", path, got < 0 ? strerror(errno) : "became shorter while being read");
        have += (size_t)got;
    }
    buffer[size] = '\0';
    return STATUS_OK;
}

enum status input_file_read(const char *path, size_t size_max, char **bytes, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", path, strerror(errno));
    enum status st;
    struct stat info;
    char *buffer = NULL;
    if (fstat(fd, &info) != 0) {
        st = STATUS_FAIL(STATUS_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = STATUS_FAIL(STATUS_INVALID, "%s: not a regular file", path);
    } else if ((unsigned long long)info.st_size > size_max) {
        st = STATUS_FAIL(STATUS_LIMIT, "%s: %lld bytes, at most %zu are allowed", path, (long long)info.st_size, size_max);
    } else if (!(buffer = malloc((size_t)info.st_size + 1))) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %lld bytes", path, (long long)info.st_size);
    } else {
        st = read_all(fd, path, buffer, (size_t)info.st_size);
    }
    (void)close(fd);
    if (st != STATUS_OK) {
        free(buffer);
        return st;
    }
    *bytes = buffer;
    *size = (size_t)info.st_size;
    return STATUS_OK;
}

enum status input_file_read_json(const char *path, json_t **out)
{
    char *text;
    size_t size;
    json_error_t error;
    TRY(input_file_read(path, INPUT_JSON_BYTES_MAX, &text, &size));
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!root)
        return STATUS_FAIL(STATUS_INVALID, "%s: line %d: %.120s", path, error.line, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return STATUS_FAIL(STATUS_INVALID, "%s: not a JSON object", path);
    }
    *out = root;
    return STATUS_OK;
}

enum status input_file_path(const char *dir, const char *name, char *path)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        return STATUS_FAIL(STATUS_INVALID, "the path %s is too long", dir);
    return STATUS_OK;
}
