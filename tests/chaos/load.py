"""Many conversations at a time, each turn with its full history, and a history of what came back.

  history = History(path)
  load = Load(fleet's clients, history, seed=7, conversations=200)
  async with load: ...          # faults
  references = await undisturbed(history, directory)

Everything that a request asks for is drawn from the seed: lengths, sampling, penalties, stop strings, choices, who cancels and whose deadline
is too short. When which request is sent depends on the machine; what is in it does not, but for the replies that its history holds.
"""
import asyncio
import contextlib
import random
import time

from cluster import SLOWER
from history import Reply

DEADLINE_S = 60 * SLOWER
GUARD_S = 15 * SLOWER         # after the deadline, until a request without an end is given up by the load and counted as lost
PROMPT_IDS_MAX = 1500         # then a conversation begins anew: several turns, and far from the context's end
WORDS = "the cat sat on a mat and looked at moon over quiet house where nobody had lived for years".split()


def choose(draw, chance, value):
    return value() if draw.random() < chance else None


def draw_sampling(draw, tokens):
    sampling = {"tokens_max": draw.randint(*tokens), "temperature": draw.choice((0.0, 0.7, 1.0, 1.5))}
    for key, chance, value in (("top_k", 0.2, lambda: draw.choice((1, 4, 40))), ("top_p", 0.2, lambda: draw.choice((0.5, 0.9))),
                               ("min_p", 0.1, lambda: 0.05), ("repetition_penalty", 0.2, lambda: draw.choice((1.1, 1.5))),
                               ("presence_penalty", 0.1, lambda: 0.5), ("frequency_penalty", 0.2, lambda: draw.choice((0.3, 1.0))),
                               ("choices", 0.15, lambda: draw.choice((2, 3))), ("tokens_min", 0.1, lambda: draw.randint(1, 4)),
                               ("stop", 0.3, lambda: [draw.choice("aeiou") + draw.choice("nrstl"), "zq"])):
        drawn = choose(draw, chance, value)
        if drawn is not None:
            sampling[key] = drawn
    return sampling


class LagMeter:
    """How late this loop is: what the load generator itself adds to every time that it measures."""

    def __init__(self, interval_s=0.01):
        self.interval_s, self.late = interval_s, []

    async def run(self):
        while True:
            due = time.monotonic() + self.interval_s
            await asyncio.sleep(self.interval_s)
            self.late.append(time.monotonic() - due)

    def line(self):
        late = sorted(self.late) or [0.0]
        return f"own lag p50 {late[len(late) // 2] * 1e3:.1f} ms, p99 {late[len(late) * 99 // 100] * 1e3:.1f} ms"


def to_call(client, request, identity=None):
    """The request of a history as a call of the client library."""
    import roost
    fields = {key: request[key] for key in ("conversation", "prompt_ids", "seed", "deadline_ms", "reply_name") if key in request}
    if "messages" in request:
        fields["messages"] = [roost.Message(role, text, name=name) for role, name, text in request["messages"]]
    return client.generate(sampling=roost.Sampling(**request["sampling"]), request_id=identity, **fields)


def end_fields(end):
    return {"error": end.error.name if end.error else None, "detail": end.detail, "finishes": [finish.value for finish in end.finishes],
            "prompt_tokens": end.prompt_tokens,
            "cached_tokens": end.cached_tokens, "reply_tokens": end.reply_tokens, "worker": end.worker, "route": end.route,
            "route_us": end.route_us, "moves": end.moves, "inexact": end.inexact}


async def perform(client, history, request, identity, may=(), cancel_after_s=None, pause_s=0):
    """One request, from its invoke to its end; the end's fields, or None if it never came."""
    history.add("invoke", id=identity.hex(), deadline_s=request["deadline_ms"] / 1000, may=list(may), request=request)
    try:
        call = to_call(client, request, identity)
    except Exception as error:                # refused by the library before anything was sent: an end like any other
        return history.add("end", id=identity.hex(), error=type(error).__name__, detail=str(error), finishes=[], reply_tokens=0)

    def cancel():
        history.add("cancel", id=identity.hex())
        call.cancel()
    canceller = asyncio.get_running_loop().call_later(cancel_after_s, cancel) if cancel_after_s is not None else None

    async def follow():
        async for batch in call:
            history.add("tokens", id=identity.hex(), choice=batch.choice, first=batch.first, ids=list(batch.ids), text=batch.text)
            if pause_s:
                await asyncio.sleep(pause_s)
        return await call.end()
    try:
        end = await asyncio.wait_for(follow(), request["deadline_ms"] / 1000 + GUARD_S)
    except asyncio.TimeoutError:
        return None
    finally:
        if canceller:
            canceller.cancel()
    return history.add("end", id=identity.hex(), **end_fields(end))


class Conversation:
    """What was said so far, as ids or as messages. A turn that failed is asked again with the same history."""

    def __init__(self, load, number):
        self.load, self.number = load, number
        self.draw = random.Random(f"{load.seed} {number}")
        self.generation, self.turns, self.sent = 0, 0, 0
        self.begin()

    def begin(self):
        self.by_ids = self.draw.random() < 0.7
        self.ids, self.messages = self.some_ids(20, 200), [["system", None, self.some_words(5, 30)]]
        self.turns, self.worker = 0, None
        self.generation += 1

    @property
    def name(self):
        return f"{self.load.name}-{self.number}-{self.generation}"

    def some_ids(self, least, most):
        """Whole words, mostly: neither the control and byte pieces at the vocabulary's begin nor its last thirty-second part."""
        return [self.draw.randrange(self.load.vocabulary // 8, self.load.vocabulary * 31 // 32) for _ in range(self.draw.randint(least, most))]

    def some_words(self, least, most):
        return " ".join(self.draw.choice(WORDS) for _ in range(self.draw.randint(least, most)))

    def request(self):
        request = {"conversation": self.name, "sampling": draw_sampling(self.draw, self.load.tokens), "seed": self.draw.getrandbits(63),
                   "deadline_ms": int(self.load.deadline_s * 1000)}
        if self.load.full:
            request["sampling"]["tokens_min"] = request["sampling"]["tokens_max"] * 3 // 4
        if self.by_ids:
            request["prompt_ids"] = self.ids + self.some_ids(3, 20)
        else:
            request["messages"] = [*self.messages, ["user", self.draw.choice((None, "Ann", "Bob")), self.some_words(3, 20)]]
        return request

    def take(self, request, reply):
        """Goes on from the first of the choices."""
        if self.by_ids:
            self.ids = request["prompt_ids"] + reply.ids[0]
        else:
            text = reply.text[0]
            self.messages = [*request["messages"], *([["assistant", None, text]] if text else [])]
        self.turns += 1
        if len(self.ids) > PROMPT_IDS_MAX or self.turns >= self.load.turns_max:
            self.begin()

    async def turn(self):
        load, history = self.load, self.load.history
        request, may, cancel_after_s = self.request(), [], None
        if self.draw.random() < load.cancels:
            may, cancel_after_s = ["CANCELLED"], self.draw.random() * load.turn_s
        elif self.draw.random() < load.short_deadlines:
            may = ["DEADLINE"]
            request["deadline_ms"] = self.draw.randint(50, 1500)
        identity = self.draw.randbytes(16)
        self.sent += 1
        client = load.clients[(self.number + (self.sent if load.alternate else 0)) % len(load.clients)]
        end = await perform(client, history, request, identity, may, cancel_after_s)
        if end and end["error"] is None:
            self.worker = end["worker"]
            self.take(request, history.requests[identity.hex()].reply())
        return end


class Load:
    """Each conversation asks again as soon as it was answered, after `think_s` on average."""

    def __init__(self, clients, history, seed, conversations=200, name=None, tokens=(8, 48), think_s=0.2, turns_max=12, cancels=0.0,
                 short_deadlines=0.0, deadline_s=DEADLINE_S, vocabulary=None, alternate=False, full=False):
        self.clients, self.history, self.seed, self.tokens, self.think_s = clients, history, seed, tokens, think_s
        self.turns_max, self.cancels, self.short_deadlines, self.deadline_s = turns_max, cancels, short_deadlines, deadline_s
        self.name = name or f"s{seed}"
        from cluster import VOCABULARY
        self.vocabulary = vocabulary or VOCABULARY
        self.full = full                      # replies of a real model do not end by themselves before three quarters of tokens_max
        self.alternate = alternate            # each turn of a conversation through another router
        self.turn_s = 2.0                     # about what a turn takes, for when to cancel
        self.conversations = [Conversation(self, i) for i in range(conversations)]
        self.stopping = asyncio.Event()
        self.going = asyncio.Event()          # cleared: nobody begins a turn
        self.going.set()
        self.lag = LagMeter()
        self.tasks = []

    async def talk(self, conversation):
        await asyncio.sleep(conversation.draw.random() * self.turn_s)         # they do not begin in step
        while not self.stopping.is_set():
            await self.going.wait()
            if self.stopping.is_set():
                break
            end = await conversation.turn()
            wait = conversation.draw.random() * 2 * self.think_s
            if end and end["error"]:
                wait += 0.2
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait)

    async def __aenter__(self):
        self.metering = asyncio.ensure_future(self.lag.run())
        self.tasks = [asyncio.ensure_future(self.talk(conversation)) for conversation in self.conversations]
        return self

    async def __aexit__(self, kind, value, trace):
        self.stopping.set()
        self.going.set()
        try:
            if kind is None:
                await asyncio.gather(*self.tasks)
        finally:
            for task in (*self.tasks, self.metering):
                task.cancel()
            await asyncio.gather(*self.tasks, self.metering, return_exceptions=True)

    async def pause(self):
        """Nobody begins a turn; returns when all that was open has ended."""
        self.going.clear()
        while self.history.in_flight():
            await asyncio.sleep(0.02)

    def go_on(self):
        self.going.set()

    async def run_for(self, seconds):
        """Fails at once if a conversation's task failed, instead of at the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for task in self.tasks:
                if task.done() and task.exception():
                    raise task.exception()
            await asyncio.sleep(min(0.1, max(0.001, deadline - time.monotonic())))

    async def warm(self, timeout_s=20 * SLOWER):
        """Until six of ten conversations have an open request, or, with long pauses between turns, each has had an answer."""
        deadline = time.monotonic() + timeout_s
        while len(self.history.in_flight()) < 0.6 * len(self.conversations) and not all(talk.worker for talk in self.conversations):
            assert time.monotonic() < deadline, f"only {len(self.history.in_flight())} of {len(self.conversations)} requests are open"
            await self.run_for(0.1)


async def undisturbed(history, directory, simulate, concurrency=64):
    """The replies of every request of the history that got tokens or an end, from one fresh worker that nothing happens to."""
    from fleet import Fleet
    from history import History
    names = [name for name, request in history.requests.items() if request.done or request.tokens]
    references, todo = {}, iter(names)
    directory.mkdir(exist_ok=True)
    at_once = simulate and simulate + ",step_us=0,prefill_us=0,decode_us=0"       # the same tokens, without the time
    async with Fleet(directory, workers=1, routers=1, redis=False, simulate=at_once, supervise=False) as fleet:
        async with fleet.client() as client:
            calm = History()

            async def go():
                for name in todo:
                    request = {**history.requests[name].invoke["request"], "deadline_ms": 300000 * SLOWER}
                    for attempt in range(3):       # a machine that stands still can lose the one worker for a moment
                        identity = random.Random(f"{name} {attempt}").randbytes(16)
                        end = await perform(client, calm, request, identity)
                        if end and end["error"] is None:
                            break
                    assert end and end["error"] is None, f"{name} fails without a fault: {end}"
                    reply = calm.requests[identity.hex()].reply()
                    references[name] = Reply(reply.ids, reply.text, reply.finishes)
            await asyncio.gather(*(go() for _ in range(concurrency)))
    return references
