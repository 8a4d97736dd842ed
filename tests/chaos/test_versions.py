"""F29: the previous release and this one side by side, and a rolling restart of everything under load. The previous release cannot simulate, so its
workers serve the shipped model."""
import asyncio
import subprocess
import time

import pytest

from cluster import BUILD_DIR, SLOWER, SOURCE_DIR
from fleet import wait_for
from scene import play

PREVIOUS = BUILD_DIR / "previous"


@pytest.fixture(scope="module")
def previous():
    done = subprocess.run([SOURCE_DIR / "tests" / "chaos" / "build_previous", PREVIOUS], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return PREVIOUS / "bin"


async def replace(scene, process, bins):
    """SIGTERM, and the same place taken by another version."""
    fleet = scene.fleet
    fleet.down.add(process.name)
    deaths = len(fleet.deaths)
    scene.faults.terminate(process)
    await wait_for(f"{process.name} to leave", lambda: len(fleet.deaths) > deaths, 30 * SLOWER)
    assert fleet.deaths[-1].code == 0
    if bins:
        fleet.bins[process.name] = bins
    else:
        fleet.bins.pop(process.name, None)
    again = fleet._worker(process.name) if process in fleet.workers else fleet._router(process.name)
    process.command = again.command
    fleet.down.discard(process.name)
    await asyncio.sleep(0.05)
    await fleet.ready(process)
    if process in fleet.workers:
        await fleet.up(process.name)
    await scene.load.run_for(1)


def test_f29_rolling_restart(tmp_path, previous):
    """All old; each process becomes new, one after the other, routers and workers in turn; then back to the old one, as after a bad upgrade."""
    async def story(scene):
        fleet = scene.fleet
        order = [fleet.workers[0], fleet.routers[0], fleet.workers[1], fleet.routers[1]]
        for process in order:
            await replace(scene, process, None)
        for process in order:
            await replace(scene, process, previous)
    names = ("worker-a", "worker-b", "router-1", "router-2")
    scene, verdict = play(tmp_path, story, simulate=None, workers=2, routers=2, bins={name: previous for name in names},
                          load={"tokens": (32, 96), "full": True, "turns_max": 6})
    assert verdict.done == verdict.sent


@pytest.mark.parametrize("old", (("router-1",), ("worker-a",)), ids=("old router", "old worker"))
def test_f29_mixed(tmp_path, previous, old):
    """One of the previous release among new ones: what it cannot do is not asked of it."""
    async def story(scene):
        await scene.load.run_for(8)
        newer = [process for process in (*scene.fleet.routers, *scene.fleet.workers) if process.name not in old]
        await replace(scene, newer[-1], None)
        await scene.load.run_for(2)
    scene, verdict = play(tmp_path, story, simulate=None, workers=2, routers=2, bins={name: previous for name in old},
                          load={"tokens": (32, 96), "full": True, "turns_max": 6})
    assert verdict.done == verdict.sent


def test_f29_rolling_restart_simulated(tmp_path):
    """Every process of this release is restarted in turn, under the full load."""
    async def story(scene):
        for process in (*scene.fleet.workers, *scene.fleet.routers):
            await replace(scene, process, None)
    scene, verdict = play(tmp_path, story)
    assert verdict.done == verdict.sent
