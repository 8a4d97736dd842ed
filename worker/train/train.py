"""Trains one model: Muon and AdamW, warm-up, a constant rate and a straight descent to zero; long rows at the end; early stopping.

Progress goes to standard output, losses to <run>/losses.csv, the state to <run>/checkpoint.pt, from which the same command
continues with the same bits, and the weights with the best development loss to <run>/best.pt. A run is a pure function of its
arguments on one kind of processor and one version of torch.
"""
import argparse
import csv
import ctypes
import json
import math
import os
import pathlib
import time

import sentencepiece
import torch

import data
import model
import ops
import optimizer
import plots

LOG_COLUMNS = ["step", "epoch", "row_length", "train_loss", "dev_loss"]
SAVE_SECONDS = 600            # between checkpoints
EVALUATION_LENGTH = 1024      # ids of a development sequence while training


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.model")
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of checkpoint and losses")
    parser.add_argument("--arithmetic", choices=("int8", "float"), default="int8", help="int8: native; float: no rounding anywhere")
    parser.add_argument("--forward", choices=("kernels", "framework"), help="default: kernels for int8 on a CPU, else framework")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    shape = parser.add_argument_group("shape")
    shape.add_argument("--hidden", type=int, default=192)
    shape.add_argument("--inner", type=int, default=512)
    shape.add_argument("--layers", type=int, default=12)
    shape.add_argument("--heads", type=int, default=4)
    shape.add_argument("--kv-heads", type=int, default=1)
    shape.add_argument("--head-dim", type=int, default=64)
    shape.add_argument("--window", type=int, default=128)
    shape.add_argument("--global-every", type=int, default=6, help="1: every layer is global")
    shape.add_argument("--sharing", choices=model.SHARINGS, default="all", help="who shares K and V")
    shape.add_argument("--context", type=int, default=8192)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--steps", type=int, default=1300)
    recipe.add_argument("--batch-tokens", type=int, default=4096, help="inputs per step")
    recipe.add_argument("--length", type=int, default=512, help="row length of most steps")
    recipe.add_argument("--micro-tokens", type=int, default=2048, help="inputs of one pass; a step adds up several")
    recipe.add_argument("--long-length", type=int, default=8192, help="row length of the last steps")
    recipe.add_argument("--long-from", type=float, default=0.92, help="share of steps after which rows are long; 1: never")
    recipe.add_argument("--matrix-rate", type=float, default=0.02, help="peak learning rate of Muon")
    recipe.add_argument("--other-rate", type=float, default=4e-3, help="peak learning rate of AdamW")
    recipe.add_argument("--warm-up", type=int, default=30, help="steps")
    recipe.add_argument("--descend-from", type=float, default=0.3, help="share of steps after which the rate goes down")
    recipe.add_argument("--weight-decay", type=float, default=0.1)
    recipe.add_argument("--dropout", type=float, default=0.1)
    recipe.add_argument("--seed", type=int, default=1)
    recipe.add_argument("--evaluate-every", type=int, default=100, help="steps")
    recipe.add_argument("--patience", type=int, default=4, help="stop after so many evaluations without a better one")
    recipe.add_argument("--minutes", type=float, help="stop after so many minutes, for trials")
    args = parser.parse_args(arguments)
    if args.forward is None:
        args.forward = "kernels" if args.arithmetic == "int8" and args.device == "cpu" else "framework"
    if args.forward == "kernels" and (args.arithmetic == "float" or args.device != "cpu"):
        parser.error("the kernels are int8 and run on the CPU: take --forward framework")
    if min(args.steps, args.warm_up, args.evaluate_every, args.patience, args.length, args.long_length, args.batch_tokens) < 1:
        parser.error("--steps, --warm-up, --evaluate-every, --patience, --batch-tokens and row lengths are at least 1")
    if not 0 <= args.descend_from < 1:
        parser.error(f"--descend-from {args.descend_from} is not in [0, 1)")
    for length in (args.length, args.long_length):
        if args.batch_tokens % length and length < args.batch_tokens:
            parser.error(f"--batch-tokens {args.batch_tokens} is not a multiple of the row length {length}")
    try:
        make_config(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_config(args):
    return model.make_config(args.hidden, args.inner, args.layers, args.heads, args.kv_heads, args.head_dim, args.window,
                             args.global_every, args.sharing, args.context)


def keep_memory():
    """Lets the C library keep freed memory: a step allocates the same blocks as the one before."""
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((m_mmap_threshold, 1 << 25), (m_trim_threshold, (1 << 31) - 1), (m_top_pad, 1 << 28)):
        mallopt(option, value)


def make_ops(args):
    if args.forward == "kernels":
        return ops.KernelOps()
    rounding = args.arithmetic == "int8"
    return ops.FrameworkOps(weights=rounding, activations=rounding, kv=rounding)


def rate_share(step, args):
    """Of the peak learning rates, for the step (from 0)."""
    descent = args.steps * (1 - args.descend_from)
    return min((step + 1) / args.warm_up, 1, (args.steps - step) / descent)


def train_step(params, batch, config, operations, args, step):
    """Adds up the gradients of a batch in passes of about micro_tokens; returns the mean loss."""
    torch.manual_seed(args.seed * 1_000_003 + step)                      # dropout: nothing else draws
    ops.fast_float_products(True)
    ids, learn = (torch.from_numpy(a).to(args.device) for a in batch)
    count = learn[:, 1:].sum()
    rows = max(1, args.micro_tokens // (ids.shape[1] - 1))
    total = 0.0
    for at in range(0, len(ids), rows):
        loss, _ = model.loss(params, ids[at:at + rows], learn[at:at + rows], config, operations, args.dropout)
        (loss / count).backward()
        total += loss.item()
    return total / count.item()


@torch.no_grad()
def evaluate(params, sequences, config, operations, device="cpu"):
    """Mean loss in nats over all targets of the sequences (arrays of ids), each alone."""
    total = count = 0.0
    ops.fast_float_products(False)
    for ids in sequences:
        ids = torch.from_numpy(ids)[None].to(device)
        learn = torch.ones_like(ids, dtype=torch.bool)
        loss, targets = model.loss(params, ids, learn, config, operations)
        total, count = total + loss.item(), count + targets.item()
    return total / count


class Run:
    """The folder of a run: its checkpoint, best weights and log. A folder belongs to one set of arguments."""

    def __init__(self, args, config):
        self.folder, self.config = args.run, config
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = {k: str(v) for k, v in sorted(vars(args).items()) if k not in ("run", "minutes", "tokenizer")}
        kept = self.folder / "arguments.json"
        if kept.exists() and json.loads(kept.read_text()) != identity:
            raise SystemExit(f"{self.folder} holds a run with other arguments ({kept}): take a new folder")
        kept.write_text(json.dumps(identity, indent=1) + "\n")

    def _write(self, name, content):
        partial = self.folder / (name + ".partial")
        torch.save(content, partial)
        os.replace(partial, self.folder / name)

    def load(self):
        """The checkpoint's dict, or None."""
        path = self.folder / "checkpoint.pt"
        return torch.load(path, map_location="cpu") if path.exists() else None

    def save(self, params, state, step, best, stale):
        self._write("checkpoint.pt", {"params": detached(params), "state": state, "step": step, "best": best, "stale": stale})

    def save_best(self, params, step, dev_loss):
        self._write("best.pt", {"params": detached(params), "config": dict(self.config), "step": step, "dev_loss": dev_loss})

    def open_log(self, done):
        """losses.csv, open for appending, without the rows of steps after `done`."""
        path, kept = self.folder / "losses.csv", [LOG_COLUMNS]
        if path.exists():
            with open(path, newline="") as file:
                kept += [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= done]
        file = open(path, "w", newline="")
        csv.writer(file).writerows(kept)
        return file


def detached(params):
    return {name: p.detach().cpu() for name, p in params.items()}


def main(arguments=None):
    args = parse_args(arguments)
    keep_memory()
    config = make_config(args)
    run, operations = Run(args, config), make_ops(args)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
    parts = {part: data.encode_plays(tokenizer, scenes) for part, scenes in data.split(data.load_scenes()).items() if part != "test"}
    dev = data.consecutive_sequences(parts["development"], EVALUATION_LENGTH)

    kept = run.load()
    params = kept["params"] if kept else model.init_params(config, args.seed)
    params = {name: p.to(args.device).requires_grad_() for name, p in params.items()}
    update = optimizer.Optimizer(params, args.matrix_rate, args.other_rate, args.weight_decay)
    done, best, stale = (kept["step"], kept["best"], kept["stale"]) if kept else (0, math.inf, 0)
    if kept:
        update.state = {name: t.to(args.device) for name, t in kept["state"].items()}
    print(f"{sum(p.numel() for p in params.values())} parameters, {args.arithmetic} ({operations.name}), "
          f"step {done} of {args.steps}", flush=True)

    long_from = math.ceil(args.steps * args.long_from)
    short = data.batches(parts["train"], args.length, max(1, args.batch_tokens // args.length), args.seed, min(done, long_from))
    long = data.batches(parts["train"], args.long_length, max(1, args.batch_tokens // args.long_length), args.seed, max(0, done - long_from))
    start = saved = time.monotonic()
    recent = []
    with run.open_log(done) as file:
        log = csv.writer(file)
        for step in range(done, args.steps if stale < args.patience else done):     # a run that stopped early is over
            epoch, *batch = next(long if step >= long_from else short)
            loss = train_step(params, batch, config, operations, args, step)
            if not math.isfinite(loss):
                raise SystemExit(f"the loss is {loss} at step {step + 1}: take a lower learning rate; the last checkpoint is kept")
            update.step(step + 1, rate_share(step, args))
            recent.append(loss)
            at, spent = step + 1, time.monotonic() - start
            out_of_time = args.minutes is not None and spent > args.minutes * 60
            due = at % args.evaluate_every == 0 or at == args.steps
            dev_loss = ""
            if due or out_of_time:
                dev_loss = evaluate(params, dev, config, operations, args.device)
                better = dev_loss < best
                if due:
                    best, stale = min(dev_loss, best), 0 if better else stale + 1
                if better and (due or best == math.inf):         # a look out of turn leaves no trace where the run goes on
                    run.save_best(params, at, dev_loss)
            log.writerow([at, f"{epoch:.3f}", batch[0].shape[1] - 1, f"{loss:.5f}", dev_loss and f"{dev_loss:.5f}"])
            file.flush()
            last = at == args.steps or out_of_time or stale >= args.patience
            if last or time.monotonic() - saved > SAVE_SECONDS:
                run.save(params, update.state, at, best, stale)
                saved = time.monotonic()
            if at % 20 == 0 or last or at <= 3:
                each = spent / (at - done)
                print(f"step {at}/{args.steps} epoch {epoch:.2f} length {batch[0].shape[1] - 1} loss {sum(recent) / len(recent):.4f} "
                      f"dev {dev_loss and round(dev_loss, 4)} best {best:.4f} {each:.2f} s/step {each * (args.steps - at) / 60:.1f} min left",
                      flush=True)
                recent = []
            if last:
                break
    try:
        plots.draw_losses([args.run], args.run / "losses.svg", training=True)
    except ImportError:
        print(f"no plot: matplotlib is not installed; the losses are in {args.run / 'losses.csv'}")
    print(f"best development loss {best:.4f}", flush=True)


if __name__ == "__main__":
    main()
