"""Cold equals warm: the tokens that a conversation gets from its cache are those of a worker that is given the full text.

A cold worker is one that has nothing of the conversation: another tenant (tenants share nothing), or a process just started.
"""
import itertools

import pytest

from cluster import SANITIZED, Cluster
from wire_client import ASSISTANT, SYSTEM, Peer, router_peer, say

CLUSTER = {"workers": 2, "worker_settings": {"kv_mebibytes": 24}}      # 2 * 24 MiB: less than all cold copies, so that some go

GREEDY = {"temperature": 0.0}
LIVELY = {"temperature": 0.8}
WILD = {"temperature": 5.0}
SAMPLINGS = (GREEDY, LIVELY, WILD)
TOKENS_MAX = 12 if SANITIZED else 20
EDIT = "Nay — 日本語 and naïve 🎭: that is not what I said."
BUSY = ("WORKER_LOST", "OVER_CAPACITY", "DEADLINE")
cold_tenants = (f"cold-{i}" for i in itertools.count())


def start(peer, messages, reply_name, tenant, conversation, sampling, seed, **head):
    return peer.start(messages, {"tenant": tenant, "conversation": conversation, "seed": seed, "seed_given": True, **head},
                      reply_name=reply_name, tokens_max=TOKENS_MAX, **sampling)


def ask(peer, *request, **head):
    """A machine so busy that a worker seems lost is no answer to the question of this file: then ask again."""
    for _ in range(5):
        reply = peer.wait(start(peer, *request, **head))
        if reply.code not in BUSY:
            break
        peer.pump_for(0.5)
    assert reply.error is None, f"{reply.code}: {reply.error.detail.decode()}"
    return reply


class Pairs:
    """Warm replies and their cold twins, which run behind the conversation on whichever worker is free."""

    def __init__(self, peer, reply_name, conversation):
        self.peer, self.reply_name, self.conversation = peer, reply_name, conversation
        self.waiting, self.cached, self.computed = [], 0, 0

    def ask(self, messages, sampling, seed):
        warm = ask(self.peer, messages, self.reply_name, "warm", self.conversation, sampling, seed, priority=1)
        question = (list(messages), self.reply_name)
        cold = start(self.peer, *question, next(cold_tenants), "", sampling, seed, priority=-1)
        self.waiting.append((warm, cold, question, sampling, seed))
        self.cached += warm.usage.cached_tokens
        self.computed += warm.usage.prompt_tokens - warm.usage.cached_tokens
        return warm

    def check(self):
        for warm, cold, question, sampling, seed in self.waiting:
            self.peer.wait(cold)
            if cold.code in BUSY or cold.error is None and cold.usage.cached_tokens > 0:     # it ran twice, or waited too long
                cold = ask(self.peer, *question, next(cold_tenants), "", sampling, seed)
            assert cold.error is None, f"{cold.code}: {cold.error.detail.decode()}"
            check_equal(warm, cold)


def check_equal(warm, cold):
    assert cold.usage.cached_tokens == 0
    assert warm.ids == cold.ids
    assert warm.text == cold.text
    assert warm.done.finish == cold.done.finish
    assert warm.usage.prompt_tokens == cold.usage.prompt_tokens
    assert warm.done.numerics_id == cold.done.numerics_id


def samplings_of(turn):
    """All of them; sanitizers make one a turn bearable."""
    return (SAMPLINGS[turn % 3],) if SANITIZED else SAMPLINGS


@pytest.fixture(scope="module")
def client(shared_cluster):
    with Peer(shared_cluster.routers[0].ready["control"]) as peer:
        yield peer


def scene_turns(scene):
    """(who speaks, what, who answers) of each turn; with sanitizers of the first eight, which cost a third of all."""
    turns = scene["turns"][:8] if SANITIZED else scene["turns"]
    for here, after in zip(turns, turns[1:] + turns[-2:-1]):
        yield here["speaker"], here["text"], after["speaker"]


@pytest.mark.parametrize("number", range(10))
def test_scene(client, scenes, number):
    """Every turn: the scene's words, then the model's own reply as the next assistant turn. Replies by all samplings are retries
    of the same turn; every fourth turn is edited, answered, and put back."""
    messages = [say(scenes[number]["setting"], role=SYSTEM)]
    pairs = Pairs(client, "", f"scene-{number}")
    for turn, (speaker, text, other) in enumerate(scene_turns(scenes[number])):
        pairs.reply_name = other
        said = messages + [say(text, speaker)]
        for sampling in samplings_of(turn):
            reply = pairs.ask(said, sampling, 1000 * number + turn)
        if turn % 4 == 3:
            pairs.ask(messages[:-2] + [say(EDIT, speaker), *messages[-1:], say(text, speaker)], samplings_of(turn)[-1], turn)
        messages = said + [say(reply.text, other, ASSISTANT)]
    pairs.check()
    assert pairs.cached > 0.5 * pairs.computed, "the cache was hardly used: this shows nothing"


def test_cut_characters(client):
    """At such a temperature bytes come one by one: characters are cut, U+FFFD stands for them, and the reply with it is the next
    turn's text."""
    messages = [say("日本語 🎭 Ünïcödé", role=SYSTEM)]
    pairs = Pairs(client, "LUCE 🎭", "cut")
    replaced = 0
    for turn in range(4 if SANITIZED else 12):
        messages.append(say(f"Sprich {turn}: ∀x∈ℝ", "ÆGEON"))
        reply = pairs.ask(messages, {"temperature": 100.0}, turn)
        replaced += reply.text.count("\ufffd")
        messages.append(say(reply.text, "LUCE 🎭", ASSISTANT))
    pairs.check()
    assert replaced > 0


def test_restarted_worker(shared_cluster, client, scenes, tmp_path):
    """Some turns against a process that has just started."""
    with Cluster(tmp_path, workers=1, routers=0, redis=False) as lone:
        worker = lone.workers[0]
        for number in (2, 6) if SANITIZED else (0, 2, 4, 6, 8):
            messages = [say(scenes[number]["setting"], role=SYSTEM)]
            for turn, (speaker, text, other) in enumerate(scene_turns(scenes[number])):
                messages.append(say(text, speaker))
                sampling = SAMPLINGS[turn % 3]
                warm = ask(client, messages, other, "restart", f"restart-{number}", sampling, turn)
                if turn % 4 == 2:
                    worker.terminate()
                    assert worker.wait_exit() == 0
                    worker = lone.restart(worker)
                    with router_peer(worker) as direct:
                        check_equal(warm, ask(direct, messages, other, "restart", f"restart-{number}", sampling, turn))
                messages.append(say(warm.text, other, ASSISTANT))


def test_default_seed(client):
    """No seed given: it follows from tenant and request id, so a repeat under the same id samples the same tokens."""
    messages = [say("Once more unto the breach, dear friends.")]
    same = [client.generate(messages, {"request_id": bytes(range(16)), "tenant": "seed"}, temperature=1.0) for _ in range(2)]
    assert same[0].ids == same[1].ids
    others = {tuple(client.generate(messages, {"tenant": "seed"}, temperature=1.0).ids) for _ in range(4)}
    assert len(others) > 1
