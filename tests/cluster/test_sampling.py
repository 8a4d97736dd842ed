"""Sampling through router and worker, with the shipped model: each parameter does what docs/protocol.md says, choices and batches change
nothing about a reply, and what does not fit is refused with words.
"""
import collections
import itertools
import math
import struct

import pytest

from cluster import CONTEXT, SANITIZED, SLOWER
from wire_client import ASSISTANT, Peer, router_peer, say

CLUSTER = {"workers": 1, "worker_settings": {"kv_mebibytes": 128}}
GREEDY = {"temperature": 0.0}
TOKENS = 16 if SANITIZED else 32
PROMPT = [say("What is the matter? Tell me the whole story of it.")]
seeded = lambda seed, **head: {"seed": seed, "seed_given": True, **head}
column = lambda *values: struct.pack(f"<{len(values)}I", *values)
floats = lambda *values: struct.pack(f"<{len(values)}f", *values)
tenants = (f"tenant-{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def peer(shared_cluster):
    with Peer(shared_cluster.routers[0].ready["control"]) as client:
        yield client


@pytest.fixture(scope="module")
def plain(peer):
    """The greedy reply that the others are compared with."""
    reply = peer.generate(PROMPT, tokens_max=TOKENS, **GREEDY)
    assert len(reply.ids) >= TOKENS // 2, "the model says too little here: take another prompt"
    return reply


def greedy(peer, **body):
    return peer.generate(PROMPT, **{"tokens_max": TOKENS, **GREEDY, **body})


def lively(peer, seed=7, **body):
    return peer.generate(PROMPT, seeded(seed), **{"tokens_max": TOKENS, "temperature": 1.0, **body})


# ---- one token at a time


def test_narrowed_to_one_it_is_greedy(peer, plain):
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert lively(peer, **narrow).ids == plain.ids, narrow


def test_narrowing_changes_what_is_drawn(peer):
    free = {tuple(lively(peer, seed, temperature=3.0).ids) for seed in range(3)}
    for narrow in ({"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.3}):
        narrowed = [lively(peer, seed, temperature=3.0, logprobs=20, **narrow) for seed in range(3)]
        assert free.isdisjoint(tuple(reply.ids) for reply in narrowed), narrow
        if "top_k" in narrow:
            for reply in narrowed:
                likely = [{token for token, _ in row[:3]} for row in reply.choices[0].alternatives]
                assert all(token in row for token, row in zip(reply.ids, likely))


def test_bias(peer, plain):
    first = plain.ids[0]
    assert first not in greedy(peer, bias_ids=column(first), bias_values=floats(-100.0)).ids
    forced = greedy(peer, bias_ids=column(first, 5), bias_values=floats(100.0, 0.0), tokens_max=5)
    assert forced.ids == [first] * 5


def test_penalties(peer):
    def spoken(**penalties):
        return greedy(peer, tokens_max=32, **penalties)        # with fewer nothing is repeated
    def most(reply):
        return max(collections.Counter(reply.ids).values())
    plain = spoken()
    assert most(plain) > 1, "nothing is repeated here: take another prompt"
    for penalty in ("presence_penalty", "frequency_penalty"):
        punished = spoken(**{penalty: 10.0})
        assert punished.ids != plain.ids and most(punished) < most(plain), penalty
        assert punished.ids[0] == plain.ids[0]                         # nothing was said yet: the prompt does not count
        assert most(spoken(**{penalty: -10.0})) > most(plain)
    assert spoken(repetition_penalty=10.0).ids != plain.ids
    assert spoken(repetition_penalty=1.0, presence_penalty=0.0).ids == plain.ids


# ---- where a reply ends


def test_stop_strings(peer, plain):
    """Wherever the string lies, in a token or across some, the text ends before it, and nothing of it comes out."""
    text = plain.text
    for start, size in ((1, 1), (3, 5), (len(text) // 2, 2), (len(text) // 2, 9), (len(text) - 4, 3)):
        stop = text[start:start + size]
        reply = greedy(peer, stop=[stop.encode()])
        assert reply.finish == ["STOP_STRING"], stop
        assert stop not in reply.text and reply.text == text[:text.index(stop)]
        assert reply.ids == plain.ids[:len(reply.ids)]
    both = greedy(peer, stop=[text[20:24].encode(), text[8:12].encode(), "never said 🎭".encode()])
    assert both.text == text[:min(text.index(text[20:24]), text.index(text[8:12]))]
    near = greedy(peer, stop=[(text[5:12] + "\x01").encode(), ("\x02" + text[-3:]).encode()])     # begins as the reply does
    assert near.text == text and near.ids == plain.ids and near.finish == plain.finish


def test_stop_ids(peer, plain):
    at = next(i for i, token in enumerate(plain.ids) if i > 2 and token not in plain.ids[:i])
    reply = greedy(peer, stop_ids=column(plain.ids[at], 4000))
    assert reply.ids == plain.ids[:at] and reply.finish == ["STOP"]


def ending(peer):
    """A reply that the model ends by itself."""
    for seed in range(40):
        reply = lively(peer, seed, tokens_max=120)
        if reply.finish == ["STOP"] and len(reply.ids) > 2:
            return seed, reply
    raise AssertionError("the model never stops: take another prompt")


def test_shortest_and_longest(peer, plain):
    for most in (1, 2, 7):
        reply = greedy(peer, tokens_max=most)
        assert reply.ids == plain.ids[:most] and reply.finish == ["LENGTH"]
    seed, short = ending(peer)
    size = len(short.ids)
    longer = lively(peer, seed, tokens_min=size + 4, tokens_max=size + 40)
    assert len(longer.ids) >= size + 4 and longer.ids[:size] == short.ids
    assert lively(peer, seed, tokens_min=size, tokens_max=size + 40).ids == short.ids
    held = greedy(peer, tokens_min=5, stop_ids=column(*set(plain.ids)))   # stop ids are not drawn before it either
    assert len(held.ids) >= 5 and not set(held.ids[:5]) & set(plain.ids)


# ---- several choices


def test_choices(peer, plain):
    same = greedy(peer, choices=3)
    assert [choice.ids for choice in same.choices[:4]] == [plain.ids] * 3 + [[]]
    assert same.finish == plain.finish * 3
    assert same.usage.reply_tokens == 3 * len(plain.ids) and same.usage.prompt_tokens == plain.usage.prompt_tokens
    three, five, one = (lively(peer, choices=choices) for choices in (3, 5, 1))
    texts = [choice.text for choice in five.choices[:5]]
    assert len(set(texts)) == 5
    assert texts[:3] == [choice.text for choice in three.choices[:3]]      # of (seed, choice), whatever comes with it
    assert texts[0] == one.text and three.choices[0].ids == one.ids
    other = lively(peer, seed=8, choices=3)
    assert not {choice.text for choice in other.choices[:3]} & set(texts)


def test_sixteen_choices_end_apart(peer):
    reply = lively(peer, choices=16, tokens_max=60, stop=[b"e", b"th"])
    assert len(reply.finish) == 16 and set(reply.finish) <= {"STOP", "LENGTH", "STOP_STRING"} and "STOP_STRING" in reply.finish
    assert not any("e" in choice.text or "th" in choice.text for choice in reply.choices)
    assert len({len(choice.ids) for choice in reply.choices}) > 1


# ---- log probabilities


def check_alternatives(choice, count):
    assert len(choice.logprobs) == len(choice.alternatives) == len(choice.ids)
    for token, value, row in zip(choice.ids, choice.logprobs, choice.alternatives):
        assert len(row) == count and len({other for other, _ in row}) == count
        assert all(a >= b for (_, a), (_, b) in zip(row, row[1:]))
        assert value <= row[0][1] <= 1e-4 and sum(math.exp(other) for _, other in row) < 1.001
        assert dict(row).get(token, value) == value
        assert token in dict(row) or value <= row[-1][1]


def test_logprobs(peer, plain):
    reply = greedy(peer, logprobs=5)
    assert reply.ids == plain.ids                                      # asking changes nothing
    check_alternatives(reply.choices[0], 5)
    assert all((token, value) == row[0] for token, value, row in
               zip(reply.ids, reply.choices[0].logprobs, reply.choices[0].alternatives))
    chosen = greedy(peer, token_logprobs=True).choices[0]
    assert chosen.logprobs == reply.choices[0].logprobs and chosen.alternatives == []
    assert plain.choices[0].logprobs == []
    drawn = lively(peer, choices=3, logprobs=20, temperature=2.0)
    for choice in drawn.choices[:3]:
        check_alternatives(choice, 20)
    assert any(token != row[0][0] for token, row in zip(drawn.ids, drawn.choices[0].alternatives))


def test_logprobs_with_a_stop_string(peer, plain):
    """What is held back keeps its values."""
    all_of_it = greedy(peer, logprobs=2).choices[0]
    stop = plain.text[len(plain.text) // 2:][:6]
    cut = greedy(peer, logprobs=2, stop=[stop.encode()]).choices[0]
    assert cut.logprobs == all_of_it.logprobs[:len(cut.ids)] and cut.alternatives == all_of_it.alternatives[:len(cut.ids)]


def test_prompt_logprobs(peer):
    """The prompt's tokens have the values that they had when they were drawn: bit for bit."""
    start = list(range(100, 140))
    reply = peer.generate(prompt_ids=start, tokens_max=12, logprobs=3, **GREEDY)
    again = peer.generate(prompt_ids=start + reply.ids, tokens_max=2, logprobs=3, prompt_logprobs=True, **GREEDY)
    known = again.prompt
    assert known.ids == start[1:] + reply.ids
    check_alternatives(known, 3)
    assert known.logprobs[-len(reply.ids):] == reply.choices[0].logprobs
    assert known.alternatives[-len(reply.ids):] == reply.choices[0].alternatives
    messages = peer.generate(PROMPT, prompt_logprobs=True, tokens_max=1, **GREEDY)
    assert len(messages.prompt.ids) == len(messages.prompt.logprobs) == messages.usage.prompt_tokens - 1
    assert messages.prompt.alternatives == [] and messages.choices[0].logprobs == []


def test_prompt_logprobs_of_a_long_prompt(peer):
    size = 600 if SANITIZED else 3000
    reply = peer.generate(prompt_ids=[100 + i % 1000 for i in range(size)], tokens_max=1, logprobs=20, prompt_logprobs=True)
    assert len(reply.prompt.ids) == size - 1
    check_alternatives(reply.prompt, 20)


# ---- too long


def test_truncate(peer):
    line = "To be, or not to be, that is the question. " * 8
    count = CONTEXT // 40 | 1                                              # a line has over 40 tokens; the last one is the user's
    messages = [say(f"{i}. {line}", role=ASSISTANT if i % 2 else 0) for i in range(count)]
    refused = peer.wait(peer.start(messages))
    assert refused.code == "TOO_LARGE" and str(CONTEXT - 1) in refused.error.detail.decode()
    reply = peer.generate(messages, truncate=True, tokens_max=4)
    assert 0 < reply.usage.dropped_messages < count - 1 and reply.usage.prompt_tokens < CONTEXT and reply.ids
    assert peer.generate(PROMPT, truncate=True, tokens_max=4).usage.dropped_messages == 0
    huge = peer.wait(peer.start([say(line * count)], truncate=True))         # one message cannot be cut
    assert huge.code == "TOO_LARGE"


# ---- many at once


def questions():
    words = ("What, is Horatio there?", "How fares the night?", "Speak again.", "Who goes?", "Is it not like the king?", "Stay! speak, speak!")
    samplings = (GREEDY, {"temperature": 0.8}, {"temperature": 1.5, "top_p": 0.9}, {"temperature": 1.0, "choices": 2},
                 {"temperature": 1.0, "repetition_penalty": 1.2, "logprobs": 2})
    for i in range(10 if SANITIZED else 20):
        yield [say(words[i % len(words)] * (1 + i % 7), f"SPEAKER {i}")], samplings[i % len(samplings)], i


def ask_all(peer, tenant):
    return [peer.start(messages, seeded(seed, tenant=tenant, conversation=f"c{seed}"), tokens_max=TOKENS, **sampling)
            for messages, sampling, seed in questions()]


def said(request):
    return [(choice.ids, choice.text, choice.logprobs, choice.alternatives) for choice in request.choices]


@pytest.fixture(scope="module")
def alone(peer):
    """The replies of each, one after the other."""
    tenant, replies = next(tenants), []
    for messages, sampling, seed in questions():
        replies.append(said(peer.generate(messages, seeded(seed, tenant=tenant), tokens_max=TOKENS, **sampling)))
    return replies


def test_together_as_alone(peer, alone):
    requests = ask_all(peer, next(tenants))
    for request in requests:
        peer.wait(request)
        assert request.code == "OK", request.error
    assert [said(request) for request in requests] == alone
    overlapping = sum(1 for a, b in zip(requests, requests[1:]) if b.first_at < a.ended_at)
    assert overlapping > len(requests) // 2, "they ran one after the other: this shows nothing"


def test_a_cancelled_one_disturbs_nobody(peer, alone):
    tenant, size = next(tenants), 2000 if SANITIZED else 7500              # they run until they are cancelled
    long = [peer.start([say("Speak on, and on.")], {"tenant": tenant}, tokens_max=size, tokens_min=size, temperature=1.0) for _ in range(2)]
    requests = ask_all(peer, tenant)
    peer.pump(lambda: all(request.ids for request in long), 30 * SLOWER, "some tokens")
    for request in long:
        peer.cancel(request, tenant)
    for request in long + requests:
        peer.wait(request)
    assert [request.code for request in long] == ["CANCELLED"] * 2
    assert [said(request) for request in requests] == alone


def test_a_full_queue(new_cluster):
    """Of a worker that runs one and lets one wait: more are refused with a hint, at once, and those taken are served."""
    cluster = new_cluster(workers=1, routers=0, redis=False, worker_settings={"sequences_max": 1, "queue_requests_max": 1})
    with router_peer(cluster.workers[0]) as direct:
        size = 400 if SANITIZED else 7500                                  # it runs for as long as the others need to be refused
        first = direct.start(PROMPT, tokens_max=size, tokens_min=size)
        direct.pump(lambda: first.ids, 30 * SLOWER, "some tokens")
        others = [direct.start(PROMPT, tokens_max=2) for _ in range(6)]
        direct.pump(lambda: sum(request.ended for request in others) >= 5, 15 * SLOWER, "refusals")
        assert not first.ended, "too fast for this test"
        refused = [request for request in others if request.ended]
        assert [request.code for request in refused] == ["OVER_CAPACITY"] * 5
        assert all(10 <= request.error.retry_after_ms <= 30000 for request in refused)
        for request in (first, *others):
            direct.wait(request)
        assert first.code == "OK" and sorted(request.code for request in others) == ["OK"] + ["OVER_CAPACITY"] * 5


def test_more_choices_than_run_at_a_time(new_cluster):
    """A request that can never run is refused; one whose choices take turns is not."""
    cluster = new_cluster(workers=1, routers=0, redis=False, worker_settings={"sequences_max": 2})
    with router_peer(cluster.workers[0]) as direct:
        request = direct.wait(direct.start(PROMPT, choices=5, tokens_max=8, **GREEDY))
        if request.code == "OK":
            assert [choice.ids for choice in request.choices[:5]] == [request.ids] * 5
        else:
            assert request.code in ("INVALID", "TOO_LARGE", "OVER_CAPACITY") and request.error.detail
        assert direct.generate(PROMPT, tokens_max=2).ids
