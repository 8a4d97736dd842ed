"""The tools themselves: the checker finds what is planted, the proxy does what it says, namespaces cut what they should."""
import asyncio
import socket

import pytest

import history
import network
from cluster import free_port
from proxy import Proxy

PATIENCE_S = 30               # for what takes milliseconds


# ---- the checker


def make_history(path=None):
    """Two good requests: one done, one cancelled as it asked to be."""
    made = history.History(path)
    for name, may in (("a", []), ("b", ["CANCELLED"])):
        made.add("invoke", id=name, deadline_s=5, may=may, request={"prompt_ids": [1, 2]})
    made.add("tokens", id="a", choice=0, first=0, ids=[5, 6], text="fi")
    made.add("tokens", id="a", choice=1, first=0, ids=[8], text="x")
    made.add("tokens", id="b", choice=0, first=0, ids=[9], text="no")
    made.add("tokens", id="a", choice=0, first=2, ids=[7], text="sh")
    made.add("tokens", id="a", choice=0, first=3, ids=[], text="!")      # text that belongs to no token
    made.add("end", id="a", error=None, finishes=["stop", "length"], reply_tokens=4)
    made.add("end", id="b", error="CANCELLED", detail="", finishes=[], reply_tokens=0)
    return made


def references():
    return {"a": history.Reply({0: [5, 6, 7], 1: [8]}, {0: "fish!", 1: "x"}, ["stop", "length"]),
            "b": history.Reply({0: [9, 9, 9]}, {0: "not"}, ["length"])}


def test_checker_accepts_a_good_run(tmp_path):
    made = make_history(tmp_path / "history.jsonl")
    made.close()
    for one in (made, history.History.load(tmp_path / "history.jsonl")):
        verdict = history.check(one, references())
        assert verdict.line() == ("fleet: sent 2, done 1, errors 1 (CANCELLED 1), unwanted 0, lost 0, twice 0, gaps 0, differ 0 of 2")
        assert verdict.holds()
        history.assert_kept(one, references())


def plant_gap(made, refs):
    made.requests["a"].tokens[2]["first"] = 3


def plant_missing_tail(made, refs):
    del made.requests["a"].tokens[-2:]


def plant_repeat(made, refs):
    made.requests["a"].tokens.insert(1, dict(made.requests["a"].tokens[0]))


def plant_late_tokens(made, refs):
    made.add("tokens", id="a", choice=0, first=3, ids=[], text="")


def plant_no_end(made, refs):
    made.requests["b"].ends.clear()


def plant_two_ends(made, refs):
    made.requests["a"].ends *= 2


def plant_late_end(made, refs):
    made.requests["a"].ends[0]["at"] += 5.5 + history.TERMINAL_SLACK_S + history.STALL_S


def plant_stray(made, refs):
    made.add("end", id="never", error=None, finishes=[], reply_tokens=0)


def plant_token(made, refs):
    made.requests["a"].tokens[0]["ids"][1] = 66


def plant_text(made, refs):
    made.requests["a"].tokens[0]["text"] = "fo"


def plant_finish(made, refs):
    refs["a"].finishes[0] = "length"


def plant_extra_choice(made, refs):
    refs["a"].ids[2] = [1]


def plant_token_of_the_cancelled(made, refs):
    made.requests["b"].tokens[0]["ids"][0] = 8


@pytest.mark.parametrize("plant, counts", [
    (plant_gap, "gaps"), (plant_missing_tail, "gaps"), (plant_repeat, "twice"), (plant_late_tokens, "twice"), (plant_no_end, "lost"),
    (plant_two_ends, "twice"), (plant_late_end, "lost"), (plant_stray, "twice"), (plant_token, "differ"), (plant_text, "differ"),
    (plant_finish, "differ"), (plant_extra_choice, "differ"), (plant_token_of_the_cancelled, "differ")])
def test_checker_finds(plant, counts):
    made, refs = make_history(), references()
    plant(made, refs)
    verdict = history.check(made, refs)
    assert getattr(verdict, counts) > 0, verdict.line()
    assert verdict.wrong
    with pytest.raises(AssertionError):
        history.assert_kept(made, refs)


def test_checker_finds_unwanted_errors():
    made = make_history()
    made.requests["b"].invoke["may"] = []
    assert history.check(made).unwanted == {"CANCELLED": 1}
    with pytest.raises(AssertionError, match="CANCELLED"):
        history.assert_kept(made, references())
    history.assert_kept(made, references(), may=("CANCELLED",))


def test_checker_wants_a_run():
    with pytest.raises(AssertionError, match="nothing was sent"):
        history.assert_kept(history.History(), {})


# ---- the proxy


async def echo_server():
    async def serve(reader, writer):
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
            writer.write(b"<end>")            # the client's half close arrived
            writer.close()
        except ConnectionError:
            pass
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, list(server.sockets[0].getsockname()[:2])


def with_proxy(tmp_path, check, seed=7):
    async def run():
        server, target = await echo_server()
        async with Proxy(tmp_path, seed=seed) as proxy:
            address = await proxy.listen("link", target, ["127.0.0.1", free_port()])
            await check(proxy, address)
        server.close()
        return [event["fault"] for event in proxy.events()]
    return asyncio.run(run())


async def exchange(link, data, size=None):
    link[1].write(data)
    return await asyncio.wait_for(link[0].readexactly(len(data) if size is None else size), PATIENCE_S)


def test_proxy_passes_everything_on(tmp_path):
    async def check(proxy, address):
        link = await asyncio.open_connection(*address)
        data = bytes(range(256)) * 4096
        assert await exchange(link, data) == data
        link[1].write_eof()
        assert await link[0].read() == b"<end>"
        assert (await proxy.stats("link"))["accepted"] == 1
    assert with_proxy(tmp_path, check) == []


def test_proxy_delays_and_throttles(tmp_path):
    async def check(proxy, address):
        loop = asyncio.get_running_loop()
        link = await asyncio.open_connection(*address)
        await exchange(link, b"x")
        await proxy.faults("link", up={"delay_ms": 100, "jitter_ms": 20})
        at = loop.time()
        await exchange(link, b"x")
        assert 0.1 <= loop.time() - at
        await proxy.faults("link", up={"bytes_per_s": 100000}, down={})
        at = loop.time()
        await exchange(link, bytes(50000))
        assert 0.4 <= loop.time() - at
        await proxy.heal("link")
        await exchange(link, bytes(400000 * PATIENCE_S))     # at that rate it would take four times as long as it may
    assert with_proxy(tmp_path, check) == ["delay", "bandwidth"]


def test_proxy_cuts_in_the_middle(tmp_path):
    async def check(proxy, address):
        for how in ("reset", "fin"):
            link = await asyncio.open_connection(*address)
            await exchange(link, b"before")
            await proxy.faults("link", down={"cut_after": 1000, "how": how})
            link[1].write(bytes(5000))
            got = b""
            try:
                while piece := await asyncio.wait_for(link[0].read(65536), PATIENCE_S):
                    got += piece
                assert how == "fin"
            except ConnectionResetError:
                assert how == "reset"
            assert len(got) <= 1000 and (how == "reset" or len(got) == 1000)
            await proxy.heal("link")
        link = await asyncio.open_connection(*address)
        await exchange(link, b"before")
        assert await proxy.cut("link", "half") == 1           # towards the server
        assert await asyncio.wait_for(link[0].read(), PATIENCE_S) == b"<end>"
    assert with_proxy(tmp_path, check) == ["cut"] * 3


def test_proxy_blackholes_one_way(tmp_path):
    async def check(proxy, address):
        link = await asyncio.open_connection(*address)
        await proxy.faults("link", down={"blackhole": True})
        link[1].write(b"lost")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(link[0].read(1), 0.3)
        while "blackhole" not in (await proxy.stats("link"))["faults"]:
            await asyncio.sleep(0.01)
        await proxy.heal("link")
        with pytest.raises(ConnectionResetError):             # never as if nothing were missing
            await asyncio.wait_for(link[0].read(1), PATIENCE_S)
        await proxy.refuse("link")
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
        await proxy.refuse("link", False)
        assert await exchange(await asyncio.open_connection(*address), b"again") == b"again"
    assert with_proxy(tmp_path, check) == ["blackhole", "cut", "refuse"]


def test_proxy_corrupts_and_reorders(tmp_path):
    seen = []

    async def check(proxy, address):
        link = await asyncio.open_connection(*address)
        await proxy.faults("link", up={"corrupt_after": 3})
        got = await exchange(link, bytes(10))
        assert sum(got) and [i for i, byte in enumerate(got) if byte] == [3] and bin(got[3]).count("1") == 1
        assert await exchange(link, bytes(10)) == bytes(10)   # once
        await proxy.faults("link", up={"reorder_rate": 1.0})
        assert await exchange(link, b"abcd") == b"cdab"
        await proxy.faults("link", up={"corrupt_rate": 0.5})
        seen.append([await exchange(link, bytes(64)) for _ in range(20)])
    for _ in range(2):
        faults = with_proxy(tmp_path, check)
        assert faults[:2] == ["corrupt", "reorder"] and faults.count("corrupt") > 3
        (tmp_path / "proxy.faults").unlink()
    assert seen[0] == seen[1]                                 # a seed, a run


# ---- the network


def test_network_cuts(capsys):
    reason = network.unavailable()
    if reason:
        pytest.skip(reason)

    async def serve_on(host):
        code = ("import socket\ns=socket.create_server((%r,9000))\nprint('up',flush=True)\nwhile True:\n c,_=s.accept()\n"
                " while d:=c.recv(100): c.sendall(d)\n" % host.address)
        process = await asyncio.create_subprocess_exec(*host.command(["setpriv", "--pdeathsig", "KILL", "python3", "-c", code]),
                                                       stdout=asyncio.subprocess.PIPE)
        assert await process.stdout.readline() == b"up\n"
        return process

    async def run():
        async with network.Network() as net:
            one, two = await net.host("one"), await net.host("two")
            process = await serve_on(one)
            link = await asyncio.open_connection(one.address, 9000)
            assert await exchange(link, b"hello") == b"hello"
            await one.cut(net.address, "from")
            link[1].write(b"lost?")
            reading = asyncio.ensure_future(link[0].read(100))
            assert not (await asyncio.wait([reading], timeout=0.4))[0]
            assert await one.dropped() > 0
            await one.heal()
            await one.cut(two)                                # not us
            assert await asyncio.wait_for(reading, PATIENCE_S) == b"lost?"        # TCP sends it again
            process.kill()
            await process.wait()
    asyncio.run(run())
    with socket.socket() as here:                             # and this thread is back where it was
        here.bind(("127.0.0.1", 0))
