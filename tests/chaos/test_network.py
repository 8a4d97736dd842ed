"""F18 to F21: hosts that cannot see each other, lose packets or are far away; connections cut in the middle, bytes changed.

Every process has a host of its own where the kernel lets us make network namespaces, and the packets vanish there. The variants with the proxy run
everywhere."""
import asyncio
import re
import time

import pytest

import network
from cluster import SLOWER
from faults import spread
from fleet import log_times, wait_for
from scene import bar, play

REJOIN_S = 2.0 * SLOWER
HURT = ("OVER_CAPACITY", "DEADLINE", "NOT_EXACT", "WORKER_LOST")      # what a bad network may end in: none lost, and each with a reason


@pytest.fixture
def namespaces():
    reason = network.unavailable()
    if reason:
        pytest.skip(reason)


class Owners:
    """Watches the records: how often the owner of each conversation changed."""

    def __init__(self, scene):
        self.scene, self.seen = scene, {}

    async def run(self):
        while True:
            for talk in self.scene.load.conversations:
                if talk.turns:
                    place = await self.scene.faults.off_loop(self.scene.fleet.place, talk.name)
                    owners = self.seen.setdefault(talk.name, [])
                    if place.get("owner") and (not owners or owners[-1] != place["owner"]):
                        owners.append(place["owner"])
            await asyncio.sleep(0.5)

    def check(self):
        back = {name: owners for name, owners in self.seen.items() if len(owners) != len(set(owners))}
        moved = sum(len(owners) > 1 for owners in self.seen.values())
        print(f"  {moved} of {len(self.seen)} conversations changed hands, {len(back)} of them back again", flush=True)
        assert not back, f"back and forth: {list(back.items())[:5]}"


async def rejoined(scene, router, worker, since, healed_at):
    """s from the heal until the router has the worker again; 0 if it never gave it up."""
    if not [seen for seen in log_times(router, rf"worker {worker.name} is lost") if seen >= since]:
        return 0.0
    await wait_for(f"{worker.name} at {router.name}", lambda: scene.fleet.sees(router, worker.name), 30 * SLOWER)
    return max(0.0, max(log_times(router, rf"worker {worker.name} is up")) - healed_at)


async def partition(scene, host, others, way, seconds, pairs):
    """Cuts, heals, and how long it took each (router, worker) to be together again."""
    since = time.time()
    for other in others:
        await host.cut(other, way)
    scene.faults.fired(f"{host.name} is cut from {', '.join(getattr(other, 'name', other) for other in others)} ({way}) for {seconds} s")
    await scene.load.run_for(seconds)
    until = time.monotonic() + 10 * SLOWER
    while not (dropped := await host.dropped()):              # leases go all the time, but for a machine that stands still
        assert time.monotonic() < until, "the cut dropped nothing"
        await scene.load.run_for(0.1)
    await host.heal()
    healed_at = time.time()
    took = [await rejoined(scene, router, worker, since, healed_at) for router, worker in pairs]
    print(f"  {dropped} packets dropped; together again after {max(took, default=0.0):.2f} s", flush=True)
    return took


def test_f18_router_cut_from_worker(tmp_path, namespaces):
    """Both ways, one way each, flapping. The other routers see that worker all the time, and nobody fights over conversations."""
    async def story(scene):
        router, worker = scene.fleet.routers[0], scene.fleet.workers[0]
        host, other = scene.fleet.hosts[router.name], scene.fleet.hosts[worker.name]
        owners = Owners(scene)
        watching = asyncio.ensure_future(owners.run())
        took = []
        for way in ("both", "to", "from"):
            took += await partition(scene, host, [other], way, 4, [(router, worker)])
            await scene.load.run_for(1)
        for _ in range(5):
            took += await partition(scene, host, [other], "both", 1, [(router, worker)])
            await scene.load.run_for(1)
        took += await partition(scene, host, [other], "both", 11, [(router, worker)])      # long enough for the owner to change
        await scene.load.run_for(3)
        watching.cancel()
        bar("healed to rejoined, s", max(took), REJOIN_S)
        owners.check()
    play(tmp_path, story, network=True, workers=3, routers=2, load={"alternate": True})


def test_f18_router_cut_from_all_workers(tmp_path, namespaces):
    async def story(scene):
        router = scene.fleet.routers[0]
        host, others = scene.fleet.hosts[router.name], [scene.fleet.hosts[worker.name] for worker in scene.fleet.workers]
        scene.may = HURT
        for way in ("both", "to", "from"):
            took = await partition(scene, host, others, way, 3, [(router, worker) for worker in scene.fleet.workers])
            bar("healed to rejoined, s", max(took), REJOIN_S)
            await scene.load.run_for(3)
    play(tmp_path, story, network=True, workers=3, routers=2)


def test_f18_client_cut_from_router(tmp_path, namespaces):
    """The client goes on through the other router; the one that it cannot reach any more gives it up."""
    async def story(scene):
        host = scene.fleet.hosts["router-1"]
        for way in ("both", "to", "from"):
            await partition(scene, host, [scene.network.address], way, 7, [])
            await scene.load.run_for(3)
    scene, verdict = play(tmp_path, story, network=True, workers=3, routers=2)
    assert any(request.end["moves"] for request in scene.history.requests.values())


def test_f19_cut_from_redis(tmp_path, namespaces):
    """A router, a worker, everybody."""
    async def story(scene):
        redis = scene.fleet.hosts["redis"]
        begin = scene.history.now()
        await scene.load.run_for(4)
        calm = scene.route_p99_ms(begin, scene.history.now())
        everybody = [*(scene.fleet.hosts[worker.name] for worker in scene.fleet.workers),
                     *(scene.fleet.hosts[router.name] for router in scene.fleet.routers)]
        for others in ([scene.fleet.hosts["router-1"]], [scene.fleet.hosts["worker-a"]], everybody):
            begin = scene.history.now()
            at = time.time()
            await partition(scene, redis, others, "both", 6, [])
            p99 = scene.route_p99_ms(begin, scene.history.now())
            print(f"  routers' p99 {p99:.2f} ms, {calm:.2f} ms before", flush=True)
            bar("added to the routers' p99, ms", p99 - calm, 5 * SLOWER)
            await scene.load.run_for(3)
            for router in scene.fleet.routers:
                bar("workers given up", sum(seen >= at for seen in log_times(router, r"worker \S+ is (lost|forgotten)")), 0)
    play(tmp_path, story, network=True, workers=3, routers=2)


@pytest.mark.parametrize("share", (0.05, 0.3))
def test_f20_packets_lost(tmp_path, namespaces, share):
    async def story(scene):
        scene.may = HURT
        for name in ("worker-a", "router-1", "worker-b"):
            host = scene.fleet.hosts[name]
            await host.lose(share)
            scene.faults.fired(f"{name} loses {share:.0%} of what it is sent")
            await scene.load.run_for(6)
            print(f"  {await host.dropped()} packets lost", flush=True)
            assert await host.dropped() > 10
            await host.heal()
        await scene.load.run_for(2)
    scene, verdict = play(tmp_path, story, network=True, workers=3, routers=2, load={"short_deadlines": 0.05})
    check_most_done(verdict)


def test_f20_slow_line(tmp_path, namespaces):
    """1 Mbit/s for what a worker sends."""
    async def story(scene):
        scene.may = HURT
        host = scene.fleet.hosts["worker-a"]
        try:
            await host.slow(1000000)
        except OSError as error:
            pytest.skip(f"no token bucket in this kernel: {error}")
        scene.faults.fired("worker-a sends 1 Mbit/s")
        await scene.load.run_for(8)
        await host.full_speed()
        await scene.load.run_for(2)
    scene, verdict = play(tmp_path, story, network=True, workers=3, routers=2, load={"short_deadlines": 0.05})
    check_most_done(verdict)


def check_most_done(verdict):
    assert verdict.done > 0.8 * verdict.sent, "most of it should have gone through"


def links(scene, names):
    return [f"{name} {kind}" for name in names for kind in ("control", "data")]


def test_f20_far_away(tmp_path):
    """200 ms +- 100 to each worker, then to each router; through the proxy."""
    async def story(scene):
        scene.may = HURT
        for name in ("worker-a", "worker-b", "router-1"):
            for link in links(scene, [name]):
                await scene.proxy.faults(link, up={"delay_ms": 100, "jitter_ms": 100}, down={"delay_ms": 100, "jitter_ms": 100})
            scene.faults.fired(f"{name} is 200 to 400 ms away")
            await scene.load.run_for(6)
            for link in links(scene, [name]):
                await scene.proxy.heal(link)
        await scene.load.run_for(2)
        assert sum(event["fault"] == "delay" for event in scene.proxy.events()) >= 6
    scene, verdict = play(tmp_path, story, workers=3, routers=2, via=("worker-a", "worker-b", "router-1"), load={"short_deadlines": 0.05})
    check_most_done(verdict)


def test_f21_cut_in_the_middle(tmp_path):
    """Connections to workers and routers end in the middle of frames, in every way there is."""
    async def story(scene):
        draws = iter(range(1000))
        for how in ("reset", "fin", "half"):
            for name in ("worker-a", "worker-b", "router-1", "worker-c"):
                for link in links(scene, [name]):
                    await scene.proxy.faults(link, up={"cut_after": 100 + next(draws) * 13, "how": how},
                                             down={"cut_after": 3000 + next(draws) * 101, "how": how})
                scene.faults.fired(f"{name}: connections are cut within frames ({how})")
                await scene.load.run_for(1.5)
                for link in links(scene, [name]):
                    await scene.proxy.heal(link)
                await scene.load.run_for(1.5)
        cuts = sum(event["fault"] == "cut" for event in scene.proxy.events())
        print(f"  {cuts} connections were cut", flush=True)
        assert cuts >= 24
    play(tmp_path, story, workers=3, routers=2, via=("worker-a", "worker-b", "worker-c", "router-1"))


def test_f21_corrupted(tmp_path):
    """Bits flip and chunks swap on the way. There are no keys yet, so a changed token cannot be told from a right one: nothing crashes, nothing is
    lost, and who broke the protocol is connected to anew."""
    async def story(scene):
        scene.may = (*HURT, "INTERNAL", "INVALID", "CONFLICT", "TOO_LARGE", "CANCELLED", "UNSUPPORTED", "UNKNOWN_MODEL", "SLOW_READER")
        for name in ("worker-a", "router-1", "worker-b"):
            for fault in ({"corrupt_rate": 0.03}, {"reorder_rate": 0.03}):
                for link in links(scene, [name]):
                    await scene.proxy.faults(link, up=fault, down=fault)
                scene.faults.fired(f"{name}: {fault}")
                await scene.load.run_for(3)
                for link in links(scene, [name]):
                    await scene.proxy.heal(link)
                    await scene.proxy.cut(link)              # a stream that is out of step stays so
                await scene.load.run_for(2)
        faults = [event["fault"] for event in scene.proxy.events()]
        print(f"  {faults.count('corrupt')} bits changed, {faults.count('reorder')} chunks swapped", flush=True)
        assert faults.count("corrupt") > 20 and faults.count("reorder") > 20
        await scene.load.pause()
        for talk in scene.load.conversations:                # what was changed on the way is in their histories, and need not be valid
            talk.begin()
        scene.load.go_on()
        at = scene.history.now()
        await scene.load.run_for(4)
        late = [request.end["error"] for request in scene.history.requests.values() if request.invoke["at"] > at and request.end]
        assert late and not any(late), "it does not recover"
    play(tmp_path, story, workers=3, routers=2, via=("worker-a", "worker-b", "router-1"), compare=False)
