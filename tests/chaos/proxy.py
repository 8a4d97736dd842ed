#!/usr/bin/env python3
"""A TCP proxy that breaks what passes through it, by a script or by a seed, and writes down what it did.

As a program it serves any number of links and takes commands, one JSON object a line, on standard input, each answered by one line:
  {"do": "listen", "link": "redis", "listen": ["127.0.0.1", 0], "target": ["127.0.0.1", 6379]}   or "/path/of/a/socket" for either
  {"do": "faults", "link": "redis", "up": {...}, "down": {...}}    for connections from now on and those that are open
  {"do": "cut", "link": "redis", "how": "reset"}                   all open connections now: reset, fin, half
  {"do": "retarget", "link": "redis", "target": [...]}             open connections are reset; new ones go there
  {"do": "refuse", "link": "redis", "on": true}                    the listener is closed, or opened again
  {"do": "stats", "link": "redis"}
`up` is what the client sends to the target, `down` the answers. Faults of a direction, all of them off by default:
  delay_ms, jitter_ms       each piece waits so long, plus a random part; order is kept
  bytes_per_s               no faster than that
  blackhole                 taken and thrown away, nothing is sent on; a connection that lost bytes so is reset when this ends
  cut_after                 so many bytes after now, in the middle of whatever passes, the connection ends as `how` says (reset, fin, half)
  corrupt_after             so many bytes after now one byte is changed, then off
  corrupt_rate, reorder_rate, cut_rate      chance per piece: one bit of it is changed; its halves are swapped; the connection is cut as `how` says
Every fault that happens is a line of the log: {"at": s since the epoch, "link", "connection", "direction", "fault", ...}.

In a test: async with Proxy(path) as proxy: address = await proxy.listen("redis", target); await proxy.faults("redis", up={"delay_ms": 200})
"""
import argparse
import asyncio
import collections
import json
import pathlib
import random
import signal
import socket
import struct
import sys
import time

PIECE_BYTES = 16384
FAULTS = {"delay_ms": 0, "jitter_ms": 0, "bytes_per_s": 0, "blackhole": False, "cut_after": None, "how": "reset", "corrupt_after": None,
          "corrupt_rate": 0.0, "reorder_rate": 0.0, "cut_rate": 0.0}
HOWS = ("reset", "fin", "half")


class Direction:
    """One way of one connection: reads pieces, breaks them, sends them on."""

    def __init__(self, connection, name, reader, writer):
        self.connection, self.name, self.reader, self.writer = connection, name, reader, writer
        self.faults = dict(FAULTS)
        self.bytes = 0                        # sent on
        self.free_at = 0.0                    # when the line is free again, for bytes_per_s
        self.queue = collections.deque()      # (due, piece) on the way
        self.wake = asyncio.Event()
        self.ended = False
        self.swallowed = False                # bytes went into a blackhole

    def set(self, faults):
        for key, value in faults.items():
            if key not in FAULTS:
                raise ValueError(f"no such fault: {key}")
            self.faults[key] = value
        if self.swallowed and not self.faults["blackhole"]:      # TCP never goes on behind bytes that are missing
            self.note("cut", how="reset")
            self.connection.cut("reset")

    def note(self, fault, **fields):
        self.connection.link.proxy.note(self.connection.link.name, self.connection.number, self.name, fault, **fields)

    async def read(self):
        draw = self.connection.link.random
        last_due = 0.0
        while True:
            try:
                piece = await self.reader.read(PIECE_BYTES)
            except OSError:
                piece = b""
            if not piece:
                break
            faults = self.faults
            if faults["blackhole"]:
                self.note("blackhole", bytes=len(piece))
                self.swallowed = True
                continue
            if faults["cut_rate"] and draw.random() < faults["cut_rate"]:
                self.note("cut", how=faults["how"], after=self.bytes)
                self.connection.cut(faults["how"], self)
                return
            piece = self.corrupt(piece, draw)
            if faults["cut_after"] is not None:
                if len(piece) >= faults["cut_after"]:
                    piece, after = piece[:faults["cut_after"]], faults["cut_after"]
                    faults["cut_after"] = None
                    self.note("cut", how=faults["how"], after=after)
                    await self.send(piece)
                    self.connection.cut(faults["how"], self)
                    return
                faults["cut_after"] -= len(piece)
            if faults["reorder_rate"] and draw.random() < faults["reorder_rate"] and len(piece) > 1:
                middle = len(piece) // 2
                piece = piece[middle:] + piece[:middle]      # what two chunks that swapped places look like to a stream
                self.note("reorder", bytes=len(piece))
            now = time.monotonic()
            due = now
            if faults["delay_ms"] or faults["jitter_ms"]:
                due += (faults["delay_ms"] + draw.random() * faults["jitter_ms"]) / 1000
                self.connection.link.delayed += 1
                if self.connection.link.delayed == 1:
                    self.note("delay", ms=faults["delay_ms"], jitter_ms=faults["jitter_ms"])
            if faults["bytes_per_s"]:
                if self.free_at == 0.0:
                    self.note("bandwidth", bytes_per_s=faults["bytes_per_s"])
                self.free_at = max(self.free_at, now) + len(piece) / faults["bytes_per_s"]
                due = max(due, self.free_at)
            last_due = max(last_due, due)
            self.queue.append((last_due, piece))
            self.wake.set()
            while len(self.queue) > 64:                       # a slow line pushes back, as a real one does
                await asyncio.sleep(0.005)
        self.ended = True
        self.wake.set()

    def corrupt(self, piece, draw):
        at = None
        if self.faults["corrupt_after"] is not None:
            if len(piece) > self.faults["corrupt_after"]:
                at, self.faults["corrupt_after"] = self.faults["corrupt_after"], None
            else:
                self.faults["corrupt_after"] -= len(piece)
        elif self.faults["corrupt_rate"] and draw.random() < self.faults["corrupt_rate"]:
            at = draw.randrange(len(piece))
        if at is None:
            return piece
        changed = bytearray(piece)
        changed[at] ^= 1 << draw.randrange(8)
        self.note("corrupt", at=self.bytes + at)
        return bytes(changed)

    async def send(self, piece):
        if self.writer.is_closing():
            return                            # cut meanwhile
        self.bytes += len(piece)
        try:
            self.writer.write(piece)
            await self.writer.drain()
        except (OSError, RuntimeError):           # it is gone, or was half closed
            pass

    async def write(self):
        while True:
            while self.queue:
                due, piece = self.queue[0]
                wait = due - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                self.queue.popleft()
                await self.send(piece)
            if self.ended:
                break
            self.wake.clear()
            await self.wake.wait()
        try:                                                  # the end of this direction alone: half closes pass through
            if self.writer.can_write_eof():
                self.writer.write_eof()
        except (OSError, RuntimeError):           # it is gone, or was half closed
            pass

    async def run(self):
        writing = asyncio.ensure_future(self.write())
        try:
            await self.read()
        finally:
            self.ended = True
            self.wake.set()
        await writing


class Connection:
    def __init__(self, link, number, client, target):
        self.link, self.number, self.writers = link, number, (client[1], target[1])
        self.up = Direction(self, "up", client[0], target[1])
        self.down = Direction(self, "down", target[0], client[1])
        self.up.set(link.faults["up"])
        self.down.set(link.faults["down"])

    def cut(self, how, direction=None):
        """reset: both ends get a RST. fin: both get an orderly end. half: only the receiver of `direction` (default up) gets one."""
        if how == "half":
            try:
                (direction or self.up).writer.write_eof()
            except (OSError, RuntimeError):
                pass
            return
        for writer in self.writers:
            if how == "reset":
                link = writer.get_extra_info("socket")
                if link is not None and link.family != socket.AF_UNIX:
                    try:
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    except OSError:
                        pass
                writer.transport.abort()
            else:
                writer.close()

    async def run(self):
        await asyncio.gather(self.up.run(), self.down.run())
        for writer in self.writers:
            writer.close()


class Link:
    def __init__(self, proxy, name, listen, target):
        self.proxy, self.name, self.listen, self.target = proxy, name, listen, target
        self.random = random.Random(f"{proxy.seed} {name}")
        self.faults = {"up": {}, "down": {}}
        self.connections, self.accepted, self.server, self.delayed = set(), 0, None, 0

    async def open(self):
        if isinstance(self.listen, str):
            pathlib.Path(self.listen).unlink(missing_ok=True)
            self.server = await asyncio.start_unix_server(self.serve, self.listen)
        else:
            self.server = await asyncio.start_server(self.serve, *self.listen)
            self.listen = list(self.server.sockets[0].getsockname()[:2])      # the same port if it is opened again

    def refuse(self):
        if self.server:
            self.server.close()
            self.server = None

    async def serve(self, reader, writer):
        self.accepted += 1
        number = self.accepted
        try:
            if isinstance(self.target, str):
                target = await asyncio.open_unix_connection(self.target)
            else:
                target = await asyncio.open_connection(*self.target)
        except OSError:
            self.proxy.note(self.name, number, "up", "target refused")
            writer.transport.abort()
            return
        connection = Connection(self, number, (reader, writer), target)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)


class Server:
    def __init__(self, seed, log):
        self.seed, self.links, self.counts = seed, {}, collections.Counter()
        self.log = open(log, "a", encoding="utf-8") if log else None

    def note(self, link, connection, direction, fault, **fields):
        self.counts[link, fault] += 1
        if self.log and (fault != "blackhole" or self.counts[link, fault] == 1):
            self.log.write(json.dumps({"at": time.time(), "link": link, "connection": connection, "direction": direction,
                                       "fault": fault, **fields}) + "\n")
            self.log.flush()

    async def command(self, do, link, **fields):
        if do == "listen":
            made = Link(self, link, fields["listen"], fields["target"])
            await made.open()
            self.links[link] = made
            return {"listen": made.listen}
        at = self.links[link]
        if do == "faults":
            for way in ("up", "down"):
                faults = fields.get(way)
                if faults is None:
                    continue
                at.faults[way] = faults
                at.delayed = 0
                for connection in at.connections:
                    direction = getattr(connection, way)
                    direction.set({**FAULTS, **faults})
                    direction.free_at = 0.0
            return {}
        if do == "cut":
            if fields["how"] not in HOWS:
                raise ValueError(f"how: one of {', '.join(HOWS)}")
            open_now = list(at.connections)
            for connection in open_now:
                self.note(link, connection.number, "both", "cut", how=fields["how"])
                connection.cut(fields["how"])
            return {"cut": len(open_now)}
        if do == "retarget":
            at.target = fields["target"]
            return await self.command("cut", link, how="reset")
        if do == "refuse":
            if fields["on"]:
                at.refuse()
                self.note(link, 0, "both", "refuse")
            elif at.server is None:
                await at.open()
            return {}
        if do == "stats":
            return {"accepted": at.accepted, "open": len(at.connections),
                    "faults": {fault: count for (name, fault), count in self.counts.items() if name == link}}
        raise ValueError(f"no such command: {do}")

    async def run(self):
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def commands():
            while line := await reader.readline():
                try:
                    answer = {"ok": True, **await self.command(**json.loads(line))}
                except (ValueError, KeyError, TypeError, OSError) as error:
                    answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
            stop.set()                                        # who started it is gone
        reading = asyncio.ensure_future(commands())
        await stop.wait()
        reading.cancel()


class Proxy:
    """The proxy as a process of its own, so that it does not share a thread with the load."""

    def __init__(self, directory, seed=1, name="proxy"):
        self.directory, self.seed, self.name = pathlib.Path(directory), seed, name
        self.log_path = self.directory / f"{name}.faults"
        self.process, self.turn = None, asyncio.Lock()

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", sys.executable, "-B", __file__, "--seed", str(self.seed), "--log", str(self.log_path),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        return self

    async def __aexit__(self, *_):
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except asyncio.TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def _command(self, **command):
        async with self.turn:
            self.process.stdin.write((json.dumps(command) + "\n").encode())
            line = await self.process.stdout.readline()
        if not line:
            raise ConnectionError(f"{self.name} ended")
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise ValueError(answer["error"])
        return answer

    async def listen(self, link, target, listen=("127.0.0.1", 0)):
        """Where it listens: [host, port], or the path."""
        return (await self._command(do="listen", link=link, target=target, listen=listen))["listen"]

    async def faults(self, link, up=None, down=None):
        """What is broken from now on; {} heals a direction, None leaves it as it is."""
        await self._command(do="faults", link=link, up=up, down=down)

    async def heal(self, link):
        await self.faults(link, {}, {})

    async def cut(self, link, how="reset"):
        return (await self._command(do="cut", link=link, how=how))["cut"]

    async def retarget(self, link, target):
        await self._command(do="retarget", link=link, target=target)

    async def refuse(self, link, on=True):
        await self._command(do="refuse", link=link, on=on)

    async def stats(self, link):
        return await self._command(do="stats", link=link)

    def events(self):
        """What it did so far."""
        if not self.log_path.exists():
            return []
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", help="file for what it did")
    options = parser.parse_args()
    asyncio.run(Server(options.seed, options.log).run())


if __name__ == "__main__":
    main()
