"""What goes wrong on purpose. Each fault writes into the history when it fired and how many requests were open then."""
import asyncio
import contextlib
import pathlib
import signal
import statistics
import time

from fleet import log_times, wait_for


class Faults:
    def __init__(self, fleet, history):
        self.fleet, self.history = fleet, history
        fleet.on_death = self.died

    def fired(self, what):
        open_now = len(self.history.in_flight())
        event = self.history.add("fault", what=what, in_flight=open_now)
        print(f"  {event['at']:7.3f} s  {what}, {open_now} requests open", flush=True)
        return event

    def died(self, process, death):
        if death.probe and death.code != 0:
            self.fired(f"{process.name} died of {signal.Signals(-death.code).name} at {death.probe}")

    # ---- processes

    def kill(self, process):
        event = self.fired(f"kill -9 {process.name}")
        process.killed = True
        process.popen.send_signal(signal.SIGKILL)
        return event

    async def stop(self, process, seconds):
        """SIGSTOP, and SIGCONT after so long."""
        process.popen.send_signal(signal.SIGSTOP)
        event = self.fired(f"stop {process.name} for {seconds} s")
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGCONT)
        return event

    def terminate(self, process):
        event = self.fired(f"SIGTERM {process.name}")
        process.popen.send_signal(signal.SIGTERM)
        return event

    async def arm(self, process, probes):
        """Arms probes in a running process; they fire when their place is passed."""
        await self.off_loop(self.fleet.arm, process, probes)

    async def slow(self, worker, factor):
        """Every step of a simulated worker takes so many times as long."""
        status, text = await self.off_loop(self.fleet.operator, worker, f"/simulate?factor={factor}", "POST")
        assert status == 200, f"{worker.name}: {text}"
        return self.fired(f"{worker.name} takes {factor} times as long")

    @contextlib.asynccontextmanager
    async def quota(self, process, share):
        """So much of one core and not more, through a control group; pytest.skip's reason is for the caller: OSError where there is none."""
        group = pathlib.Path("/sys/fs/cgroup/cpu") / f"roost-chaos-{process.pid}"
        group.mkdir()
        try:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(max(1000, int(share * 100000))))
            (group / "cgroup.procs").write_text(str(process.pid))
            yield self.fired(f"{process.name} gets {share} of a core")
        finally:
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(str(process.pid))
            for _ in range(100):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                await asyncio.sleep(0.01)

    @staticmethod
    async def off_loop(function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    async def redis(self, *words):
        return await self.off_loop(self.fleet.redis.call, *words)

    # ---- what it took

    def detected_s(self, event, worker):
        """Per router that said so: s from the fault until it gave the worker up."""
        at = self.history.started_wall + event["at"]
        found = []
        for router in self.fleet.routers:
            times = [seen - at for seen in log_times(router, rf"worker {worker} is lost") if seen >= at - 0.002]
            if times:
                found.append(max(0.0, min(times)))
        return found

    def resumed_s(self, event, conversations, within_s=20.0):
        """Per request of these conversations that was open then: from the fault until tokens came again (the end of its longest silence)."""
        at, resumed = event["at"], []
        for request in self.history.requests.values():
            if request.invoke["request"].get("conversation") not in conversations:
                continue
            times = [request.invoke["at"], *(tokens["at"] for tokens in request.tokens), *(end["at"] for end in request.ends[:1])]
            if not times[0] <= at <= times[-1]:
                continue
            gaps = [(after - max(before, at), after - at) for before, after in zip(times, times[1:]) if at < after and before < at + within_s]
            if gaps:
                resumed.append(max(gaps)[1])
        return resumed


def spread(values, unit=1e3, word="ms"):
    if not values:
        return "none seen"
    return f"{statistics.median(values) * unit:.0f} {word} median, {max(values) * unit:.0f} {word} most ({len(values)})"
