"""Plots as SVG, with matplotlib; the same figures give the same file."""
import csv
import pathlib

SIZE = (7, 4)                 # inches


def _figure():
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "roost"
    from matplotlib import pyplot
    return pyplot.subplots(figsize=SIZE)


def _save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_losses(runs, path, training=False):
    """The development losses of run folders over their steps; with training, also the training losses, smoothed."""
    figure, axes = _figure()
    for run in map(pathlib.Path, runs):
        with open(run / "losses.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        if training:
            smooth, values = None, []
            for row in rows:
                loss = float(row["train_loss"])
                smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
                values.append((int(row["step"]), smooth))
            axes.plot(*zip(*values), linewidth=1, label=f"{run.name}, training")
        points = [(int(row["step"]), float(row["dev_loss"])) for row in rows if row["dev_loss"]]
        if points:
            axes.plot(*zip(*points), "o-" if "int8" in run.name else "s--", label=f"{run.name}, development")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    _save(figure, path)


def draw_points(points, path, xlabel, ylabel):
    """points: [(name, x, y)], x on a logarithmic axis."""
    figure, axes = _figure()
    for name, x, y in points:
        axes.plot(x, y, "o")
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.2, y=0.1)
    _save(figure, path)


def draw_positions(curves, path):
    """curves: {name: [(first position, targets, loss)]}"""
    figure, axes = _figure()
    for name, rows in curves.items():
        axes.plot([max(first, 1) for first, _, _ in rows], [loss for _, _, loss in rows], "o-", label=name)
    axes.set(xscale="log", xlabel="position in the conversation, from", ylabel="test loss, nats per token")
    axes.legend()
    _save(figure, path)
