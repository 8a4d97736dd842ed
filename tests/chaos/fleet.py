"""A fleet for tests that break it: Redis, routers and workers as real processes, restarted by a supervisor when they die.

  async with Fleet(directory, workers=4, routers=3, simulate=PROFILE) as fleet:
      async with fleet.client() as client: ...

Built on Cluster and Process of tests/cluster/cluster.py. What it adds: endpoints that stay the same over restarts, simulated workers, hosts
(network.py), proxies before workers, routers and Redis (proxy.py), a supervisor that notes each death, builds of another version. At the end
everything that it started is gone, and a process that died in a way that the test did not announce fails the test.
"""
import asyncio
import calendar
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from cluster import BIN_DIR, BUILD_DIR, MODEL_DIR, SLOWER, SOURCE_DIR, START_S, Cluster, Process, free_port

os.environ.setdefault("ROOST_CLIENT_LIBRARY", str(BUILD_DIR / "lib" / "libroost_client.so"))
sys.path.insert(0, str(SOURCE_DIR / "proto" / "python"))

# A step of 40 ms: 200 conversations of some 20 tokens a second each, which two cores can carry beside everything else. The context leaves
# room for a conversation of several turns.
PROFILE = "fast,step_us=40000,prefill_us=20,decode_us=20,context=8192,reply=0,seed=5"
SEQUENCES_MAX = 512           # of a worker: all conversations of a fleet fit in two of them, also with three choices each
QUEUE_MAX = 2048


@functools.lru_cache
def settings_of(program):
    """The settings that this build of the program has."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"^  --([a-z-]+)", text, re.M))


async def wait_for(what, check, timeout_s, interval_s=0.01):
    """The first true value of check(), without holding up the loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        await asyncio.sleep(interval_s)
    return value


@dataclasses.dataclass
class Death:
    process: str
    at: float                 # time.monotonic()
    code: int                 # as Popen says: -9 is SIGKILL
    probe: str                # the probe that fired last in this run of it, or ""


LOG_LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z (\w+) (.*)$", re.M)


def log_times(process, pattern):
    """Times (s since the epoch, to the ms) of the lines in a process's log that match."""
    pattern = re.compile(pattern)
    return [calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")) + int(match[2]) / 1000
            for match in LOG_LINE.finditer(process.log()) if pattern.search(match[4])]


def probes_fired(process):
    return re.findall(r"^probe (\S+ \S+)$", process.log(), re.M)


class Fleet(Cluster):
    """proxy, via: an open proxy.Proxy, and who is reached through it: "worker-a", "router-1", "redis" (by all), "redis router-1" (by that one).
    hosts: network.Host by name of process, "redis" included. bins: folder of programs by name of process.
    on_death(process, death) is called by the supervisor; it may change the process before it comes back."""

    def __init__(self, directory, workers=4, routers=3, redis=True, simulate=PROFILE, supervise=True, restart_delay_s=0.3, hosts=None,
                 proxy=None, via=(), bins=None, worker_settings=None, router_settings=None, redis_options=(), static_workers=False):
        self.simulate, self.hosts, self.proxy, self.bins = simulate, hosts or {}, proxy, bins or {}
        self.via = {name: f"127.0.1.{i + 1}" for i, name in enumerate(via)}      # who is reached through the proxy, and where
        self.static_workers = static_workers   # routers know the workers by their settings as well, not only from Redis
        self.supervise, self.restart_delay_s = supervise, restart_delay_s
        self.expected_deaths = {0, -signal.SIGKILL}
        self.deaths, self.on_death, self.down = [], None, set()      # down: names that the supervisor leaves dead
        self.supervisor = None
        self.ports, self.endpoints = set(), {}
        super().__init__(directory, workers=workers, routers=routers, redis=redis, redis_port=free_port() if redis else None,
                         worker_settings=worker_settings, router_settings=router_settings, start=False)
        if self.redis:
            self.redis.command += [str(option) for option in redis_options]
            if "redis" in self.hosts:
                host = self.hosts["redis"]
                self.redis.host = host.address
                self.redis.command = host.command([*self.redis.command, "--bind", host.address, "--protected-mode", "no"])
        self.routers = [self._router(f"router-{i + 1}") for i in range(routers)]

    # ---- how they are made

    def port(self):
        while (port := free_port()) in self.ports:
            pass
        self.ports.add(port)
        return port

    def address(self, name):
        return self.hosts[name].address if name in self.hosts else "127.0.0.1"

    def _listen(self, name):
        """control, data and operator address of a process, the same over restarts."""
        if name not in self.endpoints:
            at = self.address(name)
            self.endpoints[name] = (f"tcp://{at}:{self.port()}", f"tcp://{at}:{self.port()}", f"{at}:{self.port()}")
        return self.endpoints[name]

    def _process(self, name, program, settings, ready):
        path = pathlib.Path(self.bins.get(name, BIN_DIR)) / program
        known = settings_of(path)
        if "simulate" in settings and "simulate" not in known:
            raise AssertionError(f"{path} cannot simulate")
        flags = self._flags({key: value for key, value in settings.items() if key.replace("_", "-") in known})
        command = [path, *flags]
        return Process(name, self.hosts[name].command(command) if name in self.hosts else command, self.directory, ready)

    def redis_address_of(self, name):
        """The way of one process to Redis: through a proxy of its own, that of all, or none."""
        host = self.via.get(f"redis {name}") or self.via.get("redis") or self.address("redis")
        return f"{host}:{self.redis.port}"

    def control_of(self, name):
        """The control endpoint of a process as the others reach it. A proxy has the same ports on another address of this host."""
        control = self._listen(name)[0]
        return control.replace("127.0.0.1", self.via[name]) if name in self.via else control

    async def _open_proxies(self):
        """Links "worker-a control", "worker-a data", "redis", "redis router-1"."""
        for name, host in self.via.items():
            if name.split()[0] == "redis":
                await self.proxy.listen(name, ["127.0.0.1", self.redis.port], [host, self.redis.port])
                continue
            for kind, endpoint in zip(("control", "data"), self._listen(name)):
                port = int(endpoint.rsplit(":", 1)[1])
                await self.proxy.listen(f"{name} {kind}", ["127.0.0.1", port], [host, port])

    def _worker(self, name, control=None, data=None):
        control, data, operator = self._listen(name)
        ready = self.directory / f"{name}.ready"
        settings = {"name": name, "listen_control": control, "listen_data": data, "listen_operator": operator, "model": MODEL_DIR,
                    "kv_mebibytes": 128, "redis_address": self.redis_address_of(name) if self.redis else "", "ready_file": ready,
                    "drain_deadline_ms": 20000, "sequences_max": SEQUENCES_MAX, "queue_requests_max": QUEUE_MAX,
                    "advertise": self.control_of(name), "allow_remote": "true", "placement_salt": self.placement_salt}
        if self.simulate:
            settings["simulate"] = self.simulate
        return self._process(name, "roost-worker", {**settings, **self.worker_settings, **self.worker_settings.get(name, {})}, ready)

    def _router(self, name):
        control, data, operator = self._listen(name)
        ready = self.directory / f"{name}.ready"
        settings = {"name": name, "listen_control": control, "listen_data": data, "listen_operator": operator,
                    "placement": "redis" if self.redis else "memory", "placement_salt": self.placement_salt, "ready_file": ready,
                    "drain_deadline_ms": 20000, "allow_remote": "true", **({"redis_address": self.redis_address_of(name)} if self.redis else {})}
        if self.static_workers or not self.redis:
            settings["workers"] = ",".join(self.control_of(worker.name) for worker in self.workers)
        return self._process(name, "roost-router", {**settings, **self.router_settings}, ready)

    # ---- start and end

    async def __aenter__(self):
        try:
            if self.via:
                await self._open_proxies()
            if self.redis:
                self.redis.start()
            await self.start_all(self.workers)
            await self.start_all(self.routers)
            for router in self.routers:       # it serves before it has found its workers
                await wait_for(f"{router.name} to find its workers", lambda: all(
                    f"worker {worker.name} is up" in router.log() for worker in self.workers), START_S)
            if self.supervise:
                self.supervisor = asyncio.ensure_future(self._supervise())
        except BaseException:
            self.close(check=False)
            raise
        return self

    async def __aexit__(self, kind, value, trace):
        if self.supervisor:
            self.supervisor.cancel()
            for process in (*self.workers, *self.routers):        # those that died since it last looked
                process.killed = process.killed or process.popen.poll() in self.expected_deaths
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self.close(check=kind is None))
        if kind is None:
            unexpected = [death for death in self.deaths if death.code not in self.expected_deaths]
            if unexpected:
                raise AssertionError(f"died: {unexpected}\n{self.logs()[-20000:]}")
        else:
            print(self.tails(), file=sys.stderr)

    def tails(self, lines=40):
        return "\n".join(f"---- {process.name}\n" + "\n".join(process.log().splitlines()[-lines:])
                         for process in self.processes() if process.popen)

    async def start_all(self, processes):
        for process in processes:
            process.start(wait=False)
        for process in processes:
            await self.ready(process)

    async def ready(self, process):
        def check():
            if process.popen.poll() is not None and not self.supervisor:
                raise AssertionError(f"{process.name} ended with {process.popen.returncode} before it was ready:\n{process.log()}")
            return not process.killed and process.is_ready()      # killed: the file is that of the one before
        await wait_for(f"{process.name} to be ready", check, START_S)
        if process.ready_file:
            process.ready = json.loads(process.ready_file.read_text())

    async def up(self, name):
        """Until every router has this worker (again)."""
        worker = self.worker(name)
        await self.ready(worker)
        for router in self.routers:
            if router.alive():
                await wait_for(f"{name} at {router.name}", lambda: self.sees(router, name), START_S)

    @staticmethod
    def sees(router, name):
        """The last thing that this router said about the worker is that it is up."""
        said = re.findall(rf"worker {name} is (up|lost|forgotten)", router.log())
        return bool(said) and said[-1] == "up"

    # ---- the supervisor

    async def _supervise(self):
        dead = {}                             # name: when it is started again
        while True:
            for process in (*self.workers, *self.routers):
                if process.popen is None or process.popen.poll() is None:
                    continue
                now = time.monotonic()
                if process.name not in dead:
                    fired = probes_fired(process)
                    death = Death(process.name, now, process.popen.returncode, fired[-1] if fired else "")
                    self.deaths.append(death)
                    dead[process.name] = now + self.restart_delay_s
                    process.killed = True     # it is accounted for: what must not be is checked at the end
                    if self.on_death:
                        self.on_death(process, death)
                elif now >= dead[process.name] and process.name not in self.down:
                    process.start(wait=False)
                    del dead[process.name]
            await asyncio.sleep(0.01)

    # ---- use

    def client(self, first=0, only=False, **options):
        """A client that goes to router number `first` while that serves, and then on through the others."""
        import roost
        endpoints = [self.control_of(router.name) for router in self.routers]
        return roost.Client([endpoints[first]] if only else endpoints[first:] + endpoints[:first], spread=False, **options)

    def clients(self):
        """One for each router, so that all of them have something to lose."""
        return [self.client(i) for i in range(len(self.routers))]

    def operator(self, process, path, method="GET", timeout_s=15 * SLOWER):
        """(status, text) of the operator port."""
        request = urllib.request.Request(f"http://{self.endpoints[process.name][2]}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self, process):
        """{"name" or 'name{label="x"}': value}"""
        status, text = self.operator(process, "/metrics")
        assert status == 200, text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def arm(self, process, probes):
        status, text = self.operator(process, "/probe?arm=" + urllib.parse.quote(probes), "POST")
        assert status == 200, f"{process.name}: {text}"

    def memory_kib(self, process):
        for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0
