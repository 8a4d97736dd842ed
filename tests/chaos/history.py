"""The history of a run, one JSON object a line, and the checker that says whether every promise was kept.

  invoke  {"op": "invoke", "at": s, "id": ..., "deadline_s": s, "may": ["CANCELLED", ...], "request": {...}}
  tokens  {"op": "tokens", "at": s, "id": ..., "choice": 0, "first": 7, "ids": [...], "text": "..."}
  cancel  {"op": "cancel", "at": s, "id": ...}
  end     {"op": "end", "at": s, "id": ..., "error": null or "WORKER_LOST", "finishes": [...], "reply_tokens": n, ...}
  fault   {"op": "fault", "at": s, "what": "kill worker-a", "in_flight": n}

`at` counts from the start of the run, on one monotonic clock. `may` names the errors that this request asked for (a cancel, a short
deadline). Checked of each request: one end, by its deadline and a little (STALL_S); tokens of each choice without gap or repeat, none behind
the end, as many as the end says; and, with the replies of an undisturbed run, the same ids, text and finishes (of a request that ended in an
error: what came is how the undisturbed reply begins).
"""
import collections
import dataclasses
import json
import time

from cluster import SLOWER

TERMINAL_SLACK_S = 1.0        # docs/protocol.md: a request ends within its deadline and 1 s whatever else fails
STALL_S = 5.0 * SLOWER        # more, for a machine that keeps the client or this program waiting; how late the latest was is printed


@dataclasses.dataclass
class Reply:
    """What one request delivered, per choice: ids, text, finish."""
    ids: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    text: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(str))
    finishes: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Request:
    """All events of one request."""
    invoke: dict
    tokens: list = dataclasses.field(default_factory=list)
    ends: list = dataclasses.field(default_factory=list)
    cancelled_at: float = None

    @property
    def end(self):
        return self.ends[0] if self.ends else None

    @property
    def done(self):
        return bool(self.ends) and self.ends[0]["error"] is None

    def reply(self):
        reply = Reply(finishes=list(self.ends[0].get("finishes") or ()) if self.ends else [])
        for event in self.tokens:
            reply.ids[event["choice"]] += event["ids"]
            reply.text[event["choice"]] += event["text"]
        return reply


class History:
    """Written while the run goes on, also to a file if a path is given."""

    def __init__(self, path=None):
        self.started = time.monotonic()
        self.started_wall = time.time()       # to compare with the times in logs, on this host
        self.requests, self.faults = {}, []
        self.open = {}                        # of the requests: those without an end
        self.strays = []                      # events of requests that were never invoked, and second invokes
        self.path, self.file = path, open(path, "w", encoding="utf-8") if path else None

    def now(self):
        return time.monotonic() - self.started

    def add(self, op, **fields):
        event = {"op": op, "at": round(self.now(), 6), **fields}
        self.take(event)
        if self.file:
            self.file.write(json.dumps(event, separators=(",", ":")) + "\n")
        return event

    def take(self, event):
        op = event["op"]
        if op == "fault":
            self.faults.append(event)
        elif op == "invoke":
            if event["id"] in self.requests:
                self.strays.append(event)
            else:
                self.requests[event["id"]] = self.open[event["id"]] = Request(event)
        elif event["id"] not in self.requests:
            self.strays.append(event)
        elif op == "tokens":
            self.requests[event["id"]].tokens.append(event)
        elif op == "cancel":
            self.requests[event["id"]].cancelled_at = event["at"]
        else:
            self.requests[event["id"]].ends.append(event)
            self.open.pop(event["id"], None)

    def in_flight(self):
        """Requests that are open now."""
        return list(self.open.values())

    def close(self):
        if self.file:
            self.file.close()
            self.file = None

    @classmethod
    def load(cls, path):
        history = cls()
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                history.take(json.loads(line))
        return history


@dataclasses.dataclass
class Verdict:
    """The count that every test ends with, and the first few of what is wrong."""
    sent: int = 0
    done: int = 0
    errors: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unwanted: collections.Counter = dataclasses.field(default_factory=collections.Counter)    # errors that nobody asked for
    lost: int = 0
    latest: float = 0.0       # s by which an end came behind its deadline, at most
    twice: int = 0            # tokens or ends delivered again
    gaps: int = 0
    differ: int = 0
    compared: int = 0
    wrong: list = dataclasses.field(default_factory=list)

    def line(self):
        codes = " ".join(f"{code} {count}" for code, count in sorted(self.errors.items()))
        return (f"fleet: sent {self.sent}, done {self.done}, errors {sum(self.errors.values())}{f' ({codes})' if codes else ''}, "
                f"unwanted {sum(self.unwanted.values())}, lost {self.lost}, twice {self.twice}, gaps {self.gaps}, "
                f"differ {self.differ} of {self.compared}")

    def holds(self):
        """The promises that hold in every test, whatever failed."""
        return not (self.lost or self.twice or self.gaps or self.differ)

    def note(self, request, what):
        if len(self.wrong) < 20:
            self.wrong.append(f"{request.invoke['id']} (sent at {request.invoke['at']:.3f} s): {what}")


def _check_rows(request, verdict):
    """Gaps and repeats of the tokens, whatever the end says."""
    expected = collections.Counter()
    end_at = request.end["at"] if request.end else None
    for event in request.tokens:
        choice, first, count = event["choice"], event["first"], len(event["ids"])
        if first < expected[choice]:
            verdict.twice += expected[choice] - first
            verdict.note(request, f"choice {choice} repeats from {first}, {expected[choice]} was next")
        elif first > expected[choice]:
            verdict.gaps += 1
            verdict.note(request, f"choice {choice} goes on at {first}, {expected[choice]} was next")
        expected[choice] = max(expected[choice], first + count)
        if end_at is not None and event["at"] > end_at:
            verdict.twice += 1
            verdict.note(request, f"tokens of choice {choice} behind the end")
    if request.done and sum(expected.values()) != request.end["reply_tokens"]:
        verdict.gaps += 1
        verdict.note(request, f"{sum(expected.values())} tokens came, the end says {request.end['reply_tokens']}")


def _check_end(request, verdict):
    deadline = request.invoke["at"] + request.invoke["deadline_s"]
    if not request.ends:
        verdict.lost += 1
        verdict.note(request, "has no end")
        return
    verdict.latest = max(verdict.latest, request.end["at"] - deadline)
    if request.end["at"] > deadline + TERMINAL_SLACK_S + STALL_S:
        verdict.lost += 1
        verdict.note(request, f"ended {request.end['at'] - deadline:.3f} s after its deadline")
    if len(request.ends) > 1:
        verdict.twice += len(request.ends) - 1
        verdict.note(request, f"ended {len(request.ends)} times")
    if request.done:
        verdict.done += 1
        return
    code = request.end["error"]
    verdict.errors[code] += 1
    if code not in request.invoke["may"]:
        verdict.unwanted[code] += 1
        verdict.note(request, f"{code}: {request.end.get('detail', '')}")


def _differs(request, reference):
    """What is not as in the undisturbed run, or None."""
    reply = request.reply()
    for choice in {*reply.ids, *reply.text, *(reference.ids if request.done else ())}:
        ours, theirs = reply.ids[choice], list(reference.ids.get(choice, ()))
        our_text, their_text = reply.text[choice], reference.text.get(choice, "")
        if not request.done:
            theirs, their_text = theirs[:len(ours)], their_text[:len(our_text)]
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            return f"choice {choice} differs from the undisturbed run at token {at}: {ours[at:at + 3]} and not {theirs[at:at + 3]}"
        if our_text != their_text:
            return f"the text of choice {choice} differs from the undisturbed run: {our_text!r} and not {their_text!r}"
    if request.done and reply.finishes != list(reference.finishes):
        return f"finishes {reply.finishes}, and {list(reference.finishes)} in the undisturbed run"
    return None


def check(history, references=None):
    """references: replies of the undisturbed run by request id; what is not in it is not compared."""
    verdict = Verdict(sent=len(history.requests))
    for event in history.strays:
        verdict.twice += 1
        verdict.wrong.append(f"{event['id']}: {event['op']} of no request")
    for name, request in history.requests.items():
        _check_end(request, verdict)
        _check_rows(request, verdict)
        if references is not None and name in references:
            verdict.compared += 1
            difference = _differs(request, references[name])
            if difference:
                verdict.differ += 1
                verdict.note(request, difference)
    return verdict


def assert_kept(history, references, may=()):
    """Prints the count; fails if a promise was broken or an error came that neither the request nor `may` allows."""
    verdict = check(history, references)
    print(verdict.line(), flush=True)
    unwanted = {code: count for code, count in verdict.unwanted.items() if code not in may}
    assert verdict.sent > 0, "nothing was sent"
    assert verdict.holds() and not unwanted, verdict.line() + "\n" + "\n".join(verdict.wrong)
    return verdict
