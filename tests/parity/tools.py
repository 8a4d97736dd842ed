"""What the parity tests share: running the programs, reading logits, and comparing them."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

SOURCE_DIR = pathlib.Path(os.environ.get("ROOST_SOURCE_DIR") or pathlib.Path(__file__).resolve().parents[2])
BUILD_DIR = pathlib.Path(os.environ.get("ROOST_BUILD_DIR") or SOURCE_DIR / "build" / "dev")
GOLDEN_DIR = SOURCE_DIR / "tests" / "golden" / "parity"
MODEL_DIR = SOURCE_DIR / "deploy" / "models" / "folio"
MODEL_CONFIG = json.loads((MODEL_DIR / "config.json").read_text())

# With sanitizers everything takes ten times as long: fewer tokens and recipes then.
CACHE = BUILD_DIR / "CMakeCache.txt"
SANITIZED = CACHE.exists() and any(line.startswith("ROOST_SANITIZE:") and line.split("=", 1)[1] for line in CACHE.read_text().splitlines())

sys.dont_write_bytecode = True
sys.path.insert(0, str(GOLDEN_DIR))


def run(program, *arguments, check=True, text=None):
    """(exit code, stdout, stderr) of a program of the build folder, given text; with check, its failure is the test's."""
    done = subprocess.run([str(BUILD_DIR / program), *map(str, arguments)], input=text, capture_output=True, text=True, timeout=600)
    assert "runtime error:" not in done.stderr, done.stderr      # a sanitizer's, which does not end the program
    if check and done.returncode != 0:
        raise AssertionError(f"{program} {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.returncode, done.stdout, done.stderr


def convert(source, target, *options):
    run("bin/roost-convert", source, target, *options)
    return target


def forward(directory, ids, scratch, greedy=0):
    """(logits (rows, vocab), greedy ids): a row for each id, then for each greedy token but the last."""
    ids_path, logits_path = scratch / "ids", scratch / "logits"
    ids_path.write_text("\n".join(map(str, ids)))
    _, out, _ = run("tests/parity-forward", directory, ids_path, logits_path, greedy)
    rows = len(ids) + max(greedy - 1, 0)
    return np.fromfile(logits_path, "<f4").reshape(rows, -1), [int(word) for word in out.split()]


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def distance(reference, logits):
    """Over all positions: the largest and the mean distance of a logit, the mean KL in nats, the share of equal first tokens."""
    p, q = log_softmax(reference), log_softmax(logits)
    gap = np.abs(reference.astype(np.float64) - logits)
    return {
        "max": gap.max(), "mean": gap.mean(), "kl": (np.exp(p) * (p - q)).sum(axis=-1).mean(),
        "top1": (reference.argmax(-1) == logits.argmax(-1)).mean(),
    }
