/* Collectives over shared memory: what every operation gives, over sizes around a piece; calls that do not match; ranks that die, stand
 * still or end the group. Ranks are forked processes, which say by their exit code what they saw. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "unit.h"
#include "worker/engine/collective/collective.h"
#include "worker/engine/collective/rendezvous.h"

#define SECONDS(n) (clock_now_ms() + (uint64_t)(n) * 1000)
#define PIECE      (256u * 1024)

static const struct collective_ops *const ops = &collective_shared_ops;

struct group {
    struct rendezvous *rendezvous;
    struct collective *collective;   /* of rank 0 */
    uint32_t size;
    pid_t pids[RENDEZVOUS_RANKS_MAX];
};

typedef int rank_fn(struct rendezvous *rendezvous, struct collective *collective);   /* 0: as it should be */

static int child_main(int fd, uint32_t rank, rank_fn *fn)
{
    struct rendezvous *rendezvous = NULL;
    struct collective *collective = NULL;
    if (rendezvous_join(fd, rank, &rendezvous) != STATUS_OK || rendezvous_meet(rendezvous, SECONDS(20)) != STATUS_OK ||
        ops->create(rendezvous, &collective) != STATUS_OK)
        return 100;
    const int code = fn(rendezvous, collective);
    ops->destroy(&collective);
    rendezvous_destroy(&rendezvous);
    return code;
}

static void group_start(struct group *group, uint32_t size, rank_fn *fn)
{
    *group = (struct group){.size = size};
    assert_ok(rendezvous_create(size, ops->shared_bytes(size), &group->rendezvous));
    for (uint32_t rank = 1; rank < size; rank++) {
        group->pids[rank] = fork();
        assert_true(group->pids[rank] >= 0);
        if (group->pids[rank] == 0)
            _exit(child_main(dup(rendezvous_fd(group->rendezvous)), rank, fn));
    }
    assert_ok(rendezvous_meet(group->rendezvous, SECONDS(20)));
    assert_ok(ops->create(group->rendezvous, &group->collective));
}

/* -1: by a signal. */
static int exit_code(struct group *group, uint32_t rank)
{
    int how;
    assert_int_equal(waitpid(group->pids[rank], &how, 0), group->pids[rank]);
    return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

static void group_end(struct group *group, int code)
{
    for (uint32_t rank = 1; rank < group->size; rank++)
        assert_int_equal(exit_code(group, rank), code);
    ops->destroy(&group->collective);
    rendezvous_destroy(&group->rendezvous);
}

/* ---- what the operations give ---- */

static uint8_t pattern(uint32_t from, uint32_t to, size_t i)
{
    return (uint8_t)(from * 37 + to * 101 + i * 7 + (i >> 8) * 13 + (i >> 16));
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return __LINE__ % 97 + 1;                                                                                  \
    } while (0)

static int gather_once(struct collective *collective, uint32_t rank, uint32_t size, const size_t *bytes, bool in_place)
{
    size_t sum = 0, own = 0;
    for (uint32_t r = 0; r < size; r++) {
        own += r < rank ? bytes[r] : 0;
        sum += bytes[r];
    }
    uint8_t *all = calloc(1, sum + 1), *part = in_place ? all + own : malloc(bytes[rank] + 1);
    for (size_t i = 0; i < bytes[rank]; i++)
        part[i] = pattern(rank, 0, i);
    CHECK(ops->all_gather(collective, part, bytes, all, SECONDS(20)) == STATUS_OK);
    size_t at = 0;
    for (uint32_t r = 0; r < size; at += bytes[r++])
        for (size_t i = 0; i < bytes[r]; i++)
            CHECK(all[at + i] == pattern(r, 0, i));
    CHECK(all[sum] == 0);
    if (!in_place)
        free(part);
    free(all);
    return 0;
}

static int exchange_once(struct collective *collective, uint32_t rank, uint32_t size, size_t unit)
{
    size_t send[RENDEZVOUS_RANKS_MAX], receive[RENDEZVOUS_RANKS_MAX], out = 0, in = 0, at = 0;
    for (uint32_t r = 0; r < size; r++) {
        send[r] = unit * ((rank + 2 * r) % 4);       /* other sizes for each pair, some 0 */
        receive[r] = unit * ((r + 2 * rank) % 4);
        out += send[r];
        in += receive[r];
    }
    uint8_t *from = malloc(out + 1), *to = calloc(1, in + 1);
    for (uint32_t r = 0; r < size; at += send[r++])
        for (size_t i = 0; i < send[r]; i++)
            from[at + i] = pattern(rank, r, i);
    CHECK(ops->all_to_all(collective, from, send, to, receive, SECONDS(20)) == STATUS_OK);
    at = 0;
    for (uint32_t r = 0; r < size; at += receive[r++])
        for (size_t i = 0; i < receive[r]; i++)
            CHECK(to[at + i] == pattern(r, rank, i));
    CHECK(to[in] == 0);
    free(from);
    free(to);
    return 0;
}

static int reduce_once(struct collective *collective, uint32_t rank, uint32_t size, size_t count)
{
    int32_t *sums = malloc((count + 1) * sizeof *sums);
    uint32_t *most = malloc((count + 1) * sizeof *most);
    for (size_t i = 0; i < count; i++) {
        const float value = (float)((i * 7 + rank * 3) % 11) * 0.25f;
        sums[i] = (int32_t)(rank + 1) * ((int32_t)i - 1000) * 300;
        memcpy(&most[i], &value, sizeof value);
    }
    CHECK(ops->sum_int32(collective, sums, count, SECONDS(20)) == STATUS_OK);
    CHECK(ops->maximum_bits(collective, most, count, SECONDS(20)) == STATUS_OK);
    for (size_t i = 0; i < count; i++) {
        float value, largest = 0;
        memcpy(&value, &most[i], sizeof value);
        for (uint32_t r = 0; r < size; r++) {
            const float other = (float)((i * 7 + r * 3) % 11) * 0.25f;
            largest = other > largest ? other : largest;
        }
        CHECK(value == largest);
        CHECK(sums[i] == (int32_t)(size * (size + 1) / 2) * ((int32_t)i - 1000) * 300);
    }
    free(sums);
    free(most);
    return 0;
}

static int every_operation(struct rendezvous *rendezvous, struct collective *collective)
{
    static const size_t sizes[] = {0, 1, 63, 64, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5};
    const uint32_t rank = rendezvous_rank(rendezvous), size = rendezvous_size(rendezvous);
    for (uint32_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t bytes[RENDEZVOUS_RANKS_MAX];
        for (uint32_t r = 0; r < size; r++)
            bytes[r] = r % 2 == 0 ? sizes[s] : sizes[(s + r) % 5];
        int code = gather_once(collective, rank, size, bytes, s % 2 == 0);
        code = code ? code : exchange_once(collective, rank, size, sizes[s] / 3 + (s > 0));
        code = code ? code : reduce_once(collective, rank, size, sizes[s] / 5);
        CHECK(code == 0);
        for (uint32_t root = 0; root < size; root++) {
            uint8_t *data = malloc(sizes[s] + 1);
            for (size_t i = 0; i < sizes[s]; i++)
                data[i] = rank == root ? pattern(root, 3, i) : 0;
            CHECK(ops->broadcast(collective, root, data, sizes[s], SECONDS(20)) == STATUS_OK);
            for (size_t i = 0; i < sizes[s]; i++)
                CHECK(data[i] == pattern(root, 3, i));
            free(data);
        }
        CHECK(ops->barrier(collective, SECONDS(20)) == STATUS_OK);
    }
    return 0;
}

static void test_operations(void **state)
{
    (void)state;
    for (uint32_t size = 1; size <= 5; size++) {
        struct group group;
        struct collective_counts counts;
        group_start(&group, size, every_operation);
        assert_int_equal(every_operation(group.rendezvous, group.collective), 0);
        ops->counts(group.collective, &counts);
        assert_true(counts.calls > 50 && (size == 1) == (counts.bytes_received == 0));
        group_end(&group, 0);
    }
}

/* Many short rounds: a slot that is written too early, or read too late, shows. */
static int many_rounds(struct rendezvous *rendezvous, struct collective *collective)
{
    const uint32_t rank = rendezvous_rank(rendezvous), size = rendezvous_size(rendezvous);
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t all[RENDEZVOUS_RANKS_MAX], mine = i * 16 + rank;
        size_t bytes[RENDEZVOUS_RANKS_MAX];
        for (uint32_t r = 0; r < size; r++)
            bytes[r] = sizeof mine;
        CHECK(ops->all_gather(collective, &mine, bytes, all, SECONDS(20)) == STATUS_OK);
        for (uint32_t r = 0; r < size; r++)
            CHECK(all[r] == i * 16 + r);
    }
    return 0;
}

static void test_many_rounds(void **state)
{
    (void)state;
    struct group group;
    group_start(&group, 3, many_rounds);
    const uint64_t started_us = clock_now_us();
    assert_int_equal(many_rounds(group.rendezvous, group.collective), 0);
    printf("a round of 3 ranks: %.1f us\n", (double)(clock_now_us() - started_us) / 5000);
    group_end(&group, 0);
}

/* ---- what goes wrong ---- */

static int wait_long(struct rendezvous *rendezvous, struct collective *collective)
{
    CHECK(ops->barrier(collective, SECONDS(20)) == STATUS_OK);
    const uint64_t started_ms = clock_now_ms();
    const enum status st = ops->barrier(collective, 0);
    CHECK(st == STATUS_CLOSED && clock_now_ms() - started_ms < 5000);
    CHECK(rendezvous_aborted(rendezvous));
    return 7;
}

static int never_comes(struct rendezvous *rendezvous, struct collective *collective)
{
    if (rendezvous_rank(rendezvous) != 2)
        return wait_long(rendezvous, collective);
    CHECK(ops->barrier(collective, SECONDS(20)) == STATUS_OK);
    for (;;)
        pause();
}

static void test_killed_rank(void **state)
{
    (void)state;
    struct group group;
    group_start(&group, 4, never_comes);
    assert_ok(ops->barrier(group.collective, SECONDS(20)));
    const uint64_t started_ms = clock_now_ms();
    assert_int_equal(kill(group.pids[2], SIGKILL), 0);
    assert_int_equal(ops->barrier(group.collective, SECONDS(20)), STATUS_CLOSED);
    printf("a killed rank is known after %llu ms\n", (unsigned long long)(clock_now_ms() - started_ms));
    assert_true(clock_now_ms() - started_ms < 10000);    /* not by the deadline */
    assert_non_null(strstr(status_detail(), "rank 2"));
    assert_non_null(strstr(status_detail(), "has died"));
    assert_int_equal(exit_code(&group, 1), 7);
    assert_int_equal(exit_code(&group, 2), -1);
    assert_int_equal(exit_code(&group, 3), 7);
    assert_int_equal(ops->barrier(group.collective, SECONDS(20)), STATUS_CLOSED);   /* for good */
    group.size = 1;
    group_end(&group, 0);
}

static void test_stopped_rank(void **state)
{
    (void)state;
    struct group group;
    group_start(&group, 4, never_comes);
    assert_ok(ops->barrier(group.collective, SECONDS(20)));
    assert_int_equal(kill(group.pids[2], SIGSTOP), 0);
    const uint64_t started_ms = clock_now_ms();
    assert_int_equal(ops->barrier(group.collective, started_ms + 300), STATUS_TIMEOUT);
    assert_in_range(clock_now_ms() - started_ms, 300, 10000);
    assert_non_null(strstr(status_detail(), "rank 2"));
    assert_int_equal(exit_code(&group, 1), 7);       /* without a deadline of their own */
    assert_int_equal(exit_code(&group, 3), 7);
    assert_int_equal(kill(group.pids[2], SIGKILL), 0);
    assert_int_equal(exit_code(&group, 2), -1);
    group.size = 1;
    group_end(&group, 0);
}

static int dies_with_rank_0(struct rendezvous *rendezvous, struct collective *collective)
{
    return wait_long(rendezvous, collective);
}

static void test_abort(void **state)
{
    (void)state;
    struct group group;
    group_start(&group, 3, dies_with_rank_0);
    assert_ok(ops->barrier(group.collective, SECONDS(20)));
    usleep(50000);                                   /* so that they wait: not needed, but what is meant */
    ops->abort(group.collective, "the test says so");
    assert_int_equal(ops->barrier(group.collective, SECONDS(20)), STATUS_CLOSED);
    assert_non_null(strstr(status_detail(), "the test says so"));
    group_end(&group, 7);
}

static int another_call(struct rendezvous *rendezvous, struct collective *collective)
{
    uint32_t values[2] = {0};
    (void)rendezvous;
    const enum status st = ops->maximum_bits(collective, values, 2, SECONDS(20));
    CHECK(st == STATUS_INTERNAL || st == STATUS_CLOSED);
    return 7;
}

static void test_calls_that_do_not_match(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 2; way++) {
        struct group group;
        uint32_t values[3] = {0};
        group_start(&group, 2, another_call);
        const enum status st = way == 0 ? ops->sum_int32(group.collective, (int32_t *)values, 2, SECONDS(20))
                                        : ops->maximum_bits(group.collective, values, 3, SECONDS(20));
        assert_true(st == STATUS_INTERNAL || st == STATUS_CLOSED);
        group_end(&group, 7);
    }
}

static void test_rendezvous_refuses(void **state)
{
    (void)state;
    struct rendezvous *rendezvous = NULL, *other = NULL;
    assert_int_equal(rendezvous_create(RENDEZVOUS_RANKS_MAX + 1, 0, &rendezvous), STATUS_INVALID);
    assert_ok(rendezvous_create(2, 0, &rendezvous));
    assert_int_equal(rendezvous_join(dup(rendezvous_fd(rendezvous)), 2, &other), STATUS_INVALID);
    assert_int_equal(rendezvous_join(dup(rendezvous_fd(rendezvous)), 0, &other), STATUS_INVALID);
    assert_int_equal(rendezvous_join(dup(0), 1, &other), STATUS_INVALID);
    assert_int_equal(rendezvous_meet(rendezvous, clock_now_ms() + 20), STATUS_TIMEOUT);
    assert_ok(rendezvous_join(dup(rendezvous_fd(rendezvous)), 1, &other));
    rendezvous_destroy(&other);
    assert_int_equal(rendezvous_join(dup(rendezvous_fd(rendezvous)), 1, &other), STATUS_INVALID);   /* its place is taken */
    rendezvous_destroy(&rendezvous);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_many_rounds),
        cmocka_unit_test(test_killed_rank),
        cmocka_unit_test(test_stopped_rank),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_calls_that_do_not_match),
        cmocka_unit_test(test_rendezvous_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
