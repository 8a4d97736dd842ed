"""The runs behind docs/model.md: trains their arms, measures them, and draws tables and plots.

    experiments.py train GROUP --out DIR [--jobs 2]      main, sizes or ablations; what is finished is left alone
    experiments.py measure GROUP --out DIR               test losses and the rest, kept in DIR/<arm>/measured.json
    experiments.py report --out DIR --docs ../../docs    tables on standard output; plots as SVG (needs matplotlib)

DIR holds tokenizer.model and a folder for each arm. Jobs run on one thread each.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import data
import kernels
import model
import plots

HERE = pathlib.Path(__file__).resolve().parent
RECIPE = {"--dropout": 0.1, "--matrix-rate": 0.01, "--other-rate": 8e-3}
MAIN = {"--hidden": 192, "--inner": 512, "--steps": 900, "--long-from": 0.95, "--evaluate-every": 150, "--patience": 3}
SIZE = {"--long-from": 1, "--evaluate-every": 100}
ABLATION = {"--hidden": 128, "--inner": 352, "--heads": 4, "--head-dim": 32, "--steps": 200, "--long-from": 1,
            "--evaluate-every": 200, "--patience": 3, "--seed": 1}
SEEDS = (1, 2)
CONVERSATION = 8192           # tokens of the conversation whose KV is counted


def ablation(kv_heads, global_every, sharing, arithmetic="float"):
    return ABLATION | {"--kv-heads": kv_heads, "--global-every": global_every, "--sharing": sharing, "--arithmetic": arithmetic}


GROUPS = {
    "main": {f"main-{kind}-{seed}": MAIN | {"--arithmetic": kind, "--seed": seed} for kind in ("int8", "float") for seed in SEEDS},
    "sizes": {
        "size128": SIZE | {"--hidden": 128, "--inner": 352, "--steps": 500},
        "size192": SIZE | {"--hidden": 192, "--inner": 512, "--steps": 300},
        "size256": SIZE | {"--hidden": 256, "--inner": 640, "--steps": 210},
    },
    "ablations": {
        "mha-full": ablation(4, 1, "none"),
        "gqa-full": ablation(2, 1, "none"),
        "mqa-full": ablation(1, 1, "none"),
        "mqa-hybrid": ablation(1, 6, "none"),
        "mqa-hybrid-neighbours": ablation(1, 6, "neighbours"),
        "mqa-hybrid-all": ablation(1, 6, "all"),
        "mqa-hybrid-all-int8": ablation(1, 6, "all", "int8"),
    },
}
QUANTISED_AFTERWARDS = ("int8 weights", "int8 weights, activations", "int8 weights, activations, KV")


def program(script, *arguments):
    """Runs a script of this folder on one thread; returns its standard output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, HERE / script, *map(str, arguments)], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{script} {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def train_arm(out, name, settings):
    flags = [word for pair in (RECIPE | settings).items() for word in pair]
    print(program("train.py", "--tokenizer", out / "tokenizer.model", "--run", out / name, *flags).splitlines()[-1], name, flush=True)


def default_recipe_loss(out, name):
    """The test loss of roost-convert's default int8 model of a float run, by the engine itself."""
    binaries = pathlib.Path(kernels.LIBRARY_PATH).parents[1] / "bin"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        program("export.py", "--run", out / name, "--tokenizer", out / "tokenizer.model", "--kind", "float", "--out", scratch / "float")
        subprocess.run([binaries / "roost-convert", scratch / "float", scratch / "int8", "--quiet"], check=True)
        with open(scratch / "scenes", "w", encoding="utf-8") as file:
            for scene in data.split(data.load_scenes())["test"]:
                messages = [{"role": "user", "name": speaker, "text": text} for speaker, text in data.scene_messages(scene)]
                file.write(json.dumps({"messages": messages}) + "\n")
        found = subprocess.run([binaries / "roost", "model", "eval", scratch / "int8", "--conversations", scratch / "scenes",
                                "--window", str(CONVERSATION), "--threads", "1", "--json"], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)["score"]["loss"]


def measure_arm(out, name, settings):
    target = out / name / "measured.json"
    if target.exists():
        return
    common = ("--run", out / name, "--tokenizer", out / "tokenizer.model")

    def last_line(*options):
        return json.loads(program("evaluate.py", *common, *options).splitlines()[-1])

    native = settings.get("--arithmetic", "int8") == "int8"
    own = "kernels" if native else "float"
    measured = {"dev_loss": last_line("--part", "development", "--arithmetic", own)[own]}
    if name.startswith("main"):
        arithmetics = [own] if native else [own, *QUANTISED_AFTERWARDS, "kernels"]
        measured["test"] = last_line(*(word for a in arithmetics for word in ("--arithmetic", a)))
        if native:
            measured["positions"] = last_line("--positions", "--arithmetic", own)[own]
            measured["distance"] = last_line("--distance")["distance"]
        else:
            measured["test"]["default recipe"] = default_recipe_loss(out, name)
    else:
        measured["test"] = last_line("--arithmetic", own)
    target.write_text(json.dumps(measured, indent=1) + "\n")
    print(name, json.dumps(measured), flush=True)


def for_each(group, out, jobs, work):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda arm: work(out, *arm), GROUPS[group].items()))


# ---- report ----

def config_of(settings):
    keys = ("hidden", "inner", "heads", "kv_heads", "head_dim", "global_every", "sharing")
    chosen = {key: settings[f"--{key.replace('_', '-')}"] for key in keys if f"--{key.replace('_', '-')}" in settings}
    return model.make_config(**chosen)


def parameter_count(config):
    total = 0
    for shape in model.parameter_shapes(config).values():
        total += shape[0] * (shape[1] if len(shape) == 2 else 1)
    return total


def kv_bytes(config, int8):
    """Of one conversation: two bytes an element as floats; as int8 one, and a float32 scale for each K and V row."""
    heads, dim, total = config["num_key_value_heads"], config["head_dim"], 0
    for layer, kind in enumerate(config["layer_types"]):
        if config["kv_producer"][layer] == layer:
            tokens = CONVERSATION if kind == model.GLOBAL else min(CONVERSATION, config["sliding_window"])
            total += tokens * heads * 2 * (dim + 4 if int8 else 2 * dim)
    return total


def measured(out, name):
    path = out / name / "measured.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there: measure its group first")
    return json.loads(path.read_text())


def mean_and_spread(values):
    return f"{statistics.mean(values):.4f} | {max(values) - min(values):.4f}"


def report_main(out):
    rows = {}
    for kind in ("float", "int8"):
        for seed in SEEDS:
            for name, loss in measured(out, f"main-{kind}-{seed}")["test"].items():
                if isinstance(loss, float):
                    rows.setdefault((kind, name), []).append(loss)
    base = rows["float", "float"]
    print("\n| training | served as | " + " | ".join(f"seed {s}" for s in SEEDS) + " | mean | spread | against float, paired |")
    print("| --- | --- |" + " --- |" * (len(SEEDS) + 3))
    for (kind, name), losses in rows.items():
        change = statistics.mean(a / b - 1 for a, b in zip(losses, base))
        print(f"| {kind} | {name} | " + " | ".join(f"{x:.4f}" for x in losses) + f" | {mean_and_spread(losses)} | {100 * change:+.2f}% |")


def report_sizes(out):
    print("\n| width | parameters | steps | development loss |\n| --- | --- | --- | --- |")
    for name, settings in GROUPS["sizes"].items():
        print(f"| {settings['--hidden']} | {parameter_count(config_of(settings)) / 1e6:.1f} M | {settings['--steps']} "
              f"| {measured(out, name)['dev_loss']:.4f} |")


def ablation_rows(out):
    """[(name, KV bytes, parameters, development loss, test loss)]"""
    rows = []
    for name, settings in GROUPS["ablations"].items():
        config, found = config_of(settings), measured(out, name)
        own = "kernels" if settings["--arithmetic"] == "int8" else "float"
        rows.append((name, kv_bytes(config, own == "kernels"), parameter_count(config), found["dev_loss"], found["test"][own]))
    return rows


def report_ablations(out):
    rows = ablation_rows(out)
    print(f"\n| arm | parameters | KV of {CONVERSATION} tokens | smaller by | development loss | test loss |\n" + "| --- " * 6 + "|")
    for name, size, parameters, dev, test in rows:
        print(f"| {name} | {parameters / 1e6:.2f} M | {size / 1024:,.0f} KiB | {rows[0][1] / size:.1f}x | {dev:.4f} | {test:.4f} |")


def draw(out, docs):
    docs.mkdir(parents=True, exist_ok=True)
    plots.draw_points([(name, size / 1024, test) for name, size, _, _, test in ablation_rows(out)], docs / "model-ablations.svg",
                      f"KiB of KV, a conversation of {CONVERSATION} tokens", "test loss, nats per token")
    plots.draw_losses([out / name for name in GROUPS["main"]], docs / "model-losses.svg")
    plots.draw_positions({name: measured(out, name)["positions"] for name in GROUPS["main"] if "int8" in name}, docs / "model-positions.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("train", "measure", "report"))
    parser.add_argument("group", nargs="?", choices=GROUPS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--docs", type=pathlib.Path, help="of report: where the plots go; default: no plots")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if (args.action == "report") == (args.group is not None):
        parser.error("train and measure take a group, report takes none")
    if args.action == "train":
        for_each(args.group, args.out, args.jobs, train_arm)
    elif args.action == "measure":
        for_each(args.group, args.out, args.jobs, measure_arm)
    else:
        report_main(args.out)
        report_sizes(args.out)
        report_ablations(args.out)
        if args.docs:
            draw(args.out, args.docs)


if __name__ == "__main__":
    main()
