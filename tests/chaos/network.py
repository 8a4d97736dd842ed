"""Hosts as network namespaces: each has an address of its own on one switch, and links between any two can be cut, one way or both, or made bad.

  async with Network() as network:
      host = await network.host("router-1")             # host.address; host.command([...]) runs a program there
      await host.cut(other, "both" | "to" | "from")     # drops in the kernel (nft): nothing is reset, bytes vanish
      await host.lose(0.2)                              # of all that it receives
      await host.heal()

The calling thread itself moves into a namespace that holds the switch, so that everything vanishes with the last process in it, also if the
tests are killed: nothing is made that has a name outside. Needs the right to make namespaces, ip and nft; unavailable() says what is missing.
"""
import asyncio
import ctypes
import functools
import os
import shutil
import subprocess

CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0."
LIBC = ctypes.CDLL(None, use_errno=True)


@functools.lru_cache
def unavailable():
    """Why there can be no namespaces here, or None."""
    for program in ("ip", "nft", "unshare", "nsenter"):
        if not shutil.which(program):
            return f"{program} is not installed (packages iproute2, nftables, util-linux)"
    script = ("ip link set lo up && ip link add probe0 type veth peer name probe1 && ip link add probe2 type bridge && "
              "nft 'add table inet probe; add chain inet probe in { type filter hook input priority 0; }; "
              "add rule inet probe in iifname probe0 numgen random mod 1000 < 5 counter drop'")
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True)
    return None if done.returncode == 0 else f"network namespaces or nft do not work here: {done.stderr.strip()}"


async def _run(*command):
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise OSError(f"{' '.join(command)}: {output.decode(errors='replace').strip()}")


class Host:
    def __init__(self, network, name, number):
        self.network, self.name, self.number = network, name, number
        self.address = f"{SUBNET}{number}"
        self.holder = None                    # the process that keeps the namespace

    async def make(self):
        self.holder = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity")
        own = os.readlink("/proc/self/task/%d/ns/net" % LIBC.gettid())
        path = f"/proc/{self.holder.pid}/ns/net"
        for _ in range(1000):                 # unshare has not run yet
            if os.readlink(path) != own and open(f"/proc/{self.holder.pid}/comm").read().strip() == "sleep":
                break
            await asyncio.sleep(0.005)
        else:
            raise OSError(f"no namespace for {self.name}")
        inner = f"ve{self.number}"
        await _run("ip", "link", "add", inner, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
        await _run("ip", "link", "set", inner, "master", "switch0", "up")
        await _run(*self.command(["sh", "-c", f"ip link set lo up && ip addr add {self.address}/24 dev eth0 && ip link set eth0 up && "
                                  "nft 'add table inet fault; add chain inet fault in { type filter hook input priority 0; }; "
                                  "add chain inet fault out { type filter hook output priority 0; }'"]))

    def command(self, command):
        """The same command line, run on this host. nsenter becomes the program: the pid stays."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *[str(part) for part in command]]

    async def nft(self, rule):
        await _run(*self.command(["nft", rule]))

    async def cut(self, other, way="both"):
        """to: what this host sends to the other vanishes. from: what the other sends. other: a Host or an address."""
        address = getattr(other, "address", other)
        if way in ("both", "to"):
            await self.nft(f"add rule inet fault out ip daddr {address} counter drop")
        if way in ("both", "from"):
            await self.nft(f"add rule inet fault in ip saddr {address} counter drop")

    async def lose(self, share):
        """So much of all packets that come here, by chance."""
        await self.nft(f"add rule inet fault in iifname eth0 numgen random mod 1000 < {int(share * 1000)} counter drop")

    async def slow(self, bits_per_s):
        """What it sends, through a token bucket. OSError where the kernel has no tbf."""
        await _run(*self.command(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{bits_per_s}bit", "burst", "16kb",
                                  "latency", "400ms"]))

    async def dropped(self):
        """Packets that the faults dropped, to show that they fired. Read it before heal()."""
        process = await asyncio.create_subprocess_exec(*self.command(["nft", "list", "table", "inet", "fault"]),
                                                       stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        words = output.decode().split()
        return sum(int(words[i + 1]) for i, word in enumerate(words) if word == "packets")

    async def heal(self):
        await self.nft("flush chain inet fault in; flush chain inet fault out")

    async def full_speed(self):
        await _run(*self.command(["tc", "qdisc", "del", "dev", "eth0", "root"]))


class Network:
    """The calling thread is in the switch's namespace from __aenter__ to __aexit__, and with it what it starts."""

    def __init__(self):
        self.hosts, self.before = {}, None
        self.address = f"{SUBNET}1"           # of the switch: where the tests and their clients are

    async def __aenter__(self):
        self.before = os.open("/proc/self/task/%d/ns/net" % LIBC.gettid(), os.O_RDONLY | os.O_CLOEXEC)
        if LIBC.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            await _run("ip", "link", "set", "lo", "up")
            await _run("ip", "link", "add", "switch0", "type", "bridge")
            await _run("ip", "addr", "add", f"{self.address}/24", "dev", "switch0")
            await _run("ip", "link", "set", "switch0", "up")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        for host in self.hosts.values():
            if host.holder and host.holder.returncode is None:
                host.holder.kill()
                await host.holder.wait()
        if LIBC.setns(self.before, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(self.before)

    async def host(self, name):
        host = Host(self, name, 10 + len(self.hosts))
        self.hosts[name] = host
        await host.make()
        return host
