/* The NCCL bootstrap as far as it goes without a GPU: every rank has rank 0's id, in time or with an error; the rest is compiled. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "unit.h"
#include "worker/engine/collective/collective_nccl.h"
#include "worker/engine/collective/rendezvous.h"

#define RANKS 3u

static int child(int fd, uint32_t rank, ncclUniqueId *seen)
{
    struct rendezvous *rendezvous = NULL;
    if (rendezvous_join(fd, rank, &rendezvous) != STATUS_OK || rendezvous_meet(rendezvous, clock_now_ms() + 20000) != STATUS_OK)
        return 100;
    const enum status st = collective_nccl_exchange_id(rendezvous, seen, clock_now_ms() + 20000);
    rendezvous_destroy(&rendezvous);
    return (int)st;
}

static void start(struct rendezvous **rendezvous, pid_t *pids, ncclUniqueId *seen)
{
    assert_ok(rendezvous_create(RANKS, 0, rendezvous));
    for (uint32_t rank = 1; rank < RANKS; rank++)
        if ((pids[rank] = fork()) == 0)
            _exit(child(dup(rendezvous_fd(*rendezvous)), rank, &seen[rank]));
    assert_ok(rendezvous_meet(*rendezvous, clock_now_ms() + 20000));
}

static void end(struct rendezvous **rendezvous, const pid_t *pids, enum status expected)
{
    for (uint32_t rank = 1; rank < RANKS; rank++) {
        int how;
        assert_int_equal(waitpid(pids[rank], &how, 0), pids[rank]);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == (int)expected);
    }
    rendezvous_destroy(rendezvous);
}

static void test_exchange(void **state)
{
    (void)state;
    static const ncclUniqueId none;
    struct rendezvous *rendezvous = NULL;
    pid_t pids[RANKS];
    ncclUniqueId *seen = mmap(NULL, RANKS * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), before;
    assert_true(seen != MAP_FAILED);
    for (uint32_t turn = 0; turn < 2; turn++) {
        start(&rendezvous, pids, seen);
        assert_ok(collective_nccl_exchange_id(rendezvous, &seen[0], clock_now_ms() + 20000));
        ncclUniqueId *second = &before;
        assert_int_equal(collective_nccl_exchange_id(rendezvous, second, clock_now_ms() + 20000), STATUS_INVALID);   /* once a group */
        end(&rendezvous, pids, STATUS_OK);
        assert_memory_not_equal(&seen[0], &none, sizeof none);
        for (uint32_t rank = 1; rank < RANKS; rank++)
            assert_memory_equal(&seen[rank], &seen[0], sizeof seen[0]);
    }
    munmap(seen, RANKS * sizeof *seen);
}

/* Rank 0 ends the group instead; nobody waits for an id that does not come. */
static void test_no_id(void **state)
{
    (void)state;
    struct rendezvous *rendezvous = NULL;
    pid_t pids[RANKS];
    ncclUniqueId seen[RANKS];
    start(&rendezvous, pids, seen);
    rendezvous_abort(rendezvous, "no GPU");
    end(&rendezvous, pids, STATUS_CLOSED);
    assert_ok(rendezvous_create(2, 0, &rendezvous));
    struct rendezvous *other = NULL;
    assert_ok(rendezvous_join(dup(rendezvous_fd(rendezvous)), 1, &other));
    assert_int_equal(collective_nccl_exchange_id(other, &seen[1], clock_now_ms() + 50), STATUS_TIMEOUT);
    rendezvous_destroy(&other);
    rendezvous_destroy(&rendezvous);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exchange), cmocka_unit_test(test_no_id)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
