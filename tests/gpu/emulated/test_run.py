"""tests/gpu/run and gpu-bench without a GPU: what they say, that a check that fails is told and written down, and that the files are whole. gpu-bench
runs on the emulated device with tiny shapes; the tests of kernels, which run elsewhere (label emulation), are stood in for by one-line programs."""
import json
import math
import os
import pathlib
import stat
import subprocess

import pytest

SOURCE, BUILD = (pathlib.Path(os.environ[name]) for name in ("ROOST_SOURCE_DIR", "ROOST_BUILD_DIR"))
RUN, BENCH = SOURCE / "tests/gpu/run", BUILD / "tests/gpu-bench-emulated"
KERNELS = ["attention", "attention_plan", "embed", "gate", "gemm", "norm", "page", "qkv", "quantize", "rope", "sample"]
GROUPS = {"ceilings", "matrices", "attention", "rows", "steps", "tiers"}
NAME = "gpu-emulated-gpu-0"


def run(*command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100, **more)


def script(path, text):
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(name="programs")
def make_programs(tmp_path):
    """A folder with what tests/gpu/run builds."""
    script(tmp_path / "gpu-bench", f'exec {BENCH} "$@" --tiny')
    for name in [f"{kernel}_test" for kernel in KERNELS] + ["conformance", "backend_cuda_test", "backend_matrix_test", "kv_cuda_test"]:
        script(tmp_path / name, "exit 0")
    (tmp_path / "out").mkdir()
    return tmp_path


def run_script(programs, *arguments):
    return run(RUN, "--programs", programs, "--out", programs / "out", "--quick", *arguments)


def no_constant(word):
    raise ValueError(f"{word} is no JSON")


def read(programs):
    text = (programs / "out" / f"{NAME}.json").read_text()
    return json.loads(text, parse_constant=no_constant), (programs / "out" / f"{NAME}.md").read_text()


def test_without_a_gpu_it_is_skipped():
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    done = run(RUN)
    assert done.returncode == 77 and done.stdout.startswith("skipped: no GPU")


def test_a_device_that_cuda_does_not_see_is_skipped(programs):
    done = run(RUN, "--programs", programs, env={**os.environ, "ROOST_EMULATION_DEVICES": "0"})
    assert done.returncode == 77 and "skipped: no GPU" in done.stdout


def test_wrong_use():
    assert run(RUN, "--only", "nonsense").returncode == 2
    assert run(RUN, "--nonsense").returncode == 2
    assert run(RUN, "--out", "/nonexistent").returncode == 2
    assert run(BENCH, "--repeats", "0").returncode == 2


def test_files_are_whole(programs):
    done = run_script(programs)
    assert done.returncode == 0, done.stdout + done.stderr
    report, tables = read(programs)
    assert report["checks_failed"] == 0 and report["benchmarks_failed"] == 0
    assert [check["name"] for check in report["checks"]] == ["conformance", *KERNELS, "equality", "equality matrix", "kv cache", "sanitizers"]
    assert all(check["words"] == "" for check in report["checks"][:-1]) and report["checks"][-1]["words"] == "--quick"
    assert report["read_gigabytes_per_second"] > 0 and report["multiply_tops"] > 0
    results = report["results"]
    assert {result["group"] for result in results} == GROUPS
    assert len({(result["group"], result["name"]) for result in results}) == len(results)
    for result in results:
        assert result["microseconds"] > 0, result
        assert "note" not in result, result
        for amount, rate, scale in (("bytes", "gigabytes_per_second", 1e-3), ("ops", "tops", 1e-6)):
            if result[amount] > 0:
                assert math.isclose(result[rate], result[amount] / result["microseconds"] * scale, rel_tol=1e-4)
            else:
                assert result[rate] is None
        assert result["name"] in tables
    for word in ("decode, 1 of", "skewed", "prompt of", "window"):
        assert any(result["group"] == "attention" and word in result["name"] for result in results)
    for word in ("on a miss", "on a hit", "decode step, 1 of", "decode step, 3 of"):
        assert any(result["group"] == "steps" and word in result["name"] for result in results)
    assert all(result["peer_microseconds"] > 0 for result in results if result["group"] == "tiers")
    assert "0 of 16 failed" in tables and "cuBLASLt" in tables and "PyTorch" in tables


def test_a_check_that_fails_is_told_and_written_and_the_benchmarks_run(programs):
    script(programs / "norm_test", 'echo "FAILED \\"norms\\""; exit 1')
    script(programs / "conformance", "exit 1")
    done = run_script(programs)
    assert done.returncode == 1
    assert "FAILED  norm" in done.stdout and "checks that failed: conformance norm" in done.stdout
    assert "> tests/gpu/conformance/expected.txt" in done.stdout       # how it is taken over
    report, tables = read(programs)
    assert report["checks_failed"] == 2 and len(report["results"]) > 0
    words = {check["name"]: check["words"] for check in report["checks"] if check["status"] == "failed"}
    assert words["norm"] == 'FAILED "norms"' and set(words) == {"conformance", "norm"}
    assert "**2 of 16 failed.**" in tables


def test_stop_ends_at_the_first_failure(programs):
    script(programs / "embed_test", "exit 1")
    script(programs / "gate_test", f"touch {programs}/gate-ran")
    assert run_script(programs, "--stop").returncode == 1
    report, tables = read(programs)
    assert report["checks_failed"] == 1 and report["results"] == [] and not (programs / "gate-ran").exists()
    assert "## Benchmarks\n\nNot run." in tables


def test_only(programs):
    assert run_script(programs, "--only", "checks").returncode == 0
    report, _ = read(programs)
    assert report["results"] == [] and len(report["checks"]) == 16
    script(programs / "norm_test", "exit 1")
    assert run_script(programs, "--only", "bench").returncode == 0
    report, tables = read(programs)
    assert report["checks"] == [] and len(report["results"]) > 0 and "## Checks\n\nNot run." in tables


def test_a_benchmark_that_fails_is_written_and_counts(programs):
    done = run(BENCH, "--tiny", "--out", programs / "out", env={**os.environ, "ROOST_EMULATION_REFUSE": "3"})
    assert done.returncode == 1
    report, _ = read(programs)
    missing = [result for result in report["results"] if result["microseconds"] is None]
    assert len(missing) == 1 and missing[0]["note"] and report["benchmarks_failed"] >= 1


def test_what_pytorch_took_stands_beside(programs):
    times = programs / "times"
    times.write_text("decode, 1 of 70, 4 over 1 of 32\t12.5\ndecode, 1 of 70\t99\n")
    assert run(BENCH, "--tiny", "--out", programs / "out", "--torch", times).returncode == 0
    peers = {result["name"]: result["peer_microseconds"] for result in read(programs)[0]["results"] if result["group"] == "attention"}
    assert peers["decode, 1 of 70, 4 over 1 of 32"] == 12.5 and peers["decode, 1 of 130, 4 over 1 of 32"] is None


def test_expected_numbers_are_those_of_the_page():
    done = run(BENCH, "--expected", "H200")
    assert done.returncode == 0
    page = (SOURCE / "docs/performance/gpu.md").read_text()
    for line in done.stdout.splitlines():
        if line.startswith("| ") and not line.startswith(("| ---", "| case")):
            assert line in page, "tests/gpu/README.md says how the page gets them"
    assert run(BENCH, "--expected", "nothing").returncode == 2
