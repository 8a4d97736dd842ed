"""F32: faults of all kinds at random, several at a time, for as long as asked; then everything is healed and has to be well within 10 s."""
import asyncio
import contextlib
import http.client
import random
import time

from cluster import SLOWER
from fleet import wait_for
from scene import bar, play

HEALTH_S = 10.0 * SLOWER
HURT = ("OVER_CAPACITY", "DEADLINE", "NOT_EXACT", "WORKER_LOST", "SLOW_READER")
LOAD = {"cancels": 0.05, "short_deadlines": 0.05, "alternate": True}


class Chaos:
    def __init__(self, scene, seed, minutes):
        self.scene, self.draw, self.until = scene, random.Random(seed), time.monotonic() + 60 * minutes
        self.kinds = (self.kill_worker, self.kill_router, self.stop_worker, self.stop_router, self.hang_worker, self.slow_worker, self.probe,
                      self.kill_redis, self.stop_redis, self.flush_redis, self.full_redis, self.cut, self.delay, self.drain)

    def worker(self):
        return self.draw.choice([worker for worker in self.scene.fleet.workers if worker.alive()] or self.scene.fleet.workers)

    def router(self):
        return self.draw.choice([router for router in self.scene.fleet.routers if router.alive()] or self.scene.fleet.routers)

    async def kill_worker(self):
        self.scene.faults.kill(self.worker())

    async def kill_router(self):
        self.scene.faults.kill(self.router())

    async def stop_worker(self):
        await self.scene.faults.stop(self.worker(), self.draw.choice((0.2, 0.5, 1, 3)))

    async def stop_router(self):
        await self.scene.faults.stop(self.router(), self.draw.choice((0.2, 0.5, 1, 3, 7)))

    async def hang_worker(self):
        worker = self.worker()
        with contextlib.suppress(OSError):    # no answer came: it may be armed
            await self.scene.faults.arm(worker, "worker.step=hang")
        runs = worker.starts
        self.scene.faults.fired(f"{worker.name} is to hang")
        await asyncio.sleep(4)
        if worker.alive() and worker.starts == runs:
            self.scene.faults.kill(worker)

    async def slow_worker(self):
        worker = self.worker()
        await self.scene.faults.slow(worker, self.draw.choice((3, 10)))
        await asyncio.sleep(self.draw.random() * 4)
        await self.scene.faults.slow(worker, 1)

    async def probe(self):
        if self.draw.random() < 0.5:
            process, point = self.worker(), self.draw.choice(("request", "accepted", "prefill", "tokens", "done", "lease"))
            where = f"worker.{point}"
        else:
            process, point = self.router(), self.draw.choice(("request", "claim", "dispatch", "tokens", "done"))
            where = f"router.{point}"
        action = self.draw.choice(("kill", "sleep:300", "fail"))
        await self.scene.faults.arm(process, f"{where}={action}@{self.draw.randint(1, 30)}")
        self.scene.faults.fired(f"{process.name}: {where}={action}")

    async def kill_redis(self):
        redis = self.scene.fleet.redis
        self.scene.faults.kill(redis)
        await self.scene.faults.off_loop(redis.popen.wait)
        await asyncio.sleep(self.draw.random() * 3)
        redis.start(wait=False)

    async def stop_redis(self):
        await self.scene.faults.stop(self.scene.fleet.redis, self.draw.choice((0.1, 1, 4)))

    async def flush_redis(self):
        self.scene.faults.fired("FLUSHALL")
        await self.scene.faults.redis("FLUSHALL")

    async def full_redis(self):
        self.scene.faults.fired("Redis is full")
        await self.scene.faults.redis("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(self.draw.random() * 3)
        await self.scene.faults.redis("CONFIG", "SET", "maxmemory", "0")

    def link(self):
        return f"{self.draw.choice(sorted(self.scene.fleet.via))} {self.draw.choice(('control', 'data'))}"

    async def cut(self):
        link, how = self.link(), self.draw.choice(("reset", "fin", "half"))
        count = await self.scene.proxy.cut(link, how)
        self.scene.faults.fired(f"{count} connections of {link} are cut ({how})")

    async def delay(self):
        link = self.link()
        fault = self.draw.choice(({"delay_ms": 200, "jitter_ms": 100}, {"bytes_per_s": 50000}, {"blackhole": True},
                                  {"cut_after": self.draw.randint(1, 5000)}))
        await self.scene.proxy.faults(link, **{self.draw.choice(("up", "down")): fault})
        self.scene.faults.fired(f"{link}: {fault}")
        await asyncio.sleep(self.draw.random() * 4)
        await self.scene.proxy.heal(link)

    async def drain(self):
        self.scene.faults.terminate(self.draw.choice((self.worker(), self.router())))

    async def one(self, kind):
        """A fault may find its target gone already: then it did not happen."""
        with contextlib.suppress(OSError, ProcessLookupError, AssertionError, http.client.HTTPException):
            await kind()

    async def run(self):
        running = set()
        while time.monotonic() < self.until:
            running = {task for task in running if not task.done()}
            if len(running) < 3:
                running.add(asyncio.ensure_future(self.one(self.draw.choice(self.kinds))))
            await self.scene.load.run_for(self.draw.random() * 1.5)
        await asyncio.gather(*running)

    async def health(self):
        """Everything is healed: each worker at each router, and nothing but good replies, within 10 s."""
        fleet, begin = self.scene.fleet, time.monotonic()
        for name in fleet.via:
            for kind in ("control", "data"):
                await self.scene.proxy.heal(f"{name} {kind}")
        with contextlib.suppress(OSError, AssertionError):
            await self.scene.faults.redis("CONFIG", "SET", "maxmemory", "0")
        for process in (*fleet.routers, *fleet.workers):
            await fleet.ready(process)
        for worker in fleet.workers:
            await fleet.up(worker.name)
        took = time.monotonic() - begin
        self.scene.faults.fired("everything is healed")
        while time.monotonic() < begin + HEALTH_S:
            await self.scene.load.run_for(0.1)
        at = self.scene.history.now()
        await self.scene.load.run_for(5)
        await wait_for("replies", lambda: sum(1 for request in self.scene.history.requests.values() if request.done and request.invoke["at"] > at) > 100,
                       30 * SLOWER, 0.1)
        await self.scene.load.pause()
        late = [request.end for request in self.scene.history.requests.values()
                if request.invoke["at"] > at and request.end and request.end["error"] and request.end["error"] not in request.invoke["may"]]
        print(f"  healed: all workers at all routers after {took:.1f} s", flush=True)
        bar("healed to healthy, s", took, HEALTH_S)
        assert not late, f"10 s after everything was healed: {late[:3]}"


def chaos(directory, seed, minutes):
    async def story(scene):
        scene.may = HURT
        driver = Chaos(scene, seed, minutes)
        await driver.run()
        await driver.health()
    return play(directory, story, seed=seed, workers=4, routers=3, via=("worker-a", "worker-b", "router-1"), load=LOAD)
