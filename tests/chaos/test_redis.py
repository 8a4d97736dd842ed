"""F13 to F17: Redis dies, freezes, loses what it had, is poisoned, full, read-only, loading or slow. Serving goes on; only hits may fall."""
import asyncio
import contextlib
import time

from cluster import SLOWER, START_S, Process, free_port
from fleet import wait_for
from scene import bar, long_s, play

ADDED_P99_MS = 5.0 * SLOWER
BEFORE_S = 5


async def before(scene):
    await scene.load.run_for(2)
    begin = scene.history.now()
    await scene.load.run_for(BEFORE_S)
    scene.calm_p99 = scene.route_p99_ms(begin, scene.history.now())


def added(scene, begin, what):
    """The routers' time of the requests sent since `begin`, against those before the first fault."""
    p99 = scene.route_p99_ms(begin, scene.history.now())
    print(f"  {what}: routers' p99 {p99:.2f} ms, {scene.calm_p99:.2f} ms before", flush=True)
    bar(f"{what}: added to the routers' p99, ms", p99 - scene.calm_p99, ADDED_P99_MS)


def live(scene):
    """Conversations that go on: they have had a turn."""
    return [talk for talk in scene.load.conversations if talk.turns]


async def places(scene):
    return {talk.name: await scene.faults.off_loop(scene.fleet.place, talk.name) for talk in live(scene)}


async def started_again(scene):
    """Redis, after its death."""
    await scene.faults.off_loop(scene.fleet.redis.popen.wait)
    scene.fleet.redis.start(wait=False)
    await scene.load.run_for(1)
    await loaded(scene)


async def loaded(scene):
    await wait_for("Redis to answer", lambda: _quietly(scene.fleet.redis.call, "PING") == "PONG", START_S)


async def grown_back(scene, timeout_s=30):
    """Records are there again, each with the worker that the conversation sees."""
    begin = time.monotonic()
    while True:
        found = await places(scene)
        here = sum(1 for talk in live(scene) if found.get(talk.name, {}).get("owner") == talk.worker)
        if here >= 0.9 * len(found):
            print(f"  {here} of {len(found)} records are there {time.monotonic() - begin:.1f} s later", flush=True)
            return
        assert time.monotonic() - begin < timeout_s * SLOWER, f"only {here} of {len(found)} records came back"
        await scene.load.run_for(0.5)


async def one_owner_each(scene):
    """Afterwards every router sends every conversation to the same worker, the one in the record."""
    await scene.load.run_for(2)
    await scene.load.pause()
    at = scene.history.now()
    scene.load.go_on()
    for i in range(len(scene.clients)):        # each conversation through one router after the other
        scene.load.clients = scene.clients[i:] + scene.clients[:i]
        await scene.load.run_for(3)
    await scene.load.pause()
    found, away, turns = await places(scene), 0, 0
    for name, requests in scene.turns(since=at).items():
        requests.sort(key=lambda request: request.invoke["at"])
        away += sum(request.end["route"] not in ("owner", "new") for request in requests)
        turns += len(requests)
        homes = []
        for request in requests:
            if request.end["route"] == "owner" and request.end["worker"] not in homes[-1:]:
                homes.append(request.end["worker"])
        assert len(homes) == len(set(homes)), f"{name} is at home with one and the other: {homes}"
        if homes and found.get(name):      # who answered a turn that Redis was too late for is written as the owner (docs/protocol.md)
            assert found[name]["owner"] in (homes[-1], requests[-1].end["worker"]), f"{name} goes home to {homes}, its record says {found[name]}"
    print(f"  one owner each; {away} of {turns} turns were answered elsewhere, Redis took more than 2 ms", flush=True)
    scene.load.go_on()


def test_f13_redis_killed(tmp_path):
    async def story(scene):
        await before(scene)
        for _ in range(3):
            begin = scene.history.now()
            scene.faults.kill(scene.fleet.redis)
            await scene.load.run_for(3)
            added(scene, begin, "Redis is gone")
            begin = scene.history.now()
            await started_again(scene)
            await grown_back(scene)
            added(scene, begin, "Redis is back, empty")
        await one_owner_each(scene)
    play(tmp_path, story)


def test_f13_redis_killed_with_aof(tmp_path):
    async def story(scene):
        await before(scene)
        for _ in range(3):
            begin, had = scene.history.now(), await scene.faults.redis("DBSIZE")
            scene.faults.kill(scene.fleet.redis)
            await scene.load.run_for(2)
            await started_again(scene)
            has = await scene.faults.redis("DBSIZE")
            print(f"  {had} keys before, {has} after", flush=True)
            assert has > had // 2
            await scene.load.run_for(1)
            added(scene, begin, "Redis was restarted with its log")
        await grown_back(scene)
        await one_owner_each(scene)
    play(tmp_path, story, redis_options=("--appendonly", "yes", "--appendfsync", "everysec"))


def test_f14_redis_stopped(tmp_path):
    async def story(scene):
        await before(scene)
        for seconds in (1, 3, long_s(8, 30)):
            begin = scene.history.now()
            await scene.faults.stop(scene.fleet.redis, seconds)
            added(scene, begin, f"Redis stood still for {seconds} s")
            begin = scene.history.now()
            await scene.load.run_for(2)
            added(scene, begin, "Redis answers again")
        await grown_back(scene)
        await one_owner_each(scene)
    play(tmp_path, story)


def test_f15_stalled_replica_promoted(tmp_path):
    """The primary dies, and the one that takes over had stopped listening to it: it knows an older world."""
    async def story(scene):
        redis = scene.fleet.redis
        port = free_port()
        while port == redis.port:
            port = free_port()
        folder = tmp_path / "replica"
        folder.mkdir()
        replica = Process("redis-replica", ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder,
                                            "--replicaof", "127.0.0.1", redis.port], folder)
        replica.start(wait=False)
        scene.fleet.extra.append(replica)

        def ask(*words):
            own, redis.port = redis.port, port
            try:
                return redis.call(*words)
            finally:
                redis.port = own
        await before(scene)
        await wait_for("the replica to follow", lambda: "up" in str(_quietly(ask, "INFO", "replication")).split("master_link_status:")[-1][:4], START_S)
        await scene.faults.stop(replica, 0.01)
        replica.pause()
        await scene.load.run_for(4)                                # writes that it does not see
        begin = scene.history.now()
        scene.faults.kill(redis)
        await scene.load.run_for(1)
        replica.resume()
        await wait_for("the replica to take over", lambda: _quietly(ask, "REPLICAOF", "NO", "ONE") == "OK", START_S)
        await scene.proxy.retarget("redis", ["127.0.0.1", port])
        redis.killed = True
        redis.port = port                                          # who asks for records now asks there
        scene.faults.fired("a stalled replica took over")
        await scene.load.run_for(3)
        added(scene, begin, "a stalled replica took over")
        await grown_back(scene)
        await one_owner_each(scene)
    play(tmp_path, story, via=("redis",))


def _quietly(function, *arguments):
    try:
        return function(*arguments)
    except (OSError, AssertionError):
        return None


# In one step: a router may write a record of its own in between, and a list does not go there.
POISON = "redis.call('DEL', KEYS[1]) redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2)) return 1"


def test_f16_redis_poisoned(tmp_path):
    """Everything flushed, and nonsense in the place of records: dead workers, wrong types, huge values."""
    async def story(scene):
        await before(scene)
        for round_ in range(2):
            begin = scene.history.now()
            scene.faults.fired("FLUSHALL")
            await scene.faults.redis("FLUSHALL")
            await scene.load.run_for(1)
            await grown_back(scene)
            added(scene, begin, "FLUSHALL")
            begin = scene.history.now()
            scene.faults.fired("half of the records are poisoned")
            poison = (("SET", "a string"), ("HSET", "owner", "worker-of-nowhere", "epoch", "9"), ("HSET", "owner", "x" * 100000, "epoch", "-1"),
                      ("HSET", "owner", "", "epoch", "soon"), ("RPUSH", "a", "list"), ("HSET", "owner", "worker-a", "epoch", "99999999999999999999"))
            for i, talk in enumerate(live(scene)[::2]):
                key = scene.fleet.place_key("default", talk.name)
                await scene.faults.redis("EVAL", POISON, 1, key, *poison[i % len(poison)])
            for worker, value in (("worker-a", "a string"), ("worker-b", None)):
                await scene.faults.redis("DEL", f"roost:worker:{worker}")
                if value:
                    await scene.faults.redis("SET", f"roost:worker:{worker}", value)
            await scene.load.run_for(4)
            added(scene, begin, "poison")
        await scene.faults.redis("FLUSHALL")
        await grown_back(scene)
        await one_owner_each(scene)
    play(tmp_path, story)


def test_f17_redis_full_readonly_loading_slow(tmp_path):
    async def story(scene):
        await before(scene)

        async def phase(what, begin_fault, end_fault, seconds=3):
            begin = scene.history.now()
            scene.faults.fired(what)
            await begin_fault()
            await scene.load.run_for(seconds)
            await end_fault()
            added(scene, begin, what)
            await scene.load.run_for(1)
        redis = scene.faults.redis
        await phase("Redis is full", lambda: redis("CONFIG", "SET", "maxmemory", "1"), lambda: redis("CONFIG", "SET", "maxmemory", "0"))
        await phase("Redis is read-only", lambda: redis("REPLICAOF", "127.0.0.1", "1"), lambda: redis("REPLICAOF", "NO", "ONE"))

        async def reload():
            """A restart that takes its time to read what it kept: LOADING to everybody."""
            await redis("SAVE")
            scene.faults.kill(scene.fleet.redis)
            await scene.faults.off_loop(scene.fleet.redis.popen.wait)
            scene.fleet.redis.start(wait=False)

        await phase("Redis is loading", reload, lambda: loaded(scene))
        await phase("Redis takes 200 ms", lambda: scene.proxy.faults("redis", down={"delay_ms": 200}), lambda: scene.proxy.heal("redis"))
        await phase("Redis sends bytes slowly", lambda: scene.proxy.faults("redis", down={"bytes_per_s": 2000}), lambda: scene.proxy.heal("redis"))
        await grown_back(scene)
        await one_owner_each(scene)
        assert {event["fault"] for event in scene.proxy.events()} >= {"delay", "bandwidth"}
    play(tmp_path, story, via=("redis",), redis_options=("--key-load-delay", "4000", "--loading-process-events-interval-bytes", "1024"))
