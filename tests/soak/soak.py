#!/usr/bin/env python3
"""Random clients against a real router and real workers for as long as asked: memory stays flat, nothing stalls, every request ends once.

  tests/soak/soak.py --minutes 30 [--seed N] [--clients N] [--workers N]

Clients hold conversations (goes on, retries, edits), with random sampling, choices and stop strings; they cancel, set deadlines that are too
short, send what is refused, and vanish without a word in the middle of replies. The workers' KV cache is too small for all of it, so pages
move to the host tier, are evicted, and sequences are preempted. Checked while it runs and at the end:
  - a request ends exactly once, with a code that its kind of request may have; tokens come in order (tests/cluster/wire_client.py);
  - greedy replies to the same prompt are the same, whatever else goes on;
  - no request waits for its next sign of life longer than --stall seconds;
  - afterwards no worker has a request running or waiting;
  - the KV cache was too small: the workers say at their end that they suspended, demoted, promoted and evicted (after five minutes or more);
  - memory of each process: the highest reading of the last third at most 5% + 8 MiB above that of the second third (in less than five minutes
    and the KV cache, which may not have been full before).
Last line: one JSON object. Exit code 0: all of it held. 1: it did not. 2: wrong use.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cluster"))
from cluster import SLOWER, SOURCE_DIR, Cluster  # noqa: E402
from wire_client import ASSISTANT, SYSTEM, Peer, router_peer, say  # noqa: E402

CONVERSATIONS = 6             # of one client
MESSAGES_MAX = 60             # then the conversation begins anew
OPEN_MAX = 4                  # requests of one client at a time
KV_MIB = 16                   # of each tier: too small for all conversations
FULL_S = 300                  # until then the KV cache may not have been full
# Cancel, deadline and refusal are wanted; anything else has to end well.
EXPECTED = {"cancel": {"OK", "CANCELLED", "OVER_CAPACITY"}, "deadline": {"OK", "DEADLINE", "OVER_CAPACITY"},
            "too large": {"TOO_LARGE", "OVER_CAPACITY"}, "invalid": {"INVALID", "OVER_CAPACITY"}, "turn": {"OK", "OVER_CAPACITY"}}


PRESSURE = re.compile(r"KV cache: (?P<suspended>\d+) sequences suspended, (?P<demoted>\d+) pages demoted, (?P<promoted>\d+) promoted, "
                      r"(?P<evicted>\d+) conversations evicted")


class Failure(Exception):
    pass


def scene_lines():
    """What people say to each other, in the scenes of tests/data."""
    lines = []
    for row in (SOURCE_DIR / "tests" / "data" / "scenes.jsonl").read_text().splitlines():
        collect_texts(json.loads(row), lines)
    return lines


def collect_texts(value, lines):
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "text":
                lines.append(part)
            else:
                collect_texts(part, lines)
    elif isinstance(value, list):
        for part in value:
            collect_texts(part, lines)


class Talk:
    """One conversation: its history and the request that is open in it."""

    def __init__(self, name):
        self.name, self.number, self.messages, self.open = name, 0, [], None

    def conversation(self):
        return f"{self.name}-{self.number}"

    def renew(self, line):
        self.number += 1
        self.messages = [say(line, role=SYSTEM)]


class Client:
    def __init__(self, soak, number):
        self.soak, self.number, self.random = soak, number, random.Random(soak.seed * 1000 + number)
        self.talks = [Talk(f"client-{number}-{i}") for i in range(CONVERSATIONS)]
        for talk in self.talks:
            talk.renew(self.line())
        self.peer, self.peers = None, 0
        self.connect()

    def line(self):
        return self.random.choice(self.soak.lines)

    def connect(self):
        self.peers += 1
        self.peer = Peer(self.random.choice(self.soak.cluster.routers).ready["control"], name=f"soak-{self.number}-{self.peers}")

    def open_talks(self):
        return [talk for talk in self.talks if talk.open]

    def vanish(self):
        """The process of this client dies; another takes its conversations over."""
        for talk in self.open_talks():
            talk.open = None
            self.soak.counts["abandoned"] += 1
        self.peer.close()
        self.connect()

    def sampling(self):
        draw = self.random
        fields = {"tokens_max": draw.randint(1, 48)}
        if draw.random() < 0.5:
            fields["temperature"] = draw.choice((0.3, 0.8, 1.5))
        for chance, key, values in ((0.2, "top_p", (0.5, 0.9)), (0.2, "top_k", (1, 40)), (0.1, "min_p", (0.05,)),
                                    (0.1, "repetition_penalty", (1.2,)), (0.1, "frequency_penalty", (0.5,)), (0.1, "tokens_min", (1, 4)),
                                    (0.15, "choices", (2, 3)), (0.15, "stop", ([b"\n"], [b"thou", b". "])), (0.1, "logprobs", (1, 5))):
            if draw.random() < chance:
                fields[key] = draw.choice(values)
        fields["tokens_min"] = min(fields.get("tokens_min", 0), fields["tokens_max"])
        return fields

    def begin(self, talk):
        draw = self.random.random()
        if len(talk.messages) > MESSAGES_MAX:
            talk.renew(self.line())
        if draw < 0.07 and len(talk.messages) > 2:
            pass                                                       # the same prompt again
        elif draw < 0.10 and len(talk.messages) > 2:
            talk.messages = list(talk.messages)
            talk.messages[self.random.randrange(1, len(talk.messages))] = say(self.line(), "ROMEO")
        else:
            talk.messages = talk.messages + [say(self.line(), "ROMEO")]
        kind = self.random.choices(("turn", "cancel", "deadline", "too large", "invalid"), (90, 5, 2, 1, 2))[0]
        head = {"conversation": talk.conversation(), "tenant": f"tenant-{self.number % 3}",
                "priority": self.random.choice((0, 0, 1))}
        body, messages = self.sampling(), talk.messages
        if kind == "deadline":
            head["deadline_ms"] = self.random.randint(1, 200)
        elif kind == "too large":
            messages = [say("Never, never, never, never, never! " * 2000)]
        elif kind == "invalid":
            body["temperature"] = -1.0
        request = self.peer.start(messages, head, reply_name="JULIET", **body)
        request.kind, request.last_sign, request.signs, request.expected = kind, time.monotonic(), 0, None
        request.twin = (list(messages), body) if kind == "turn" and "choices" not in body and "temperature" not in body else None
        request.cancel_at = time.monotonic() + self.random.random() * 0.5 if kind == "cancel" else None
        talk.open = request
        self.soak.counts["sent"] += 1

    def begin_twin(self, talk):
        """A request that was answered before, under a tenant that shares nothing with it: another way to the same reply."""
        (messages, body), expected = self.random.choice(self.soak.twins)
        head = {"conversation": f"twin-{self.soak.counts['sent']}", "tenant": f"twin-{self.random.randrange(4)}"}
        request = self.peer.start(messages, head, reply_name="JULIET", **body)
        request.kind, request.last_sign, request.signs, request.expected = "turn", time.monotonic(), 0, expected
        request.twin = request.cancel_at = None
        talk.open = request
        self.soak.counts["sent"] += 1

    def finish(self, talk):
        request, talk.open = talk.open, None
        self.soak.counts["ended"] += 1
        self.soak.codes[f"{request.kind}: {request.code}"] += 1
        if request.code not in EXPECTED[request.kind]:
            raise Failure(f"{request.kind} ended with {request.code}: {request.error.detail.decode()}")
        if request.code != "OK":
            return
        self.soak.counts["prompt tokens"] += request.usage.prompt_tokens
        self.soak.counts["cached tokens"] += request.usage.cached_tokens
        self.soak.counts["reply tokens"] += request.usage.reply_tokens
        if request.expected is not None:
            self.soak.counts["compared replies"] += 1
            if request.ids != request.expected:
                raise Failure(f"a greedy reply differs from the one before: {request.expected} and {request.ids}")
            return
        if request.twin:
            self.soak.twins.append((request.twin, request.ids))
        if self.random.random() > 0.07:
            talk.messages = talk.messages + [say(request.text, "JULIET", ASSISTANT)]

    def turn(self):
        self.peer.pump(lambda: False, 0.004, what=None)
        now = time.monotonic()
        for talk in self.open_talks():
            request = talk.open
            signs = len(request.ids) + request.acknowledged + request.ended
            if signs != request.signs:
                request.signs, request.last_sign = signs, now
            if request.ended:
                self.finish(talk)
            elif now - request.last_sign > self.soak.stall_s:
                raise Failure(f"a request ({request.kind}) has given no sign for {now - request.last_sign:.1f} s after {len(request.ids)} tokens")
            elif request.cancel_at and now > request.cancel_at:
                request.cancel_at = None
                self.peer.cancel(request, f"tenant-{self.number % 3}", talk.conversation())
        if not self.soak.ending:
            idle = [talk for talk in self.talks if not talk.open]
            if idle and len(self.open_talks()) < OPEN_MAX and self.random.random() < 0.5:
                twin = self.soak.twins and self.random.random() < 0.05
                (self.begin_twin if twin else self.begin)(self.random.choice(idle))
            elif self.random.random() < 0.0005:
                self.vanish()


class Soak:
    def __init__(self, cluster, options):
        self.cluster, self.seed, self.stall_s, self.ending = cluster, options.seed, options.stall * SLOWER, False
        self.lines, self.pressure, self.seconds = scene_lines(), {}, options.minutes * 60
        self.counts, self.codes, self.twins = collections.Counter(), collections.Counter(), collections.deque(maxlen=500)
        self.memory = {process.name: [] for process in cluster.processes()}
        self.started = time.monotonic()
        self.clients = [Client(self, number) for number in range(options.clients)]

    def read_memory(self):
        for process in self.cluster.processes():
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            self.memory[process.name].append(int(status.split("VmRSS:")[1].split()[0]) / 1024)

    def run(self, seconds):
        next_reading = next_line = 0.0
        while (now := time.monotonic() - self.started) < seconds:
            for client in self.clients:
                client.turn()
            if now >= next_reading:
                self.cluster.check_alive()
                self.read_memory()
                next_reading = now + max(0.5, min(5.0, seconds / 60))
            if now >= next_line:
                print(f"{now:6.0f} s: {self.counts['ended']} of {self.counts['sent']} ended, memory MiB " +
                      ", ".join(f"{name} {readings[-1]:.0f}" for name, readings in self.memory.items()), file=sys.stderr, flush=True)
                next_line = now + 30
        self.ending = True
        deadline = time.monotonic() + 60 * SLOWER
        while any(client.open_talks() for client in self.clients):
            for client in self.clients:
                client.turn()
            if time.monotonic() > deadline:
                raise Failure("requests are still open a minute after the last one was sent")

    def check_idle(self):
        """Nothing is left in the workers (what vanished clients left has been cancelled when their leases ended)."""
        for worker in self.cluster.workers:
            with router_peer(worker) as peer:
                idle = lambda: peer.leases and not (peer.leases[-1].load.running_requests or peer.leases[-1].load.queued_requests)
                if not peer.pump(idle, 30 * SLOWER, what=None):
                    raise Failure(f"{worker.name} still has requests: {peer.leases[-1].load}")

    def check_pressure(self):
        """What the workers said when they ended; with little time it may not have come to all of it."""
        for worker in self.cluster.workers:
            said = PRESSURE.search(worker.log())
            if not said:
                raise Failure(f"{worker.name} did not say how its KV cache was used")
            self.pressure[worker.name] = {key: int(value) for key, value in said.groupdict().items()}
            missing = [key for key, value in self.pressure[worker.name].items() if value == 0]
            if missing and self.seconds >= FULL_S:
                raise Failure(f"{worker.name}: its KV cache was never so full that anything was {' or '.join(missing)}")

    def check_memory(self):
        for name, readings in self.memory.items():
            third = len(readings) // 3
            if third < 3:
                continue
            before, after = max(readings[third:2 * third]), max(readings[2 * third:])
            filling = 2 * KV_MIB if name.startswith("worker") and self.seconds < FULL_S else 0
            if after > before * 1.05 + 8 + filling:
                raise Failure(f"{name} grew from {before:.1f} to {after:.1f} MiB: {[round(value) for value in readings]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("ROOST_TEST_SEED", "1")))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stall", type=float, default=30.0, help="seconds without any sign of a request that count as a stall")
    options = parser.parse_args()
    settings = {"kv_mebibytes": KV_MIB, "kv_host_mebibytes": KV_MIB, "sequences_max": 8, "chunk_tokens": 64}
    print(f"soak: {options.minutes} minutes, seed {options.seed}, {options.clients} clients, {options.workers} workers")
    failure = None
    with tempfile.TemporaryDirectory(prefix="roost-soak-") as folder:
        with Cluster(folder, workers=options.workers, routers=2, worker_settings=settings) as cluster:
            soak = Soak(cluster, options)
            try:
                soak.run(options.minutes * 60)
                soak.check_idle()
                soak.check_memory()
            except (Failure, AssertionError) as error:
                failure = str(error)
                print(cluster.logs()[-6000:], file=sys.stderr)
        if not failure:
            try:
                soak.check_pressure()                              # the processes have ended, their logs are there
            except Failure as error:
                failure = str(error)
    for code, count in sorted(soak.codes.items()):
        print(f"{count:8d}  {code}")
    memory = {name: {"first": round(readings[0], 1), "middle": round(max(readings[len(readings) // 3:2 * len(readings) // 3] or [0]), 1),
                     "last": round(readings[-1], 1)} for name, readings in soak.memory.items()}
    for name, value in memory.items():
        print(f"{name}: {value['first']} MiB at first, at most {value['middle']} in the second third, {value['last']} at the end")
    for name, value in soak.pressure.items():
        print(f"{name}: KV cache: " + ", ".join(f"{count} {key}" for key, count in value.items()))
    if failure:
        print(f"FAILED: {failure}")
    print(json.dumps({"ok": failure is None, "minutes": options.minutes, "seed": options.seed, **soak.counts, "memory_mib": memory, "kv": soak.pressure}))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
