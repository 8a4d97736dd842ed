"""Real processes for tests: redis-server, roost-router, roost-worker, each in its own files under one directory.

Nothing waits by sleeping for a guess: a program is up when its ready file is there, gone when it has been reaped. A cluster
ends only the processes that it started, by their ids. At close every process that was not killed on purpose must exit 0 on
SIGTERM, and no log may hold a sanitizer's report.
"""
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import time

SOURCE_DIR = pathlib.Path(os.environ.get("ROOST_SOURCE_DIR") or pathlib.Path(__file__).resolve().parents[2])
BUILD_DIR = pathlib.Path(os.environ.get("ROOST_BUILD_DIR") or SOURCE_DIR / "build" / "dev")
BIN_DIR = BUILD_DIR / "bin"
MODEL_DIR = SOURCE_DIR / "deploy" / "models" / "folio"
MODEL_CONFIG = json.loads((MODEL_DIR / "config.json").read_text())
CONTEXT, VOCABULARY = MODEL_CONFIG["max_position_embeddings"], MODEL_CONFIG["vocab_size"]

CACHE = BUILD_DIR / "CMakeCache.txt"
SANITIZED = CACHE.exists() and bool(re.search(r"^ROOST_SANITIZE:STRING=\S", CACHE.read_text(), re.M))
SLOWER = 8 if SANITIZED else 1            # how much longer things may take
START_S = 20 * SLOWER                     # load the model and check its known answer, on a busy machine
EXIT_S = 15 * SLOWER

SANITIZER_REPORT = re.compile(r"ERROR: (Address|Leak|Undefined|Thread)\w*Sanitizer|runtime error:|SUMMARY: \w+Sanitizer")


def wait_until(what, check, timeout_s, interval_s=0.01):
    """The first true value of check(), or a failure that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(interval_s)


def _ports():
    """Those that the kernel gives to nobody who asks for any port, each once: what is free now still is when it is bound, or bound again."""
    below = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(10000, below) or [0]
    start = random.randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


_some_ports = _ports()


def free_port():
    for port in _some_ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]


def endpoint_address(endpoint):
    """("127.0.0.1", 7400) of "tcp://127.0.0.1:7400"."""
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


class Process:
    """One program: its log, its ready file, and how it ended."""

    def __init__(self, name, command, directory, ready_file=None, environment=None):
        self.name, self.command, self.ready_file = name, [str(part) for part in command], ready_file
        self.ready = None                     # what the program wrote when it was ready: name, pid, control, data, incarnation
        self.environment = {**os.environ, **(environment or {})}
        self.directory, self.starts, self.popen, self.killed = directory, 0, None, False
        self.logs = []

    def start(self, wait=True):
        assert self.popen is None or self.popen.poll() is not None, f"{self.name} runs already"
        if self.ready_file and self.ready_file.exists():
            self.ready_file.unlink()          # of a process that was killed
        self.starts += 1
        self.killed = False
        self.logs.append(self.directory / f"{self.name}.{self.starts}.log")
        with open(self.logs[-1], "wb") as log:
            # setpriv: it does not outlive a test run that is killed. It becomes the program, so the pid stays.
            self.popen = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *self.command], stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log, env=self.environment)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        def check():
            if self.popen.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.popen.returncode} before it was ready:\n{self.log()}")
            return self.is_ready()
        wait_until(f"{self.name} to be ready", check, START_S)
        if self.ready_file:
            self.ready = json.loads(self.ready_file.read_text())

    def is_ready(self):
        return self.ready_file.exists()

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen is not None and self.popen.poll() is None

    def log(self):
        return "".join(path.read_text(errors="replace") for path in self.logs)

    def signal(self, number):
        assert self.alive(), f"{self.name} is gone already"
        self.popen.send_signal(number)

    def kill(self):
        """SIGKILL, and gone."""
        self.killed = True
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def pause(self):
        """SIGSTOP, and stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(f"{self.name} to stop", lambda: self._state() in "Tt", 5)

    def resume(self):
        self.signal(signal.SIGCONT)

    def _state(self):
        return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def terminate(self):
        self.signal(signal.SIGTERM)

    def wait_exit(self, timeout_s=EXIT_S):
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s} s:\n{self.log()}") from None

    def close(self):
        """Ends it; returns what is wrong with how it ended."""
        if self.popen is None:
            return []
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.popen.send_signal(number)    # nothing, if it ends by itself just now
        try:
            self.popen.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            return [f"{self.name} did not end within {EXIT_S} s of SIGTERM"]
        problems = []
        if not self.killed and self.popen.returncode != 0:
            problems.append(f"{self.name} ended with {self.popen.returncode}")
        if self.ready_file and self.ready_file.exists() and not self.killed:
            problems.append(f"{self.name} left its ready file behind")
        if SANITIZER_REPORT.search(self.log()):
            problems.append(f"a sanitizer reported something in {self.name}")
        return problems


class Redis(Process):
    """A Redis without persistence on a unix socket (or a port), and a connection to look into it."""

    def __init__(self, directory, port=None):
        self.socket_path = directory / "redis.sock"
        self.host, self.port = "127.0.0.1", port
        where = ["--port", port, "--bind", "127.0.0.1"] if port else ["--port", "0", "--unixsocket", self.socket_path]
        super().__init__("redis", ["redis-server", *where, "--save", "", "--appendonly", "no", "--dir", directory,
                                   "--loglevel", "warning", "--daemonize", "no"], directory)

    @property
    def address(self):
        return f"{self.host}:{self.port}" if self.port else str(self.socket_path)

    def is_ready(self):
        try:
            return self.call("PING") == "PONG"
        except OSError:
            return False

    def call(self, *words):
        """One command on a connection of its own; replies as str, int, None or lists."""
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        with socket.socket(socket.AF_INET if self.port else socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect((self.host, self.port) if self.port else str(self.socket_path))
            link.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            with link.makefile("rb") as replies:
                return self._reply(replies)

    def _reply(self, replies):
        line = replies.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise AssertionError(f"Redis: {rest.decode()}")
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else replies.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self._reply(replies) for _ in range(int(rest))]
        raise OSError(f"no reply: {line!r}")

    def hash(self, key):
        flat = self.call("HGETALL", key)
        return dict(zip(flat[::2], flat[1::2]))


class Cluster:
    """
    with Cluster(directory, workers=2) as cluster:
        client = Peer(cluster.routers[0].ready["control"])
    """

    def __init__(self, directory, workers=2, routers=1, redis=True, redis_port=None, worker_settings=None,
                 router_settings=None, model=MODEL_DIR, start=True):
        self.directory = pathlib.Path(directory)
        self.placement_salt = "salt of the tests"
        self.model = model
        self.worker_settings, self.router_settings = worker_settings or {}, router_settings or {}
        self.redis = Redis(self.directory, redis_port) if redis else None
        self.workers = [self._worker(f"worker-{chr(ord('a') + i)}") for i in range(workers)]
        self.routers = []
        self.router_count = routers
        self.extra = []                       # more processes that a test started
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close(check=kind is None)

    def start(self, redis=True):
        try:
            if self.redis and redis:
                self.redis.start()
            for worker in self.workers:
                worker.start(wait=False)
            for worker in self.workers:
                worker.wait_ready()
            self.routers = [self._router(f"router-{i + 1}") for i in range(self.router_count)]
            for router in self.routers:
                router.start()
            for router in self.routers:           # it serves before it has found its workers
                wait_until(f"{router.name} to find its workers", lambda: all(
                    f"worker {worker.name} is up" in router.log() for worker in self.workers), START_S)
        except BaseException:
            self.close(check=False)
            raise

    def _flags(self, settings):
        return [part for key, value in settings.items() for part in ("--" + key.replace("_", "-"), value)]

    def _worker(self, name, control=None, data=None):
        """On ports that nobody else gets while it is restarted."""
        ready = self.directory / f"{name}.ready"
        control, data = (endpoint or f"tcp://127.0.0.1:{free_port()}" for endpoint in (control, data))
        settings = {"name": name, "listen_control": control, "listen_data": data, "model": self.model, "kv_mebibytes": 64,
                    "redis_address": self.redis.address if self.redis else "", "ready_file": ready,
                    "drain_deadline_ms": 30000 * SLOWER, **self.worker_settings}
        return Process(name, [BIN_DIR / "roost-worker", *self._flags(settings)], self.directory, ready)

    def _router(self, name):
        ready = self.directory / f"{name}.ready"
        settings = {"name": name, "listen_control": "tcp://127.0.0.1:*", "listen_data": "tcp://127.0.0.1:*",
                    "workers": ",".join(worker.ready["control"] for worker in self.workers),
                    "placement": "redis" if self.redis else "memory", "placement_salt": self.placement_salt,
                    "ready_file": ready, "drain_deadline_ms": 30000 * SLOWER,
                    **({"redis_address": self.redis.address} if self.redis else {}), **self.router_settings}
        return Process(name, [BIN_DIR / "roost-router", *self._flags(settings)], self.directory, ready)

    def worker(self, name):
        return next(worker for worker in self.workers if worker.name == name)

    def other_worker(self, name):
        return next(worker for worker in self.workers if worker.name != name)

    def restart(self, worker):
        """A worker that ended comes back on the endpoints it had: another process, nothing cached."""
        again = self._worker(worker.name, worker.ready["control"], worker.ready["data"])
        again.starts, again.logs = worker.starts, worker.logs
        self.workers[self.workers.index(worker)] = again
        return again.start()

    def place_key(self, tenant, conversation):
        """The key of a conversation's placement record (docs/protocol.md)."""
        salt = hashlib.blake2b(self.placement_salt.encode(), digest_size=32).digest()
        text = len(tenant).to_bytes(4, "little") + tenant.encode() + conversation.encode()
        return "roost:{%s}:place" % hashlib.blake2b(text, digest_size=32, key=salt).digest()[:16].hex()

    def place(self, conversation, tenant="default"):
        return self.redis.hash(self.place_key(tenant, conversation))

    def processes(self):
        return [*self.extra, *self.routers, *self.workers, *([self.redis] if self.redis else [])]

    def check_alive(self):
        for process in self.processes():
            assert process.popen is None or process.killed or process.alive(), \
                f"{process.name} died with {process.popen.returncode}:\n{process.log()[-4000:]}"

    def logs(self):
        return "\n".join(f"---- {process.name}\n{process.log()}" for process in self.processes() if process.popen)

    def close(self, check=True):
        problems = [problem for process in self.processes() for problem in process.close()]
        if check and problems:
            raise AssertionError("; ".join(problems) + "\n" + self.logs()[-20000:])
