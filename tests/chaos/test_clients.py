"""F22, F23: clients that stop reading, cancel, freeze or vanish. What they held comes back."""
import asyncio
import random
import signal
import sys

from cluster import SLOWER
from faults import spread
from fleet import wait_for
from load import Load, perform, to_call
from scene import bar, long_s, play

# A client in a process of its own, to be stopped or killed: starts streams, reads what comes, and says how much.
CLIENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import roost
async def main():
    async with roost.Client(sys.argv[3:], spread=False) as client:
        calls = [client.generate(prompt_ids=[1000 + i, 1001, 1002], conversation=f"gone-{sys.argv[2]}-{i}", seed=i,
                                 sampling=roost.Sampling(tokens_max=4000)) for i in range(60)]
        async def read(call):
            async for batch in call:
                print(len(batch.ids), flush=True)
        await asyncio.gather(*map(read, calls))
asyncio.run(main())
"""


async def start_client(scene, name):
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", sys.executable, "-B", "-c", CLIENT, sys.path[0], name,
        *[scene.fleet.control_of(router.name) for router in scene.fleet.routers], stdout=asyncio.subprocess.PIPE)
    return process


async def streams(process, batches):
    for _ in range(batches):
        assert await asyncio.wait_for(process.stdout.readline(), 20 * SLOWER)


def in_flight(scene):
    """What the routers and the workers say that they have open."""
    routers = sum(value for router in scene.fleet.routers for name, value in scene.fleet.metrics(router).items()
                  if name.startswith("roost_router_in_flight{"))
    workers = sum(scene.fleet.metrics(worker)["roost_worker_streams"] for worker in scene.fleet.workers)
    return routers, workers


async def back_to_nothing(scene, timeout_s=20):
    """Nobody asks any more: nothing is in flight anywhere."""
    await scene.load.pause()
    begin = scene.history.now()
    found = None
    while (found := await scene.faults.off_loop(in_flight, scene)) != (0, 0):
        assert scene.history.now() - begin < timeout_s * SLOWER, f"still in flight: routers {found[0]}, workers {found[1]}"
        await asyncio.sleep(0.05)
    print(f"  nothing in flight {scene.history.now() - begin:.2f} s after the last end", flush=True)
    scene.load.go_on()


def memory(scene):
    return {process.name: scene.fleet.memory_kib(process) for process in (*scene.fleet.routers, *scene.fleet.workers)}


def check_flat(before, after, what):
    grown = {name: after[name] - before[name] for name in before}
    print(f"  {what}: memory grew by {max(grown.values())} KiB at most", flush=True)
    assert all(after[name] < before[name] * 1.05 + 16 * 1024 for name in before), f"{what}: {grown}"


def gaps_p99(scene, since, until):
    """Between two batches of tokens of one request."""
    gaps = sorted(b["at"] - a["at"] for request in scene.history.requests.values() for a, b in zip(request.tokens, request.tokens[1:])
                  if since <= a["at"] and b["at"] < until)
    return gaps[len(gaps) * 99 // 100]


def test_f22_reader_stops(tmp_path):
    """It starts streams and reads none of them: a window of tokens each and no more, then SLOW_READER. Others do not notice."""
    async def story(scene):
        await scene.load.run_for(4)
        calm = gaps_p99(scene, 0, scene.history.now())
        await scene.load.pause()
        before = await scene.faults.off_loop(memory, scene)
        scene.load.go_on()
        await scene.load.run_for(2)
        begin = scene.history.now()
        async with scene.fleet.client() as client:
            calls = [to_call(client, {"conversation": f"unread-{i}", "prompt_ids": [1000 + i, 1001], "sampling": {"tokens_max": 6000},
                                      "seed": i, "deadline_ms": 120000 * SLOWER}) for i in range(60)]
            scene.faults.fired("60 streams that nobody reads")
            ends = asyncio.ensure_future(asyncio.wait([asyncio.ensure_future(unread_end(call)) for call in calls], timeout=70 * SLOWER))
            await scene.load.run_for(15)
            middle = await scene.faults.off_loop(memory, scene)
            check_flat(before, middle, "unread streams")
            done, pending = await ends
            codes = sorted(task.result().error.name for task in done)
            print(f"  after {scene.history.now() - begin:.1f} s: {len(codes)} ended, {set(codes)}", flush=True)
            assert not pending and set(codes) == {"SLOW_READER"}
        now = scene.history.now()
        p99 = gaps_p99(scene, begin, now)
        print(f"  between batches of the others: p99 {p99 * 1e3:.0f} ms, {calm * 1e3:.0f} ms before", flush=True)
        bar("between batches of the others, p99, s", p99, 1.5 * calm + 0.05 * SLOWER)
        await back_to_nothing(scene)
        check_flat(before, await scene.faults.off_loop(memory, scene), "afterwards")
    play(tmp_path, story, routers=2)


async def unread_end(call):
    while call._end is None:                  # end() would say that everything may come
        await asyncio.sleep(0.1)
    return call._end


def test_f22_client_stopped(tmp_path):
    """A process that is frozen in the middle of 60 streams: its lease ends and with it its streams; awake again it learns of it."""
    async def story(scene):
        await scene.load.pause()
        before = await scene.faults.off_loop(memory, scene)
        scene.load.go_on()
        for i in range(2):
            process = await start_client(scene, f"frozen-{i}")
            try:
                await streams(process, 200)
                process.send_signal(signal.SIGSTOP)
                scene.faults.fired("a client with 60 streams is stopped")
                await scene.load.run_for(7)
                await back_to_nothing(scene)
                process.send_signal(signal.SIGCONT)
                await scene.load.run_for(1)
            finally:
                process.kill()
                await process.wait()
        await back_to_nothing(scene)
        check_flat(before, await scene.faults.off_loop(memory, scene), "frozen clients")
    play(tmp_path, story, routers=2)


def test_f23_cancels(tmp_path):
    """A third of all requests is cancelled, at any moment from before they are sent on until they are done."""
    async def story(scene):
        scene.load.turn_s = 1.5
        for _ in range(3):
            await scene.load.run_for(1)
            scene.faults.fired("a third of all requests is cancelled at some time")
            await scene.load.run_for(4)
            await back_to_nothing(scene)
        took = [request.end["at"] - request.cancelled_at for request in scene.history.requests.values()
                if request.cancelled_at and request.end and request.end["error"] == "CANCELLED"]
        stages = {"before any token": 0, "later": 0}
        for request in scene.history.requests.values():
            if request.end and request.end["error"] == "CANCELLED":
                stages["later" if request.tokens else "before any token"] += 1
        print(f"  from cancel to end: {spread(took)}; {stages}", flush=True)
        assert len(took) > 50 and all(stages.values())
        bar("cancel to end, p95, s", sorted(took)[len(took) * 95 // 100], 0.25 * SLOWER)
        for router in scene.fleet.routers:
            figures = await scene.faults.off_loop(scene.fleet.metrics, router)
            count, total = figures["roost_router_cancel_seconds_count"], figures["roost_router_cancel_seconds_sum"]
            if count:
                print(f"  {router.name}: {count:.0f} cancels, {total / count * 1e3:.1f} ms each until the worker was free", flush=True)
    play(tmp_path, story, routers=2, load={"cancels": 0.33, "short_deadlines": 0.05})


def test_f23_clients_vanish(tmp_path):
    """kill -9 of clients at every stage: their leases end, and what they had open is free again."""
    async def story(scene):
        await scene.load.pause()
        before = await scene.faults.off_loop(memory, scene)
        scene.load.go_on()
        for i, batches in enumerate((0, 1, 100, 600)):
            process = await start_client(scene, f"killed-{i}")
            await (streams(process, batches) if batches else asyncio.sleep(0.3))
            process.kill()
            scene.faults.fired(f"a client with 60 streams is killed after {batches} batches of tokens")
            await process.wait()
            await scene.load.run_for(1)
        await scene.load.run_for(6)           # the leases of 5 s
        await back_to_nothing(scene)
        check_flat(before, await scene.faults.off_loop(memory, scene), "vanished clients")
    play(tmp_path, story, routers=2)
