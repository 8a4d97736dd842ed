"""Workers with `backend: cuda`, on an emulated GPU (tests/cuda_emulation): the same tokens as on a processor, words for what stops them,
health of the device as their operators and routers see it, and a device that fails: the worker ends, and its stream goes on elsewhere.

Emulation takes a millisecond where a GPU takes microseconds, so the model is as small as it can be, and random."""
import json
import subprocess
import time

import pytest

from cluster import BIN_DIR, BUILD_DIR, MODEL_CONFIG, SANITIZED, SLOWER, SOURCE_DIR, wait_until
from test_operator import OPERATOR, ask_json, metrics
from test_parallel import conversations, followers
from wire_client import Peer, router_peer, say

PLUGIN = BUILD_DIR / "lib" / "libroost_cuda_emulated.so"
CUDA = {"backend": "cuda", "backend_plugin": PLUGIN}
NVML_DIR = BUILD_DIR / "tests" / "nvml"   # libnvidia-ml.so.1: tests/unit/cuda/nvml
LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "kv_producer": [0, 1]}
MITE = {**MODEL_CONFIG, **LAYERS, "name": "mite", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
        "sliding_window": 32, "max_position_embeddings": 4096}
LONG = {"seed": 1, "temperature": 2.0}    # mite does not end by itself for 1,500 tokens, and says 150 different ones
LONG_TOKENS = 150 if SANITIZED else 600
POISON_LAUNCH = 3000                      # of mite: behind the known answer, far before LONG_TOKENS


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60 * SLOWER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def mite(tmp_path_factory):
    """A sealed model directory: a worker computes its known answer before it serves."""
    directory = tmp_path_factory.mktemp("mite")
    (directory / "shape.json").write_text(json.dumps(MITE))
    run(BIN_DIR / "roost-convert", "--random", directory / "shape.json", directory / "model", "--quiet")
    run(BIN_DIR / "roost", "model", "seal", directory / "model")
    return directory / "model"


def alone(new_cluster, model, settings=None, environment=None, start=True):
    """One worker without a router."""
    cluster = new_cluster(workers=1, routers=0, redis=False, model=model, worker_settings=settings or {}, start=False)
    worker = cluster.workers[0]
    worker.environment.update(environment or {})
    worker.start(wait=start)
    return worker


def long_stream(client, head, **body):
    return client.start([say("Speak.")], {**head, "seed": LONG["seed"], "seed_given": True}, temperature=LONG["temperature"], **body)


# ---- bits

@pytest.mark.parametrize("settings", ({}, {"kv_mebibytes": 4, "kv_host_mebibytes": 2, "sequences_max": 2, "chunk_tokens": 48}),
                         ids=("roomy", "pressed"))
def test_same_tokens(new_cluster, mite, settings):
    said = []
    for backend in ({}, CUDA):
        worker = alone(new_cluster, mite, {**settings, **backend})
        started = time.monotonic()
        replies, cached = conversations(worker, 3)
        said.append(replies)
        assert cached > 0
        print(f"{backend.get('backend', 'cpu')}: {time.monotonic() - started:.2f} s, {cached} tokens from the cache")
    assert len(said[0]) == 9 and said[0] == said[1]           # ids, texts, and the numerics id: replies may go on from one to the other


@pytest.mark.skipif(SANITIZED, reason="the same code as in the tests above, three times as slow")
def test_ranks(new_cluster, mite):
    """Two ranks, each on a GPU of its own; KV of a conversation lies on one of them. Waiting ranks spin, so little is said."""
    said = []
    for settings, environment in (({}, {}), ({**CUDA, "tp": 2, "tp_step_ms_min": 60000}, {"ROOST_EMULATION_DEVICES": "2"})):
        worker = alone(new_cluster, mite, settings, environment)
        assert len(followers(worker)) == (1 if settings else 0)
        started = time.monotonic()
        with router_peer(worker) as peer:
            replies = [peer.generate([say("Speak.")], {"conversation": f"talk-{i}", "seed": i, "seed_given": True}, tokens_max=4,
                                     temperature=2.0 * i) for i in range(3)]
        print(f"{time.monotonic() - started:.2f} s")
        said.append([(reply.ids, reply.text, reply.done.numerics_id) for reply in replies])
    assert said[0] == said[1]


# ---- words

REFUSALS = {
    "no driver": ({**CUDA}, {"ROOST_EMULATION_DEVICES": "0"}, "no NVIDIA driver", "or set backend: cpu"),
    "old card": ({**CUDA}, {"ROOST_EMULATION_CAPABILITY": "7.5"}, "emulated GPU 0 has compute capability 7.5, and 8.0 is wanted",
                 "take a newer GPU, or set backend: cpu"),
    "small card": ({**CUDA, "kv_mebibytes": 64}, {"ROOST_EMULATION_MEMORY": str(32 << 20)}, "the KV cache: 64 MiB wanted, and the GPU has",
                   "of 32 MiB left: lower kv_mebibytes"),
    "tiny card": ({**CUDA}, {"ROOST_EMULATION_MEMORY": str(64 << 10)}, "MiB wanted, and the GPU has", "or take a larger GPU"),
    "fails at create": ({**CUDA}, {"ROOST_EMULATION_POISON": "5"}, "CUDA: tiling weights: ", "cudaErrorIllegalAddress"),
    "fails at once": ({**CUDA}, {"ROOST_EMULATION_POISON": "60"}, "the GPU is lost: ", "an illegal memory access"),
    "refuses": ({**CUDA}, {"ROOST_EMULATION_REFUSE": "60"}, "the GPU is lost: ", ""),
    "too few cards": ({**CUDA, "tp": 2}, {}, "2 ranks want a GPU each, and 1 can be seen: lower tp", "over: "),
    "no plugin": ({**CUDA, "backend_plugin": "/nowhere/libroost_cuda.so"}, {}, "/nowhere/libroost_cuda.so: No such file", ""),
    "no library": ({**CUDA, "backend_plugin": "/proc/self/status"}, {}, "not a shared library: name libroost_cuda.so", ""),
    "simulated": ({**CUDA, "simulate": "fast"}, {}, "simulate: nothing is computed, so backend: cuda cannot be kept", ""),
    "unknown": ({"backend": "gpu"}, {}, "backend", "cpu"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(new_cluster, mite, case):
    settings, environment, words, more = REFUSALS[case]
    worker = alone(new_cluster, mite, settings, environment, start=False)
    assert worker.wait_exit() in (1, 2)
    worker.killed = True
    assert words in worker.log() and more in worker.log(), worker.log()
    assert not worker.ready_file.exists()


def test_the_shipped_plugin(new_cluster, mite):
    """Found beside the program, and opened; there is no driver where this runs. Without the CUDA toolkit it was not built."""
    worker = alone(new_cluster, mite, {"backend": "cuda"}, start=False)
    worker.killed = True
    if (BUILD_DIR / "lib" / "libroost_cuda.so").exists():
        assert "backend: cuda, from " in worker_log_at_end(worker)
        if worker.popen.returncode == 1:
            assert "no NVIDIA driver" in worker.log() or "no GPU is to be seen" in worker.log()
    else:
        assert "there is no libroost_cuda.so (looked for " in worker_log_at_end(worker)


def worker_log_at_end(worker):
    wait_until("the worker to be ready, or gone", lambda: not worker.alive() or worker.is_ready(), 30 * SLOWER)
    return worker.log()


# ---- health

def bus(device):
    return f"0000:{device + 1:02}:00.0"


def write_nvml(path, *others, **more):
    """What the driver's library says of GPU 0, and in what of the others."""
    values = {"memory_total": 80 << 30, "memory_used": 61 << 30, "sm_mhz": 1980, "memory_mhz": 2619, "celsius": 71, "milliwatts": 612500,
              "busy_percent": 97, "ecc_corrected": 12, "ecc_uncorrected": 0, "throttle_reasons": 4}
    beside = path.with_suffix(".new")
    beside.write_text("".join(f"{word} {value}\n" for device, one in enumerate((more, *others))
                              for word, value in {"bus": bus(device), **values, **one}.items()))
    beside.rename(path)


def gpu_samples(device, values):
    return {f'roost_worker_gpu_{name}{{device="emulated GPU {device} at {bus(device)}"}}': value for name, value in values.items()}


def test_health(new_cluster, mite, tmp_path):
    nvml = tmp_path / "nvml"
    write_nvml(nvml)
    cluster = new_cluster(workers=2, redis=False, model=mite, worker_settings=OPERATOR, router_settings=OPERATOR, start=False)
    cluster.worker_settings = {**OPERATOR, **CUDA}
    cluster.workers[0] = cluster._worker("worker-a")
    cluster.workers[0].environment.update({"LD_LIBRARY_PATH": str(NVML_DIR), "ROOST_TEST_NVML": str(nvml)})
    cluster.start()
    gpu, cpu = cluster.workers

    def device(name):
        _, answer = ask_json(cluster.routers[0], "/workers")
        return next(worker for worker in answer["workers"] if worker["name"] == name)["load"]["device"]
    expected = {"memory_bytes": 80 << 30, "memory_used_bytes": 61 << 30, "ecc_uncorrected": 0, "sm_mhz": 1980, "memory_mhz": 2619,
                "throttle_reasons": 4}
    wait_until("the router to know the device", lambda: device("worker-a") == expected, 10 * SLOWER)
    assert device("worker-b") is None
    families, samples = metrics(gpu)
    assert {name: value for name, value in samples.items() if "_gpu_" in name} == gpu_samples(0, {
        "memory_bytes": 80 << 30, "memory_used_bytes": 61 << 30, "sm_clock_hertz": 1.98e9, "memory_clock_hertz": 2.619e9, "busy_ratio": 0.97,
        "temperature_celsius": 71, "power_watts": 612.5, "throttle_reasons": 4, "ecc_corrected_total": 12, "ecc_uncorrected_total": 0})
    cpu_families, cpu_samples = metrics(cpu)
    assert cpu_families == families and not any("_gpu_" in name for name in cpu_samples)

    # A change is seen, as soon as it is asked for again.
    write_nvml(nvml, ecc_uncorrected=3, sm_mhz=345, throttle_reasons=64)
    wait_until("the change", lambda: device("worker-a") == {**expected, "ecc_uncorrected": 3, "sm_mhz": 345, "throttle_reasons": 64},
               10 * SLOWER)

    # A driver that takes 10 s to answer delays nobody: requests are served, the ports answer. At the end it is waited for.
    slow_s = 15 if SANITIZED else 10
    write_nvml(nvml, wait_ms=1000 * slow_s)
    time.sleep(1.2)                       # the next question is under way
    with router_peer(gpu) as peer:
        started = time.monotonic()
        assert len(peer.generate([say("Speak.")], tokens_max=8, temperature=0.0).ids) == 8
        assert gpu_samples(0, {"sm_clock_hertz": 345e6}).items() <= metrics(gpu)[1].items()
        assert time.monotonic() - started < 0.6 * slow_s
    write_nvml(nvml)


def test_health_of_all_ranks(new_cluster, mite, tmp_path):
    nvml = tmp_path / "nvml"
    write_nvml(nvml, {"memory_used": 3 << 30, "sm_mhz": 1200, "ecc_uncorrected": 2, "throttle_reasons": 64}, sm_mhz=1500, ecc_uncorrected=1)
    cluster = new_cluster(workers=1, redis=False, model=mite, worker_settings={**OPERATOR, **CUDA, "tp": 2, "tp_step_ms_min": 60000},
                          router_settings=OPERATOR, start=False)
    worker = cluster.workers[0]
    worker.environment.update({"LD_LIBRARY_PATH": str(NVML_DIR), "ROOST_TEST_NVML": str(nvml), "ROOST_EMULATION_DEVICES": "2"})
    cluster.start()
    wait_until("the router to know the devices", lambda: ask_json(cluster.routers[0], "/workers")[1]["workers"][0]["load"]["device"] == {
        "memory_bytes": 160 << 30, "memory_used_bytes": 64 << 30, "ecc_uncorrected": 3, "sm_mhz": 1200, "memory_mhz": 2619,
        "throttle_reasons": 68}, 10 * SLOWER)
    assert {**gpu_samples(0, {"memory_used_bytes": 61 << 30, "sm_clock_hertz": 1.5e9, "ecc_uncorrected_total": 1}),
            **gpu_samples(1, {"memory_used_bytes": 3 << 30, "sm_clock_hertz": 1.2e9, "ecc_uncorrected_total": 2})
            }.items() <= metrics(worker)[1].items()


def test_no_driver_library(new_cluster, mite):
    """Without NVML the device is known by what the runtime says, and it serves."""
    worker = alone(new_cluster, mite, {**CUDA, **OPERATOR})
    assert "the GPU's health is not known: no libnvidia-ml.so.1" in worker.log()
    wait_until("the first answer", lambda: any("_gpu_" in name for name in metrics(worker)[1]), 10 * SLOWER)
    assert {name: value for name, value in metrics(worker)[1].items() if "_gpu_" in name} == gpu_samples(
        0, {"memory_bytes": 4 << 30})


# ---- a device that fails

@pytest.fixture
def mixed(new_cluster, mite):
    """worker-a computes on a GPU that fails, worker-b on its processor."""
    cluster = new_cluster(workers=2, model=mite, worker_settings=OPERATOR, start=False)
    cluster.worker_settings = CUDA
    cluster.workers[0] = cluster._worker("worker-a")
    cluster.workers[0].environment["ROOST_EMULATION_POISON"] = str(POISON_LAUNCH)
    cluster.start()
    return cluster


def test_poisoned_device(mixed):
    worker = mixed.worker("worker-a")
    with Peer(mixed.routers[0].ready["control"]) as client:
        names = (f"stream-{i}" for i in range(100))
        # Conversations stay where they are: the first that worker-a takes.
        name = next(name for name in names if client.generate([say("Speak.")], {"conversation": name}, tokens_max=1).worker == "worker-a")
        request = long_stream(client, {"conversation": name}, tokens_max=LONG_TOKENS)
        client.pump(lambda: len(request.ids) > 10 or request.ended, 30 * SLOWER, "some tokens")
        worker.killed = True
        client.pump(lambda: not worker.alive(), 60 * SLOWER, "the worker to end")
        client.wait(request)
        assert metrics(mixed.worker("worker-b"))[1]["roost_worker_resumed_total"] == 1, "the device failed too late for this test"
        assert request.code == "OK" and len(request.ids) == LONG_TOKENS
        assert request.worker == "worker-b"
        assert worker.popen.returncode == 1
        assert "the GPU is lost: " in worker.log() and "cudaErrorIllegalAddress" in worker.log()
        undisturbed = client.wait(long_stream(client, {"conversation": "again"}, tokens_max=LONG_TOKENS))
        assert (undisturbed.ids, undisturbed.text) == (request.ids, request.text)
        assert undisturbed.done.numerics_id == request.done.numerics_id
        # As its supervisor would: another process, whose context is whole.
        mixed.worker_settings = CUDA
        mixed.restart(worker)
        wait_until("it to serve again", lambda: any(
            client.generate([say("Speak.")], {"conversation": f"back-{time.monotonic()}"}, tokens_max=1).worker == "worker-a"
            for _ in range(4)), 60 * SLOWER)
