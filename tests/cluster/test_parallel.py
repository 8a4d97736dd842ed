"""Workers of several processes (--tp): the same tokens as one process, and one failure unit: when a rank dies or stands still, the worker
ends, and a client's stream goes on elsewhere with the tokens that it would have had."""
import itertools
import os
import pathlib
import signal
import time

import pytest

from cluster import SANITIZED, SLOWER, wait_until
from wire_client import ASSISTANT, Conversation, Peer, router_peer, say

LONG_SEED = 66090                         # as in test_failure.py: does not end by itself for 4,096 positions at temperature 100
LONG_TOKENS = 300 if SANITIZED else 6000
STEP_MS = 2000 * SLOWER                   # tp_step_ms_min
RANKS = (1, 2) if SANITIZED else (1, 2, 4)
CONVERSATIONS = 2 if SANITIZED else 6
TURNS = ("Who's there?", "Stand and unfold yourself.", "Long live the king! And what of the watch tonight?")


def followers(worker):
    children = pathlib.Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"--follower=" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def conversations(worker, count):
    """Turns of several conversations side by side, each with the temperature of its number; what was said."""
    with router_peer(worker) as peer:
        talks = [Conversation(peer, f"talk-{i}", tenant=f"tenant-{i % 2}") for i in range(count)]
        said, cached = [], 0
        for turn, text in enumerate(TURNS):
            requests = []
            for i, talk in enumerate(talks):
                talk.messages.append(say(text + " Speak. " * ((5 if SANITIZED else 40) * (i % 3))))
                requests.append(peer.start(talk.messages, {**talk.head(), "seed": 100 * turn + i, "seed_given": True},
                                           temperature=(0.0, 0.8, 5.0)[i % 3], tokens_max=6 if SANITIZED else 16))
            for talk, request in zip(talks, requests):
                peer.wait(request)
                assert request.code == "OK", request.error
                talk.messages.append(say(request.text, "", ASSISTANT))
                cached += request.usage.cached_tokens
                said.append((request.ids, request.text, request.done.numerics_id))
        return said, cached


@pytest.mark.parametrize("settings", ({}, {"kv_mebibytes": 12, "kv_host_mebibytes": 8, "sequences_max": 3}), ids=("roomy", "pressed"))
def test_same_tokens(new_cluster, settings):
    said = []
    for ranks in RANKS:
        cluster = new_cluster(workers=1, routers=0, redis=False, worker_settings={"tp": ranks, "tp_step_ms_min": 60000, **settings})
        worker = cluster.workers[0]
        assert len(followers(worker)) == ranks - 1
        started = time.monotonic()
        replies, cached = conversations(worker, CONVERSATIONS)
        said.append(replies)
        assert cached > 0 or SANITIZED
        print(f"{ranks} ranks: {time.monotonic() - started:.2f} s, {cached} tokens from the cache")
        pids = followers(worker)
        worker.terminate()
        assert worker.wait_exit() == 0
        wait_until("its followers to be gone", lambda: all(gone(pid) for pid in pids), 5 * SLOWER)
    assert all(replies == said[0] for replies in said[1:])


@pytest.fixture
def mixed(new_cluster):
    """worker-a has two ranks, worker-b one."""
    cluster = new_cluster(workers=2, start=False)
    cluster.worker_settings = {"tp": 2, "tp_step_ms_min": STEP_MS}
    cluster.workers[0] = cluster._worker("worker-a")
    cluster.worker_settings = {}
    cluster.start()
    return cluster


def stream_on(cluster, client, owner):
    """A long stream that runs on this worker."""
    for i in itertools.count():
        name = f"stream-{i}"
        reply = client.generate([say("Speak.")], {"conversation": name}, tokens_max=1)
        if reply.worker == owner:
            break
    request = client.start([say("Speak.")], {"conversation": name, "seed": LONG_SEED, "seed_given": True}, temperature=100.0,
                           tokens_max=LONG_TOKENS)
    client.pump(lambda: len(request.ids) > 20 or request.ended, 30 * SLOWER, "some tokens")
    return request


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGSTOP), ids=("killed", "stopped"))
def test_lost_rank(mixed, number):
    worker = mixed.worker("worker-a")
    incarnation = worker.ready["incarnation"]
    with Peer(mixed.routers[0].ready["control"]) as client:
        request = stream_on(mixed, client, "worker-a")
        follower, = followers(worker)
        assert not request.ended, "too fast for this test: nothing will be lost"
        before, started = len(request.ids), time.monotonic()
        os.kill(follower, number)
        worker.killed = True
        client.pump(lambda: not worker.alive(), 30 * SLOWER, "the worker to end")
        ended = time.monotonic() - started
        at_end = len(request.ids)
        client.pump(lambda: request.ended or len(request.ids) > at_end, 30 * SLOWER, "the stream to go on")
        went_on = time.monotonic() - started
        client.wait(request)
        assert request.code == "OK" and len(request.ids) == LONG_TOKENS
        assert request.worker == "worker-b"
        assert worker.popen.returncode == 1
        assert "the group of 2 ranks is over: " in worker.log()
        assert ("has died" if number == signal.SIGKILL else "rank 0 found rank 1 late") in worker.log()
        wait_until("the follower to be gone", lambda: gone(follower), 5 * SLOWER)
        print(f"{number.name}: {before} tokens before, worker ended after {ended:.2f} s, stream went on after {went_on:.2f} s")
        assert ended < (5 if number == signal.SIGKILL else STEP_MS / 1000 + 6) * SLOWER
        undisturbed = client.wait(client.start([say("Speak.")], {"conversation": "again", "seed": LONG_SEED, "seed_given": True},
                                               temperature=100.0, tokens_max=LONG_TOKENS))
        assert (undisturbed.ids, undisturbed.text) == (request.ids, request.text)
        # As its supervisor would: a new incarnation, with new followers.
        mixed.worker_settings = {"tp": 2, "tp_step_ms_min": STEP_MS}
        again = mixed.restart(worker)
        assert again.ready["incarnation"] != incarnation and len(followers(again)) == 1
        client.pump(lambda: any(client.generate([say("Speak.")], {"conversation": f"back-{time.monotonic()}"}, tokens_max=1).worker
                                == "worker-a" for _ in range(4)), 60 * SLOWER, "it to serve again")


def test_idle_worker_ends_with_its_rank(mixed):
    worker = mixed.worker("worker-a")
    follower, = followers(worker)
    os.kill(follower, signal.SIGKILL)
    worker.killed = True
    assert worker.wait_exit() == 1
    assert f"rank 1 (process {follower}) has died" in worker.log()


def test_followers_die_with_rank_0(new_cluster):
    cluster = new_cluster(workers=1, routers=0, redis=False, worker_settings={"tp": 4})
    worker = cluster.workers[0]
    pids = followers(worker)
    assert len(pids) == 3
    for pid in pids:                      # theirs to ignore: rank 0 decides
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    with router_peer(worker) as peer:
        assert peer.generate([say("Who's there?")], tokens_max=4).ids
    os.kill(pids[1], signal.SIGSTOP)      # even one that stands still
    worker.kill()
    wait_until("the followers to be gone", lambda: all(gone(pid) for pid in pids), 5 * SLOWER)


def test_settings(new_cluster):
    for settings, words in (({"tp": 9}, "tp"), ({"tp": 2, "simulate": "fast"}, "tp: 2 ranks cannot share"),
                            ({"tp": 4, "kv_mebibytes": 2}, "the share of each of 4 ranks")):
        cluster = new_cluster(workers=1, routers=0, redis=False, worker_settings=settings, start=False)
        worker = cluster.workers[0]
        worker.start(wait=False)
        assert worker.wait_exit() != 0
        worker.killed = True
        assert words in worker.log(), worker.log()
