"""F1 to F8: workers that die, freeze, hang, crawl, all go away, crash again and again, or are killed by what they are asked."""
import asyncio
import itertools
import signal
import time

from cluster import SLOWER, VOCABULARY, SANITIZED
from faults import spread
from fleet import PROFILE, log_times, probes_fired, wait_for
from load import perform
from scene import bar, long_s, play

DETECT_KILLED_S = 0.1         # F1: a connection that is refused tells it at once
NOTICE_S = 0.1 * SLOWER       # for a loop of a busy machine to come round


def middle(values):
    return sorted(values)[len(values) // 2]


async def kill_at(scene, worker, point):
    """Arms the point, waits for it to kill the worker, then until everything is as before."""
    deaths = len(scene.fleet.deaths)
    hit = scene.owned_by(worker.name)
    await scene.faults.arm(worker, f"{point}=kill@5")
    await wait_for(f"{point} to be passed in {worker.name}", lambda: len(scene.fleet.deaths) > deaths, 30 * SLOWER)
    assert scene.fleet.deaths[-1].process == worker.name and scene.fleet.deaths[-1].probe == f"{point} kill"
    await scene.measure(scene.history.faults[-1], worker, hit)


def test_f1_worker_killed(tmp_path):
    """kill -9 at each named point of a request, in the middle of whatever runs, and of a worker that does nothing."""
    points = ("worker.accepted", "worker.prefill", "worker.tokens", "worker.done")

    async def story(scene):
        workers = itertools.cycle(scene.fleet.workers)
        for point in points * 2:
            await kill_at(scene, next(workers), point)
        for _ in range(2):
            await scene.kill_and_wait(next(workers))
        await scene.load.pause()
        idle = next(workers)
        scene.faults.kill(idle)
        await asyncio.sleep(scene.fleet.restart_delay_s)
        await scene.fleet.up(idle.name)
        scene.load.go_on()
        await scene.load.run_for(2 * SLOWER)
    scene, verdict = play(tmp_path, story)
    assert len(scene.fleet.deaths) == 11
    assert scene.resumed, "nothing ran on the workers that were killed"
    bar("killed to detected, median, s", middle(scene.detected), DETECT_KILLED_S + NOTICE_S)
    bar("killed to tokens again, median, s", middle(scene.resumed), 1.0 * SLOWER)


def test_f1_shipped_model(tmp_path):
    """The same tokens on the model that is shipped: the engine's numbers, not the simulation's."""
    async def story(scene):
        for worker in scene.fleet.workers * 2:
            await scene.kill_and_wait(worker)
    scene, verdict = play(tmp_path, story, simulate=None, workers=2, routers=1, load={"conversations": 16, "tokens": (100, 300), "full": True},
                          worker_settings={"sequences_max": 64})
    assert len(scene.fleet.deaths) == 4 and scene.resumed


def test_f2_worker_stopped(tmp_path):
    """Under 0.6 s nothing moves; longer, its streams go on elsewhere, and what it says when it wakes up is dropped."""
    async def story(scene):
        workers = itertools.cycle(scene.fleet.workers)
        for seconds in (0.3, 0.3, 2, 2, long_s(8, 30)):
            worker = next(workers)
            hit = scene.owned_by(worker.name)
            event = await scene.faults.stop(worker, seconds)
            await scene.load.run_for(1.5)
            await scene.fleet.up(worker.name)
            lost = scene.faults.detected_s(event, worker.name)
            print(f"  {seconds} s: given up by {len(lost)} routers after {spread(lost)}, tokens again after "
                  f"{spread(scene.faults.resumed_s(event, hit))}", flush=True)
            if seconds < 0.6 and not SANITIZED:
                bar(f"routers that gave it up after a stop of {seconds} s", len(lost), 0)
            if seconds > 2:
                assert len(lost) == len(scene.fleet.routers)
                bar("stopped to given up, s", max(lost), 2.0 + 0.5 * SLOWER)
                scene.resumed += scene.faults.resumed_s(event, hit)
        await scene.load.run_for(2 * SLOWER)
    scene, verdict = play(tmp_path, story)
    assert not scene.fleet.deaths
    bar("stopped to tokens again, s", max(scene.resumed), 4.0 * SLOWER)


def test_f3_worker_hung(tmp_path):
    """The engine's thread stands still while leases go on: told by the steps that it does not make."""
    async def story(scene):
        for worker in scene.fleet.workers[:3]:
            hit = scene.owned_by(worker.name)
            await scene.faults.arm(worker, "worker.step=hang")
            await wait_for(f"{worker.name} to hang", lambda: "worker.step hang" in probes_fired(worker), 10 * SLOWER)
            event = scene.faults.fired(f"{worker.name} hangs")
            await scene.load.run_for(4)
            await wait_for("every router to notice", lambda: len(scene.faults.detected_s(event, worker.name)) == len(scene.fleet.routers), 20 * SLOWER)
            assert worker.alive()
            scene.detected += scene.faults.detected_s(event, worker.name)
            scene.resumed += scene.faults.resumed_s(event, hit)
            scene.faults.kill(worker)             # nobody else gets it out of this
            await scene.load.run_for(scene.fleet.restart_delay_s + 0.1)
            await scene.fleet.up(worker.name)
            await scene.load.run_for(1)
    scene, verdict = play(tmp_path, story)
    assert len(scene.detected) == 3 * len(scene.fleet.routers), "not every router noticed"
    bar("hung to given up, s", max(scene.detected), 2.0 + 0.5 * (SLOWER - 1))            # WORKER_STEP_MS, a lease, two loops' turns
    assert scene.resumed


def shares(scene, since, until):
    """Of the conversations that began between these times, how many went to each worker."""
    firsts = [turns[0] for turns in scene.turns(since, until).values() if turns[0].invoke["request"]["conversation"] not in scene.before]
    count = {worker.name: 0 for worker in scene.fleet.workers}
    for request in firsts:
        count[request.end["worker"]] += 1
    return count


def test_f5_straggler(tmp_path):
    """One that is ten times as slow gets fewer new conversations; when all are slow nobody is given up."""
    async def story(scene):
        slow = scene.fleet.workers[0]
        await scene.load.run_for(4)
        for _ in range(2):
            scene.before = {request.invoke["request"]["conversation"] for request in scene.history.requests.values()}
            event = await scene.faults.slow(slow, 10)
            await scene.load.run_for(10)
            count = shares(scene, event["at"] + 1.0, scene.history.now())
            print(f"  new conversations while {slow.name} is slow: {count}", flush=True)
            assert sum(count.values()) > 20
            bar(f"new conversations at {slow.name} while it is slow", count[slow.name], 0.6 * sum(count.values()) / len(count))
            await scene.faults.slow(slow, 1)
            await scene.load.run_for(2)
        at = time.time()
        for worker in scene.fleet.workers:
            await scene.faults.slow(worker, 5)
        await scene.load.run_for(6)
        for worker in scene.fleet.workers:
            await scene.faults.slow(worker, 1)
        for router in scene.fleet.routers:
            bar("workers given up for being slow", sum(seen >= at for seen in log_times(router, r"worker \S+ is lost")), 0)
    scene, verdict = play(tmp_path, story, load={"turns_max": 3, "tokens": (4, 16)})
    assert not scene.fleet.deaths


def test_f6_all_workers_gone(tmp_path):
    """Who cannot wait is told to come again; once they are back everything is as before."""
    async def story(scene):
        scene.may = ("OVER_CAPACITY", "NOT_EXACT", "WORKER_LOST")        # what may be sent again, by protocol.md
        for _ in range(2):
            scene.fleet.down = {worker.name for worker in scene.fleet.workers}
            for worker in scene.fleet.workers:
                scene.faults.kill(worker)
            await scene.load.run_for(long_s(5, 20))
            scene.fleet.down = set()
            for worker in scene.fleet.workers:
                await scene.fleet.ready(worker)
            at = scene.history.now()
            for worker in scene.fleet.workers:
                await scene.fleet.up(worker.name)
            scene.faults.fired("all workers are back")
            await scene.load.run_for(3.0 * SLOWER + 5)
            late = [request.end["error"] for request in scene.history.requests.values()
                    if request.invoke["at"] > at + 3.0 * SLOWER and request.end and request.end["error"]]
            bar("errors later than 3 s after the workers were back", len(late), 0)
            def done():
                return sum(1 for request in scene.history.requests.values() if request.done and request.end["at"] > at + 3.0 * SLOWER)
            print(f"  {done()} done in the 5 s that begin {3 * SLOWER} s after their return", flush=True)
            await wait_for("replies", lambda: done() > 50, 30 * SLOWER, 0.1)
    play(tmp_path, story)


def test_f7_crash_loop(tmp_path):
    """One worker dies a second after each start: the others carry on, and less and less is tried with it."""
    async def story(scene):
        loop = scene.fleet.workers[0]
        loop.environment["ROOST_PROBES"] = "worker.lease=kill@30"     # two connections to three routers, five leases a second
        scene.faults.kill(loop)

        def deaths():
            return sum(death.process == loop.name for death in scene.fleet.deaths)
        await scene.load.run_for(20)
        print(f"  {deaths()} deaths of {loop.name} in 20 s", flush=True)
        await wait_for("eight deaths", lambda: deaths() >= 8, 60 * SLOWER)
        begun = [request.invoke["at"] for request in scene.history.requests.values() if request.end and request.end["worker"] == loop.name]
        print(f"  {len([at for at in begun if at > scene.history.now() - 10])} requests ended there in the last 10 s", flush=True)
        del loop.environment["ROOST_PROBES"]
    play(tmp_path, story)


def test_f8_poison(tmp_path):
    """A request that kills whoever computes it: two workers die, it fails with a reason, and nobody else does."""
    poison = VOCABULARY - 5                    # an id that nothing proposes and the load does not use

    async def story(scene):
        scene.fleet.expected_deaths.add(-signal.SIGABRT)
        for i in range(3):
            deaths = len(scene.fleet.deaths)
            scene.faults.fired("a poisoned request is sent")
            request = {"conversation": f"poison-{i}", "prompt_ids": [1000 + i, 1001, poison], "sampling": {"tokens_max": 4}, "seed": i,
                       "deadline_ms": 60000 * SLOWER}
            end = await perform(scene.clients[0], scene.history, request, bytes([i]) * 16, may=["WORKER_LOST"])
            assert end["error"] == "WORKER_LOST" and "two workers" in end["detail"], end
            await wait_for("two deaths", lambda: len(scene.fleet.deaths) >= deaths + 2, 30 * SLOWER)
            await scene.load.run_for(1)
            killed = scene.fleet.deaths[deaths:]
            print(f"  killed: {', '.join(death.process for death in killed)}", flush=True)
            assert [death.code for death in killed] == [-signal.SIGABRT] * 2
            for worker in scene.fleet.workers:
                await scene.fleet.up(worker.name)
            await scene.load.run_for(3)
    play(tmp_path, story, simulate=f"{PROFILE},poison={poison}")
