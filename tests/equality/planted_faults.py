#!/usr/bin/env python3
"""Shows that the equality matrix can fail: changes one thing of the arithmetic at a time, in a copy of the tree, and runs a part of the matrix.

  tests/equality/planted_faults.py [--family small] [--only WORDS]

Each fault must make rows differ (or the run end otherwise); without one every row agrees. The check of the kernels at start, which would
notice most of these faults before the matrix runs, is taken out of the copy. Takes about a minute a fault. Exit code 0: all were noticed.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_CHECK = [("kernels/isa.c", "    if (kernels_check(chosen) != STATUS_OK) {", "    if (0) {"),
               ("kernels/isa.c", "TRY(kernels_check(chosen));", "")]
FAULTS = [
    ("one order of a reduction: the lanes of RMSNorm from left to right", "kernels/ref/norm.c",
     "    for (size_t distance = LANES / 2; distance > 0; distance /= 2)\n        for (size_t l = 0; l < distance; l++)\n"
     "            lane[l] = lane[l] + lane[l + distance];",
     "    for (size_t l = 1; l < LANES; l++)\n        lane[0] += lane[l];"),
    ("one rounding: the weights of attention down by a quarter", "kernels/ref/attention.c",
     "float_round_bits(a[j] * inverse)", "float_round_bits(a[j] * inverse - 0.25f)"),
    ("one rounding: dynamic rows cut instead of rounded", "kernels/ref/quantize.c",
     "out[i] = (int8_t)(uint8_t)float_round_bits(in[i] * inverse);", "out[i] = (int8_t)(in[i] * inverse);"),
    ("one bound of a window: a key more", "kernels/ref/attention.c",
     "position >= job->window ? position - job->window + 1u : 0u", "position > job->window ? position - job->window : 0u"),
    ("a match inside a page copies V one token short", "worker/engine/backend/backend_cpu_kv.c",
     "memcpy(to + line * PAGE, from + line * PAGE, tokens);", "memcpy(to + line * PAGE, from + line * PAGE, tokens - 1);"),
    ("wide rows lose their low halves", "worker/engine/backend/backend_cpu_linear.c",
     "matrix->scheme == MODEL_SCHEME_WIDE ? input->a_low : NULL", "NULL"),
    ("a token is drawn for the position before its own", "worker/engine/text/sampler.c", "history->choice, history->count)", "history->choice, history->count - 1)"),
    ("every choice resumes with the first one's tokens", "worker/engine/engine_output.c", "        ids += choice->resumed;\n", ""),
]


def change(path, old, new):
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{path}: the line to change is there {text.count(old)} times: bring this program up to date")
    path.write_text(text.replace(old, new))
    return text


def run(command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def build(tree):
    made = run(["cmake", "--build", tree / "build", "--target", "matrix_test"])
    if made.returncode:
        sys.exit(made.stdout[-3000:])


def rows_that_differ(tree, family):
    """(rows, rows that differ), or how the run ended instead."""
    ended = run([tree / "build" / "tests" / "matrix_test", "pairwise", family], env={**os.environ, "ROOST_SOURCE_DIR": str(tree)})
    found = re.search(r"(\d+) rows, (\d+) differ", ended.stdout)
    return (int(found[1]), int(found[2])) if found else (0, f"ended with {ended.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="small")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="roost-faults-") as folder:
        tree = pathlib.Path(folder)
        listed = run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"]).stdout.split("\n")
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        for name, old, new in START_CHECK:
            change(tree / name, old, new)
        made = run(["cmake", "-S", tree, "-B", tree / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"])
        if made.returncode:
            sys.exit(made.stderr[-3000:])
        for fault, name, old, new in [("none", None, None, None)] + [fault for fault in FAULTS if options.only in fault[0]]:
            text = change(tree / name, old, new) if name else None
            build(tree)
            rows, differ = rows_that_differ(tree, options.family)
            results[fault] = differ
            print(f"{fault}: {differ} of {rows} rows differ" if rows else f"{fault}: {differ}", flush=True)
            if text:
                (tree / name).write_text(text)
    good = results.pop("none") == 0 and all(results.values())
    print(json.dumps({"ok": good, "family": options.family, "faults": results}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
