#include "common/redis_settings.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/redis_link.h"
#include "common/redis_sentinel.h"

static bool given(const char *text)
{
    return text && text[0];
}

bool redis_settings_given(const struct redis_settings *settings)
{
    return given(settings->address) || settings->sentinel_count > 0;
}

enum status redis_settings_check(const struct redis_settings *settings)
{
    if (settings->tls)
        return STATUS_FAIL(STATUS_UNSUPPORTED,
                           "redis_tls: the Redis library of this build (hiredis " ROOST_HIREDIS_VERSION
                           ") has no TLS: run a TLS proxy such as stunnel on this host, set redis_address to its "
                           "loopback port, and leave redis_tls out");
    if (given(settings->address))
        TRY(redis_address_check("redis_address", settings->address));
    if (settings->sentinel_count > REDIS_SENTINELS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "redis_sentinels: %u are more than %d", settings->sentinel_count,
                           REDIS_SENTINELS_MAX);
    for (unsigned i = 0; i < settings->sentinel_count; i++)
        TRY(redis_address_check("redis_sentinels", settings->sentinels[i]));
    if (settings->sentinel_count > 0 && !given(settings->sentinel_master))
        return STATUS_FAIL(STATUS_INVALID, "redis_sentinel_master: missing, the name that the sentinels know it by");
    if (settings->sentinel_count == 0 && given(settings->sentinel_master))
        return STATUS_FAIL(STATUS_INVALID, "redis_sentinels: missing, redis_sentinel_master alone finds nobody");
    return STATUS_OK;
}

enum status redis_settings_password(const char *path, char *out)
{
    out[0] = 0;
    if (!given(path))
        return STATUS_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer is no file either */
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        enum status st = STATUS_FAIL(STATUS_IO, "redis_password_file: %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return st;
    }
    ssize_t got = -1;
    enum status st = STATUS_OK;
    if (!S_ISREG(info.st_mode))
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file: %s: not a regular file", path);
    else if ((info.st_mode & 077) != 0)
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file: %s: others may read it: chmod 600", path);
    else if ((got = read(fd, out, REDIS_PASSWORD_MAX - 1)) < 0)
        st = STATUS_FAIL(STATUS_IO, "redis_password_file: %s: %s", path, strerror(errno));
    close(fd);
    out[got > 0 ? got : 0] = 0;
    out[strcspn(out, "\r\n")] = 0;
    if (st == STATUS_OK && !out[0])
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file: %s: the first line is empty", path);
    return st;
}
