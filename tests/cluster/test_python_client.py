"""The Python package against real routers and workers: what it promises in proto/python/README.md."""
import asyncio
import ctypes.util
import gc
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
import warnings

import pytest

from cluster import BUILD_DIR, SANITIZED, SOURCE_DIR, endpoint_address

if SANITIZED:
    pytest.skip("a library with sanitizers cannot be loaded into a Python without; the C tests run with them",
                allow_module_level=True)
os.environ["ROOST_CLIENT_LIBRARY"] = str(BUILD_DIR / "lib" / "libroost_client.so")
sys.path.insert(0, str(SOURCE_DIR / "proto" / "python"))
import roost                                                # noqa: E402

PACKAGE = SOURCE_DIR / "proto" / "python"
PROFILE = "fast,step_us=1000,context=8192,seed=11"
CLUSTER = {"workers": 2, "routers": 2, "worker_settings": {"simulate": PROFILE, "queue_requests_max": 2048, "kv_mebibytes": 256}}
PROMPT = [roost.Message("user", "Who is there?", name="BERNARDO")]
NOBODY = "tcp://127.0.0.1:9"
LONG = 8000                                                 # 8 s: it is under way whenever it is cancelled


def endpoints(cluster):
    return [router.ready["control"] for router in cluster.routers]


def drive(coroutine):
    """Runs it, and fails if it leaves something behind or does not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        return asyncio.run(asyncio.wait_for(coroutine, 90), debug=False)


async def collect(call):
    """Text and ids of each choice; checks that they are gapless."""
    texts, ids, prompt = {}, {}, 0
    async for batch in call:
        if batch.prompt:
            assert batch.first == prompt and not batch.text
            prompt += len(batch.ids)
            continue
        assert batch.first == len(ids.setdefault(batch.choice, []))
        ids[batch.choice] += batch.ids
        texts[batch.choice] = texts.get(batch.choice, "") + batch.text
    return texts, ids, prompt


def length(tokens, **more):
    """Exactly so many tokens: no end of turn is drawn before."""
    return roost.Sampling(tokens_max=tokens, tokens_min=tokens, **more)


def test_a_reply_streams(shared_cluster):
    async def main():
        async with roost.Client(endpoints(shared_cluster), tenant="acme", name="tester") as client:
            while client.stats().routers_ready < 2:
                await asyncio.sleep(0.02)
            call = client.generate(messages=PROMPT, conversation="c1", sampling=length(50, temperature=0.8), seed=7)
            assert len(call.request_id) == 16
            texts, ids, _ = await collect(call)
            end = await call.end()
            assert end.ok and end.error is None and end.detail == ""
            assert len(ids[0]) == end.reply_tokens == 50 and texts[0]
            assert end.finishes == [roost.Finish.LENGTH] and end.prompt_tokens > 3
            assert end.worker in ("worker-a", "worker-b") and end.route and end.moves == 0 and not end.inexact
            again = client.generate(messages=PROMPT, conversation="c1", sampling=length(50, temperature=0.8), seed=7)
            assert (await collect(again))[:2] == (texts, ids)
            assert (await again.end()).cached_tokens > 0
            assert [batch async for batch in call] == []            # read to its end
            stats = client.stats()
            assert stats.dropped == stats.moves == stats.resends == 0 and stats.routers == 2
        assert client.stats().routers == 0
    drive(main())


def test_choices_and_log_probabilities(shared_cluster):
    async def main():
        async with roost.Client(endpoints(shared_cluster)) as client:
            sampling = length(20, choices=2, temperature=1.0, logprobs=3, prompt_logprobs=True)
            call = client.generate(prompt_ids=range(40, 60), sampling=sampling)
            firsts, counts, prompt = {}, {0: 0, 1: 0}, 0
            async for batch in call:
                assert len(batch.logprobs) == len(batch.ids) == len(batch.alternatives)
                assert all(value <= 0 for value in batch.logprobs)
                for token, value, others in zip(batch.ids, batch.logprobs, batch.alternatives):
                    assert len(others) == 3 and others[0][1] >= others[1][1] >= others[2][1]
                    assert dict(others).get(token, value) == value
                if batch.prompt:
                    assert batch.ids == list(range(41 + prompt, 41 + prompt + len(batch.ids)))
                    prompt += len(batch.ids)
                else:
                    firsts.setdefault(batch.choice, batch.first)
                    counts[batch.choice] += len(batch.ids)
            end = await call.end()
            assert end.ok and prompt == 19 == end.prompt_tokens - 1
            assert counts == {0: 20, 1: 20} and firsts == {0: 0, 1: 0} and end.reply_tokens == 40
            assert end.finishes == [roost.Finish.LENGTH] * 2
            # where the simulated worker says this, it stops
            texts, _, _ = await collect(client.generate(messages=PROMPT, sampling=length(30), seed=1))
            stop = texts[0][10:14]
            stopped = client.generate(messages=PROMPT, sampling=roost.Sampling(tokens_max=30, stop=["\u00fe-never", stop]), seed=1)
            shorter, _, _ = await collect(stopped)
            assert (await stopped.end()).finishes == [roost.Finish.STOP_STRING]
            assert shorter[0] == texts[0][:texts[0].index(stop)]
    drive(main())


def test_misuse_is_an_exception_and_nothing_is_sent(shared_cluster):
    async def main():
        async with roost.Client(endpoints(shared_cluster)) as client:
            for arguments, words in (
                    ({}, "exactly one of messages and prompt_ids"),
                    ({"messages": PROMPT, "prompt_ids": [1]}, "exactly one"),
                    ({"messages": [roost.Message("narrator", "x")]}, "use user, assistant or system"),
                    ({"messages": [roost.Message("user", "a\0b")]}, "text"),
                    ({"messages": [roost.Message("user", "\ud800")]}, "surrogate"),
                    ({"messages": [roost.Message("user", 7)]}, "must be a string"),
                    ({"prompt_ids": [-1]}, "token ids"),
                    ({"messages": PROMPT, "conversation": "two words"}, "conversation"),
                    ({"messages": PROMPT, "conversation": "a\0b"}, "NUL"),
                    ({"messages": PROMPT, "seed": -1}, "seed"),
                    ({"messages": PROMPT, "priority": 101}, "priority"),
                    ({"messages": PROMPT, "deadline_ms": 3600001}, "deadline"),
                    ({"messages": PROMPT, "request_id": b"short"}, "16 bytes"),
                    ({"messages": PROMPT, "credit_tokens": 0}, "credit_tokens"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(temperature=float("nan"))}, "temperature"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(temperature="hot")}, "temperature"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(top_p=2)}, "top_p"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(choices=17)}, "choices"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(tokens_max=-1)}, "tokens_max"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(stop="word")}, "list of strings"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(stop=[""])}, "stop"),
                    ({"messages": PROMPT, "sampling": roost.Sampling(bias={5: 1000.0})}, "bias")):
                with pytest.raises(roost.InvalidRequest, match=words):
                    client.generate(**arguments)
            assert not client._calls
            with pytest.raises(roost.RoostError, match="opened already"):
                await client.open()
            refused = await client.generate(messages=PROMPT, model="another").end()
            assert not refused.ok and refused.error is roost.Error.UNKNOWN_MODEL and refused.detail
        with pytest.raises(roost.RoostError, match="not open"):
            client.generate(messages=PROMPT)
        for arguments, words in (({"routers": "tcp://127.0.0.1:9"}, "list"), ({"routers": []}, "routers"),
                                 ({"routers": ["nonsense"]}, "nonsense"), ({"routers": [NOBODY], "tenant": "a b"}, "tenant")):
            with pytest.raises(roost.InvalidRequest, match=words):
                await roost.Client(**arguments).open()
        await roost.Client([NOBODY]).close()               # was never opened
    drive(main())


def test_nobody_there():
    async def main():
        async with roost.Client([NOBODY]) as client:
            end = await client.generate(messages=PROMPT, deadline_ms=300).end()
            assert end.error is roost.Error.DEADLINE and end.finishes == [] and end.detail
    drive(main())


def test_cancelling(shared_cluster):
    async def main():
        async with roost.Client(endpoints(shared_cluster)) as client:
            call = client.generate(messages=PROMPT, sampling=length(LONG))
            async for batch in call:
                call.cancel()
                break
            end = await call.end()
            assert end.error is roost.Error.CANCELLED
            call.cancel()                                   # of what has ended: nothing

            call = client.generate(messages=PROMPT, sampling=length(LONG))
            task = asyncio.ensure_future(collect(call))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await call.end()).error is roost.Error.CANCELLED

            call = client.generate(messages=PROMPT, sampling=length(LONG))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call.end(), 0.1)
            assert (await call.end()).error is roost.Error.CANCELLED

            call = client.generate(messages=PROMPT, sampling=length(LONG))
            threading.Thread(target=call.cancel).start()
            assert (await call.end()).error is roost.Error.CANCELLED

            # Thrown away: its id is free again, so it does not run any more. In flight the id would be refused.
            name = uuid.uuid4()
            call = client.generate(messages=PROMPT, sampling=length(LONG), request_id=name)
            await call.__anext__()
            assert call.request_id == name.bytes
            refused = await client.generate(messages=PROMPT, sampling=length(3), request_id=name).end()
            assert refused.error is roost.Error.CONFLICT
            del call
            gc.collect()
            assert not client._calls
            for _ in range(1000):
                end = await client.generate(messages=PROMPT, sampling=length(3), request_id=name.bytes).end()
                if end.error is not roost.Error.CONFLICT:
                    break
                await asyncio.sleep(0.02)
            assert end.error is not roost.Error.CONFLICT
    drive(main())


def test_what_is_not_read_is_held_back(shared_cluster):
    async def main():
        async with roost.Client(endpoints(shared_cluster)) as client:
            free = client.generate(messages=PROMPT, conversation="held", sampling=length(2000), seed=3)
            _, ids, _ = await collect(free)
            held = client.generate(messages=PROMPT, conversation="held", sampling=length(2000), seed=3)
            other = client.generate(messages=PROMPT, sampling=length(2000))
            assert (await other.end()).ok and other.unread == 2000        # nobody waits for it
            while held.unread < 256:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            assert held.unread <= 512
            _, slow, _ = await collect(held)
            assert slow == ids and held.unread == 0
            assert (await held.end()).ok
            # end() lets the rest come; it can be read afterwards
            late = client.generate(messages=PROMPT, conversation="held", sampling=length(2000), seed=3)
            first = await late.__anext__()
            assert (await late.end()).reply_tokens == 2000 and late.unread == 2000 - len(first.ids)
            rest = [token async for batch in late for token in batch.ids]
            assert rest == ids[0][-len(rest):] and late.unread == 0
    drive(main())


def test_many_calls_at_once(shared_cluster):
    async def one(client, number):
        call = client.generate(messages=PROMPT, conversation=f"many-{number}", sampling=length(10 + number % 20), seed=number)
        _, ids, _ = await collect(call)
        end = await call.end()
        assert end.ok, end
        assert len(ids[0]) == end.reply_tokens == 10 + number % 20
        return ids[0]

    async def main():
        async with roost.Client(endpoints(shared_cluster)) as client:
            replies = await asyncio.gather(*(one(client, number) for number in range(500)))
            assert client.stats().dropped == 0 and not client._calls
            assert await one(client, 499) == replies[499]
    drive(main())


def test_closing_with_open_calls(shared_cluster):
    async def main():
        client = roost.Client(endpoints(shared_cluster))
        await client.open()
        calls = [client.generate(messages=PROMPT, sampling=length(LONG)) for _ in range(20)]
        readers = [asyncio.ensure_future(collect(call)) for call in calls]
        await asyncio.sleep(0.1)
        closers = [asyncio.ensure_future(client.close()) for _ in range(3)]
        await asyncio.sleep(0)
        closers[0].cancel()                                 # the others still see it closed
        await asyncio.gather(*closers, return_exceptions=True)
        await client.close()
        await asyncio.gather(*readers)
        for call in calls:
            end = await call.end()
            assert end.error is roost.Error.CANCELLED and "destroyed" in end.detail
            call.cancel()
    drive(main())


def test_a_client_that_is_not_closed(shared_cluster):
    async def main():
        client = roost.Client(endpoints(shared_cluster))
        await client.open()
        native = client._native
        call = client.generate(messages=PROMPT, sampling=length(LONG))
        await call.__anext__()
        with pytest.warns(ResourceWarning, match="not closed"):
            del client, call
            gc.collect()
        assert not native.client                            # its thread is gone
        await asyncio.sleep(0.05)
    asyncio.run(main())


@pytest.mark.parametrize("thread", ["of the loop", "another"])
def test_what_was_not_closed_is_not_watched(thread):
    """The loop forgets the client's descriptor before it is closed: the next one of its number is somebody else's."""
    async def main():
        loop, client = asyncio.get_running_loop(), roost.Client([NOBODY])
        await client.open()
        native, holder = client._native, [client]
        number = native.library.client_events_fd(native.events)
        del client
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)        # a recorded one would hold the client
            if thread == "another":
                await asyncio.to_thread(holder.clear)
            holder.clear()
        for _ in range(500):
            if not native.client:
                break
            await asyncio.sleep(0.01)
        assert not native.client
        pairs = [socket.socketpair() for _ in range(40)]
        ours, theirs = next(pair if pair[0].fileno() == number else pair[::-1] for pair in pairs
                            if number in (pair[0].fileno(), pair[1].fileno()))
        ours.setblocking(False)
        waiting = loop.create_task(loop.sock_recv(ours, 1))
        await asyncio.sleep(0.05)
        theirs.send(b"x")
        assert await asyncio.wait_for(waiting, 10) == b"x"
        for pair in pairs:
            for end in pair:
                end.close()
    asyncio.run(main())


def test_loops_and_threads(shared_cluster):
    """Each thread has a loop and a client of its own; a client of another loop is refused."""
    strangers, results = [], []

    def thread(number):
        async def main():
            async with roost.Client(endpoints(shared_cluster), name=f"thread-{number}") as client:
                strangers.append(client)
                calls = [client.generate(messages=PROMPT, sampling=length(30), seed=i) for i in range(20)]
                results.append([(await collect(call))[1][0] for call in calls])
        asyncio.run(main())

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(results) == 4 and all(result == results[0] for result in results)

    async def opened():
        client = roost.Client(endpoints(shared_cluster))
        await client.open()
        return client, client.generate(messages=PROMPT, sampling=length(LONG))
    loop = asyncio.new_event_loop()
    client, call = loop.run_until_complete(opened())

    async def foreign():
        for use in (lambda: client.generate(messages=PROMPT), call.end().__await__().__next__, client.close().__await__().__next__):
            with pytest.raises(RuntimeError, match="belong to the event loop"):
                use()
    drive(foreign())
    loop.run_until_complete(client.close())
    loop.close()


def test_a_reply_outlives_its_router(new_cluster):
    """kill -9 of the router in the middle: the reply is the one that an undisturbed call gets."""
    cluster = new_cluster(**CLUSTER)

    async def main():
        async with roost.Client(endpoints(cluster), spread=False) as client:
            while client.stats().routers_ready < 2:
                await asyncio.sleep(0.02)
            sampling = length(600, temperature=0.9, choices=2)
            expected = await collect(client.generate(messages=PROMPT, conversation="outlives", sampling=sampling, seed=5))
            call = client.generate(messages=PROMPT, conversation="outlives", sampling=sampling, seed=5)
            got = {0: [], 1: []}
            killed = False
            async for batch in call:
                assert batch.first == len(got[batch.choice])
                got[batch.choice] += batch.ids
                if not killed and len(got[0]) >= 100:
                    cluster.routers[0].kill()
                    killed = True
            end = await call.end()
            assert end.ok, end
            assert got == expected[1] and end.reply_tokens == 1200 and end.moves == 1
            stats = client.stats()
            assert stats.moves == 1 and stats.resumed == 1 and stats.routers_ready == 1
    drive(main())


class Proxy:
    """Stands before a control endpoint; cut() resets what goes through it. (The data connection goes past it.)"""

    def __init__(self, endpoint):
        self.target, self.open = endpoint_address(endpoint), set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = "tcp://127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()

    def cut(self):
        for writer in self.open:
            writer.transport.abort()
        self.open.clear()

    async def _accept(self, reader, writer):
        there_reader, there = await asyncio.open_connection(*self.target)
        self.open |= {writer, there}

        async def copy(source, to):
            try:
                while data := await source.read(65536):
                    to.write(data)
                    await to.drain()
            except OSError:
                pass
            to.transport.abort()
        await asyncio.gather(copy(reader, there), copy(there_reader, writer))


def test_a_reply_outlives_its_connection(shared_cluster):
    """There is one router, and it has the request all the time: its client comes back, and gets what is missing."""
    async def main():
        sampling = length(600, temperature=0.9, choices=2)
        async with Proxy(endpoints(shared_cluster)[0]) as proxy, roost.Client([proxy.endpoint]) as client:
            expected = await collect(client.generate(messages=PROMPT, conversation="reset", sampling=sampling, seed=6))
            call = client.generate(messages=PROMPT, conversation="reset", sampling=sampling, seed=6)
            got, cuts = {0: [], 1: []}, 0
            async for batch in call:
                assert batch.first == len(got[batch.choice])
                got[batch.choice] += batch.ids
                if len(got[0]) >= 100 * (cuts + 1) and cuts < 3:
                    proxy.cut()
                    cuts += 1
            end = await call.end()
            assert end.ok, end
            assert got == expected[1] and end.reply_tokens == 1200 and 1 <= end.moves <= cuts
    drive(main())


def test_the_example_of_the_readme(shared_cluster):
    code = re.search(r"^```python\n(.*?)^```$", (PACKAGE / "README.md").read_text(), re.M | re.S)[1]
    done = subprocess.run([sys.executable, "-B", "-X", "dev", "-c", code, *endpoints(shared_cluster)], text=True, capture_output=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": str(PACKAGE)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.search(r"\d+ tokens, \d+ of \d+ from the cache of worker-[ab]\n$", done.stdout), done.stdout


def test_the_library_is_found_or_named(tmp_path):
    def load(**environment):
        return subprocess.run([sys.executable, "-B", "-c", "import roost, asyncio; asyncio.run(roost.Client(['%s']).open())" % NOBODY],
                              text=True, capture_output=True, timeout=60,
                              env={**os.environ, "PYTHONPATH": str(PACKAGE), **environment})
    assert load().returncode == 0                           # not closed, and it ends nevertheless
    missing = load(ROOST_CLIENT_LIBRARY=str(tmp_path / "missing.so"))
    assert missing.returncode == 1 and "was not found; build it" in missing.stderr
    other = load(ROOST_CLIENT_LIBRARY=ctypes.util.find_library("zmq"))
    assert other.returncode == 1 and "is not the client library that this package was made for" in other.stderr


def test_types():
    checked = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, str(PACKAGE / "roost")], text=True,
                             capture_output=True, timeout=300)
    if "No module named mypy" in checked.stderr:
        pytest.skip("mypy is not installed")
    assert checked.returncode == 0, checked.stdout
