"""A conversation comes home: its second turn goes to the worker that holds it and computes only what is new."""
import subprocess

import pytest

from cluster import SLOWER, SOURCE_DIR, free_port, wait_until
from wire_client import ASSISTANT, REPLY_S, Conversation, Peer, say

CLUSTER = {"workers": 2, "routers": 2, "redis_port": free_port()}
SETTING = """Two households, both alike in dignity, in fair Verona, where we lay our scene, from ancient grudge break to new mutiny, where
civil blood makes civil hands unclean. From forth the fatal loins of these two foes a pair of star-cross'd lovers take their life.
SCENE II. Capulet's orchard."""


def balcony():
    """What one person says in a scene: deploy/scenes has it with escaped line breaks."""
    lines = (SOURCE_DIR / "deploy" / "scenes" / "balcony.txt").read_text().splitlines()
    return [line.replace("\\n", "\n") for line in lines]


@pytest.fixture
def client(shared_cluster):
    with Peer(shared_cluster.routers[0].ready["control"]) as peer:
        yield peer


def test_scene_comes_home(shared_cluster, client):
    scene = Conversation(client, "scene", setting=SETTING, me="ROMEO", other="JULIET")
    replies = [scene.turn(text, temperature=0.8, tokens_max=40) for text in balcony()]
    assert len(replies) >= 6
    assert len({reply.worker for reply in replies}) == 1
    assert replies[0].usage.cached_tokens == 0
    for reply in replies[1:]:
        assert reply.usage.cached_tokens > 0.75 * reply.usage.prompt_tokens, reply.usage
    for before, after in zip(replies, replies[1:]):      # never less than the turn before: its prompt is a prefix
        assert after.usage.prompt_tokens > before.usage.prompt_tokens
        assert after.usage.cached_tokens >= before.usage.prompt_tokens - 1


def test_record_names_the_worker(shared_cluster, client):
    scene = Conversation(client, "recorded", tenant="tenant-1")
    worker = scene.turn("Speak.").worker
    def recorded():
        record = shared_cluster.place("recorded", "tenant-1")
        return record.get("owner") == worker and record
    record = wait_until("a placement record of its worker", recorded, 10 * SLOWER)
    assert int(record["epoch"]) > 0
    ttl = shared_cluster.redis.call("TTL", shared_cluster.place_key("tenant-1", "recorded"))
    assert 23 * 3600 < ttl <= 24 * 3600
    assert scene.turn("Speak again.").worker == worker
    assert shared_cluster.place("recorded", "tenant-1")["owner"] == worker
    assert not shared_cluster.place("recorded", "default")


def test_workers_are_in_the_directory(shared_cluster):
    """Each renews its entry once a second; one that was kept waiting for 3 s comes back."""
    def listed():
        names = set(shared_cluster.redis.call("SMEMBERS", "roost:workers"))
        return names == {worker.name for worker in shared_cluster.workers}
    wait_until("both names", listed, 10 * SLOWER)

    def entered():
        entry = shared_cluster.redis.hash(key)
        return entry.get("endpoint") == worker.ready["control"] and entry["incarnation"] == worker.ready["incarnation"] and \
            0 < shared_cluster.redis.call("PTTL", key) <= 3000
    for worker in shared_cluster.workers:
        key = f"roost:worker:{worker.name}"
        wait_until(f"the entry of {worker.name}", entered, 10 * SLOWER)


def test_two_routers_see_the_same_owner(shared_cluster):
    with Peer(shared_cluster.routers[0].ready["control"]) as one, Peer(shared_cluster.routers[1].ready["control"]) as two:
        seen = 0
        for i in range(100):
            scene = Conversation(one, f"shared-{i}")
            first = scene.turn("Now is the winter of our discontent made glorious summer by this sun of York. Answer me this.")
            scene.peer = two
            second = scene.turn("And then?")
            scene.peer = one
            third = scene.turn("And then?")
            if "redis-down" in (first.route, second.route, third.route):
                continue                                 # Redis did not answer within 2 ms: the machine is busy
            assert first.worker == second.worker == third.worker, (first.route, second.route, third.route)
            assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
            assert third.usage.cached_tokens >= second.usage.prompt_tokens - 1
            seen += 1
            if seen == 12:
                break
        assert seen > 0


def test_new_conversations_spread(shared_cluster, client):
    """None waits for the end of another: where all are idle each time, they go to the worker that the router met first, if by a second."""
    message = [say("Good morrow.")]
    for attempt in range(10 * SLOWER):
        heads = [{"conversation": f"spread-{attempt}-{i}"} for i in range(16)]
        requests = []
        for head in heads:
            requests.append(client.start(message, head, tokens_max=20))
            client.pump(lambda: requests[-1].acknowledged or requests[-1].ended, REPLY_S, "its worker to have it")
        first = [client.wait(request).worker for request in requests]
        if len(set(first)) == 2:
            break
        client.pump_for(1)                               # one counts as overloaded until 5 s after it was
    assert set(first) == {worker.name for worker in shared_cluster.workers}
    again = [client.generate([*message, say(request.text, role=ASSISTANT), *message], head, tokens_max=2)
             for head, request in zip(heads, requests)]
    assert [reply.worker for reply in again] == first


def test_requests_at_the_same_time(shared_cluster, client):
    """More than the workers run at once: each ends well, and none sees another's tokens."""
    alone = Conversation(client, "alone").turn("What news?", tokens_max=12).ids
    requests = [client.start([say("What news?")], {"conversation": f"many-{i}"}, tokens_max=12)
                for i in range(24)]
    for request in requests:
        assert client.wait(request).code == "OK"
        assert request.ids == alone


def test_tenants_share_nothing(shared_cluster, client):
    text = "A secret that is long enough to fill some tokens of the cache, and then some more."
    for tenant in range(8):                     # on two workers: some meet on one
        assert Conversation(client, "same", tenant=f"apart-{tenant}").turn(text).usage.cached_tokens == 0
    for tenant in range(8):
        assert Conversation(client, "same", tenant=f"apart-{tenant}").turn(text).usage.cached_tokens > 0


def test_nothing_said_is_written_down(new_cluster):
    """Words, names and replies are in no log at any level, and conversation and tenant in no key or value of Redis."""
    cluster = new_cluster(workers=1, worker_settings={"log_level": "debug"}, router_settings={"log_level": "debug"})
    with Peer(cluster.routers[0].ready["control"]) as client:
        talk = Conversation(client, "canary-conversation", tenant="canary-tenant", setting="canary-setting", me="canary-name",
                            other="canary-reply")
        reply = talk.turn("canary-text", tokens_max=40, temperature=100.0)
        bad = [say("canary-text", b"canary-name\xff")]
        assert client.wait(client.start(bad, talk.head())).code == "INVALID"
        assert client.wait(client.start([say("canary-text " * 9000)], talk.head())).code == "TOO_LARGE"
        assert client.wait(client.start(talk.messages, {**talk.head(), "model": b"canary-model"})).error
        wait_until("a placement record", lambda: cluster.place("canary-conversation", "canary-tenant"), 10 * SLOWER)
        stored = []
        for key in cluster.redis.call("KEYS", "*"):
            read = {"hash": cluster.redis.hash, "set": lambda name: cluster.redis.call("SMEMBERS", name),
                    "string": lambda name: cluster.redis.call("GET", name), "none": lambda name: None}      # it has just expired
            stored.append((key, read[cluster.redis.call("TYPE", key)](key)))
        assert "canary" not in repr(stored)
        logs = cluster.logs()
        for word in ("canary-text", "canary-name", "canary-setting", "canary-reply", *(word for word in reply.text.split() if len(word) > 12)):
            assert word not in logs


def test_without_a_conversation(shared_cluster, client):
    assert client.generate([say("Who is there?")]).ids


def test_python_example(shared_cluster):
    example = SOURCE_DIR / "docs" / "examples" / "python_client.py"
    run = subprocess.run(["/usr/bin/python3", "-B", example, "--router", shared_cluster.routers[0].ready["control"]],
                         capture_output=True, text=True, timeout=120 * SLOWER)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    more = subprocess.run([*run.args, "--choices", "2", "--temperature", "1", "--top-p", "0.9", "--logprobs", "2", "--tokens-max", "5",
                           "--stop", "never said"], capture_output=True, text=True, timeout=120 * SLOWER)
    assert more.returncode == 0, more.stderr
    assert "[choice 1]" in more.stdout and ": " in more.stdout
