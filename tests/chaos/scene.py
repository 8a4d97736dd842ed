"""One test of the fleet: a load on a fleet, a story of faults, the count at the end.

  def test_f1(tmp_path):
      async def story(scene):
          scene.faults.kill(scene.fleet.workers[0])
          await scene.load.run_for(3)
      play(tmp_path, story, workers=4)
"""
import asyncio
import contextlib
import gc
import os
import statistics
import time

from cluster import SLOWER
from faults import Faults, spread
from fleet import PROFILE, Fleet
from history import TERMINAL_SLACK_S, History, assert_kept
from load import Load, undisturbed
from network import Network
from proxy import Proxy

SEED = int(os.environ.get("ROOST_TEST_SEED") or 1)
LONG = os.environ.get("ROOST_TEST_LONG") == "1"       # freezes of 30 s instead of 8
BARS = os.environ.get("ROOST_TEST_BARS") == "1"       # on a machine that is otherwise idle: times and shares must be met
CONVERSATIONS = 220           # at least 200 at a time


def bar(what, value, most):
    """A figure that depends on how busy the machine is: always printed, a failure only with ROOST_TEST_BARS=1."""
    met = value <= most
    print(f"  bar: {what}: {value:.3f}, at most {most:.3f}: {'met' if met else 'MISSED'}", flush=True)
    assert met or not BARS, f"{what}: {value:.3f}, at most {most:.3f}"


def long_s(short, long):
    return long if LONG else short


class Scene:
    def __init__(self, fleet, load, faults, history, proxy, network):
        self.fleet, self.load, self.faults, self.history, self.proxy, self.network = fleet, load, faults, history, proxy, network
        self.clients = load.clients           # one for each router
        self.may = ()                         # errors that the story allows besides those that requests asked for
        self.resumed, self.detected = [], []

    def owned_by(self, worker):
        """Conversations that the load last saw there."""
        return {talk.name for talk in self.load.conversations if talk.worker == worker}

    async def kill_and_wait(self, process):
        """kill -9, the time to detect and to resume, and everything as before."""
        is_worker = process in self.fleet.workers
        hit = self.owned_by(process.name) if is_worker else {talk.name for talk in self.load.conversations}
        event = self.faults.kill(process)
        await self.measure(event, process, hit)

    async def measure(self, event, process, hit, settle_s=2.0):
        await self.load.run_for(self.fleet.restart_delay_s + 0.1)
        if process in self.fleet.workers:
            await self.fleet.up(process.name)
        else:
            await self.fleet.ready(process)
        await self.load.run_for(settle_s * SLOWER)
        if process in self.fleet.workers:
            self.detected += self.faults.detected_s(event, process.name)
        self.resumed += self.faults.resumed_s(event, hit)

    def turns(self, since=0.0, until=1e9):
        """(conversation, ends of its turns in order) of what was sent between these times."""
        talks = {}
        for request in self.history.requests.values():
            if request.done and since <= request.invoke["at"] < until:
                talks.setdefault(request.invoke["request"]["conversation"], []).append(request)
        return talks

    def workers_changed(self, since=0.0, until=1e9):
        """How often two turns of a conversation that follow each other were answered by different workers."""
        changes = []
        for name, turns in self.turns(since, until).items():
            turns.sort(key=lambda request: request.invoke["at"])
            changes += [(name, before.end["worker"], after.end["worker"], after.end["route"], after.invoke["at"])
                        for before, after in zip(turns, turns[1:]) if before.end["worker"] != after.end["worker"]]
        return changes

    def cached_share(self, since=0.0, until=1e9):
        """Of what a turn could have found (the turn before it: prompt and reply), so much was."""
        found = possible = 0
        for turns in self.turns().values():
            turns.sort(key=lambda request: request.invoke["at"])
            for before, after in zip(turns, turns[1:]):
                if since <= after.invoke["at"] < until:
                    found += min(after.end["cached_tokens"], before.end["prompt_tokens"])
                    possible += before.end["prompt_tokens"]
        return found / possible if possible else 1.0

    def route_p99_ms(self, since, until):
        """The routers' own part of the time of requests that were sent between these times."""
        times = sorted(request.end["route_us"] for request in self.history.requests.values()
                       if request.done and since <= request.invoke["at"] < until)
        return times[len(times) * 99 // 100] / 1e3 if times else 0.0


async def _play(directory, story, load, options, network, simulate, seed, compare):
    directory.mkdir(parents=True, exist_ok=True)
    print(f"\nseed {seed}", flush=True)
    history = History(directory / "history.jsonl")
    async with contextlib.AsyncExitStack() as stack:
        net = None
        if network:
            net = await stack.enter_async_context(Network())
            workers, routers = options.get("workers", 4), options.get("routers", 3)
            names = [f"worker-{chr(ord('a') + i)}" for i in range(workers)] + [f"router-{i + 1}" for i in range(routers)] + ["redis"]
            options["hosts"] = {name: await net.host(name) for name in names}
        proxy = None
        if options.get("via"):
            proxy = options["proxy"] = await stack.enter_async_context(Proxy(directory, seed))
        fleet = await stack.enter_async_context(Fleet(directory, simulate=simulate, **options))
        clients = [await stack.enter_async_context(client) for client in fleet.clients()]
        talk = Load(clients, history, seed, **load)
        faults = Faults(fleet, history)
        scene = Scene(fleet, talk, faults, history, proxy, net)
        async with talk:
            await talk.warm()
            await story(scene)
        await story_end(scene)
    history.close()
    at = time.monotonic()
    references = await undisturbed(history, directory / "undisturbed", simulate) if compare else None
    if scene.detected or scene.resumed:
        print(f"  detected after {spread(scene.detected)}; tokens again after {spread(scene.resumed)}")
    least = min((event["in_flight"] for event in history.faults), default=0)
    print(f"  {len(history.faults)} faults, at least {least} of {len(talk.conversations)} conversations with an open request; "
          f"{talk.lag.line()}; undisturbed run {time.monotonic() - at:.1f} s")
    verdict = assert_kept(history, references, scene.may)
    bar("deadline to end, the latest, s", verdict.latest, TERMINAL_SLACK_S)
    return scene, verdict


async def story_end(scene):
    """Nothing is open any more at the routers and the workers, as they say themselves."""
    assert not scene.history.in_flight(), "the load ended with open requests"


def play(directory, story, simulate=PROFILE, network=False, seed=None, compare=True, load=None, **options):
    # The history of ten minutes is millions of objects: a full collection would look through them all and stop the load for seconds.
    gc.set_threshold(*gc.get_threshold()[:2], 1 << 30)
    return asyncio.run(_play(directory, story, {"conversations": CONVERSATIONS, **(load or {})}, options, network, simulate,
                             SEED if seed is None else seed, compare))
