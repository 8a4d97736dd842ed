"""From nothing to a reply on Debian's packages: a minute of training lowers the loss, an interrupted run goes on with the same bits, the export
is a model directory, and a worker serves it."""
import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import small_model
import test_bits
import tools

sys.path.insert(0, str(small_model.SOURCE_DIR / "tests" / "cluster"))
import cluster                                            # noqa: E402

TRAIN_DIR = small_model.SOURCE_DIR / "worker" / "train"
TOKENIZER = tools.MODEL_DIR / "tokenizer.model"
STEPS, SHORT_STEPS = (8, 6) if tools.SANITIZED else (100, 12)
UNIFORM = math.log(tools.MODEL_CONFIG["vocab_size"])      # the loss of knowing nothing: 8.3
LEARNT = 6.2                                              # 5.8 was measured; knowing how often each token is used comes to 6.4
TIMEOUT_S = 1000

SHAPE = {"--hidden": 64, "--inner": 128, "--layers": 4, "--heads": 2, "--head-dim": 32, "--window": 32, "--global-every": 2, "--context": 1024}
RECIPE = {"--batch-tokens": 1024, "--micro-tokens": 1024, "--length": 128, "--long-length": 512, "--long-from": 0.8}
LEARNING = SHAPE | RECIPE | {"--steps": STEPS, "--warm-up": 5, "--evaluate-every": STEPS // 2, "--dropout": 0}
SMALL = SHAPE | {"--hidden": 32, "--inner": 64, "--head-dim": 16}
INTERRUPTED = SMALL | RECIPE | {"--steps": SHORT_STEPS, "--warm-up": 2, "--evaluate-every": SHORT_STEPS // 2, "--long-from": 0.05}


def command(program, options):
    return [sys.executable, "-B", TRAIN_DIR / program, *(str(word) for pair in options.items() for word in pair)]


def run(program, options, check=True):
    done = subprocess.run(command(program, options), capture_output=True, text=True, timeout=TIMEOUT_S)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def train(folder, options, **more):
    return run("train.py", {"--tokenizer": TOKENIZER, "--run": folder, **options}, **more)


def losses(folder):
    with open(folder / "losses.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(one, other):
    """Whether two things that torch.load gave are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """(folder, standard output) of the run that learns."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    return folder, train(folder, LEARNING).stdout


@pytest.fixture(scope="module")
def exported(learnt, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "small"
    run("export.py", {"--run": learnt[0], "--tokenizer": TOKENIZER, "--out": out})
    return out


# ---- training ----


def test_loss_falls(learnt):
    folder, printed = learnt
    rows = losses(folder)
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert {int(row["row_length"]) for row in rows} == {128, 512}
    found = [float(row["dev_loss"]) for row in rows if row["dev_loss"]]
    first = float(rows[0]["train_loss"])
    print(f"\nloss: {first:.3f} at first (knowing nothing: {UNIFORM:.3f}); development: {' '.join(f'{loss:.3f}' for loss in found)}")
    assert abs(first - UNIFORM) < 0.1 and len(found) == 2
    assert found[1] < found[0] < UNIFORM
    assert tools.SANITIZED or found[1] < LEARNT
    best = torch.load(folder / "best.pt")
    assert best["step"] == STEPS and f"{best['dev_loss']:.5f}" == rows[-1]["dev_loss"]


def test_progress_is_shown(learnt):
    _, printed = learnt
    assert re.search(r"^\d+ parameters, int8 \(kernels\), step 0 of \d+$", printed, re.M)
    lines = re.findall(r"^step (\d+)/\d+ epoch [\d.]+ length \d+ loss [\d.]+ dev .*best .* [\d.]+ s/step ([\d.]+) min left$", printed, re.M)
    assert len(lines) >= 4 and [int(step) for step, _ in lines[:3]] == [1, 2, 3] and lines[-1] == (str(STEPS), "0.0")


def test_interrupted_run_ends_with_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, INTERRUPTED)
    for step in (1, 2):                                   # out of time after one step, twice
        printed = train(broken, INTERRUPTED | {"--minutes": 0}).stdout
        kept = torch.load(broken / "checkpoint.pt")
        assert f"step {step - 1} of {SHORT_STEPS}" in printed and len(losses(broken)) == step
        assert (kept["step"], kept["best"], kept["stale"]) == (step, math.inf, 0) and (broken / "best.pt").exists()
    shutil.copytree(broken, tmp_path / "before")
    while not kill_at_step(4, broken, INTERRUPTED):       # it had come to its end before it was killed
        shutil.rmtree(broken)
        shutil.copytree(tmp_path / "before", broken)
    assert torch.load(broken / "checkpoint.pt")["step"] == 2
    assert f"step 2 of {SHORT_STEPS}" in train(broken, INTERRUPTED).stdout
    for name in ("checkpoint.pt", "best.pt"):
        assert same(torch.load(broken / name), torch.load(whole / name)), name
    rows, wanted = losses(broken), losses(whole)
    assert all(rows[step].pop("dev_loss") and not wanted[step].pop("dev_loss") for step in (0, 1))      # a look out of turn
    assert rows == wanted and len(rows) == SHORT_STEPS
    assert "best development loss" in train(broken, INTERRUPTED).stdout                                 # nothing is left to do
    assert same(torch.load(broken / "checkpoint.pt"), torch.load(whole / "checkpoint.pt"))


def test_run_that_gets_no_better_stops(tmp_path):
    options = INTERRUPTED | {"--evaluate-every": 2, "--patience": 1, "--matrix-rate": 0, "--other-rate": 0}
    for _ in range(2):                                    # and stays where it stopped
        assert "best development loss" in train(tmp_path, options).stdout
        assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4 and torch.load(tmp_path / "best.pt")["step"] == 2


def kill_at_step(step, folder, options):
    """Starts a run and kills it once the log has the step; whether that was before its end."""
    running = subprocess.Popen(command("train.py", {"--tokenizer": TOKENIZER, "--run": folder, **options}),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(int(row["step"] or 0) >= step for row in losses(folder)):
            assert running.poll() in (None, 0) and time.monotonic() < deadline, "the run failed, or stands still"
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    return torch.load(folder / "checkpoint.pt")["step"] < int(options["--steps"])


def test_folder_of_other_arguments_is_refused(learnt):
    folder, _ = learnt
    before = (folder / "checkpoint.pt").stat()
    done = train(folder, LEARNING | {"--seed": 2}, check=False)
    assert done.returncode == 1 and "other arguments" in done.stderr and "new folder" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "checkpoint.pt").stat() == before


def test_export_of_nothing_is_refused(tmp_path):
    done = run("export.py", {"--run": tmp_path, "--tokenizer": TOKENIZER, "--out": tmp_path / "model"}, check=False)
    assert done.returncode == 1 and "best.pt" in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "model").exists()


# ---- the engine ----


def describe(directory):
    return json.loads(tools.run("bin/roost", "model", "describe", directory, "--json")[1])


def test_described_and_sealed(learnt, exported, tmp_path):
    found, best = describe(exported), torch.load(learnt[0] / "best.pt")
    assert found["parameters"] == sum(value.numel() for value in best["params"].values())
    assert [layer["kv_producer"] for layer in found["layers"]] == best["config"]["kv_producer"]
    tools.run("bin/roost", "model", "seal", exported)
    assert len(json.loads((exported / "known_answer.json").read_text())["logits_digest"]) == 64
    run("export.py", {"--run": learnt[0], "--tokenizer": TOKENIZER, "--out": tmp_path, "--kind": "float"})      # what roost-convert takes
    assert describe(tmp_path)["parameters"] == found["parameters"] and describe(tmp_path)["bytes"] == 4 * found["parameters"]


def test_engine_has_the_bits_of_the_training(learnt, exported):
    best, (scenes, _) = torch.load(learnt[0] / "best.pt"), test_bits.held_out_scenes(exported)
    assert len(test_bits.differing(exported, best["params"], best["config"], scenes[0][:200])) == 0


def test_engine_serves_it(exported, tmp_path):
    script = "What shall I swear by?\nIf my heart's dear love--\n"
    with cluster.Cluster(tmp_path, workers=1, redis=False, model=exported) as served:
        out = tools.run("bin/roost", "chat", "--router", served.routers[0].ready["control"], "--json", "--as", "ROMEO", "--with", "JULIET",
                        "--seed", "1", "--tokens-max", "24", text=script)[1]
    turns = [json.loads(line) for line in out.splitlines()]
    print("\n" + "\n".join(f"JULIET: {turn['text']}" for turn in turns))
    assert len(turns) == 2 and all(turn["error"] is None and turn["ids"] == turn["reply_tokens"] > 0 for turn in turns)
    assert turns[0]["text"].strip() and turns[1]["cached_tokens"] > 0
