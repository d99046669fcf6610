"""The quickest way to an accuracy: trains this project's recipes and those of others, and draws error against seconds.

    python benchmarks/frontier.py [--seeds N] [--only ROW ...] [--accelerator gpu]

A row is a recipe in `configs/`, or a recipe in `peers.py` with one of two loaders: as published, or from memory.

Each seed of a row is trained by a process of its own. The time is that of the whole process: imports, training, what is
measured during training, and writing the weights. The test that gives the accuracy comes after that, for all rows.
Each round trains one seed of each row, so that a machine that becomes slower or faster favours none.

Each result becomes a line of `benchmarks/runs/frontier.jsonl`. If this program is stopped, the same command trains what
is missing. Results of other code, of another machine or of other versions are left out.

The program writes the README's table, docs/frontier.svg and docs/frontier_dark.svg.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accuracy
import chart
import peers
import report
import torch
from torchvision.datasets import MNIST

from mnist_lightning import archive

HEADING = """| recipe | seeds | test accuracy, sd | 95 % interval of the mean | time to train, median | commit |
|---|---|---|---|---|---|"""
PICTURE = """<picture>
<source media="(prefers-color-scheme: dark)" srcset="docs/frontier_dark.svg">
<img src="docs/frontier.svg" width="700" alt="Error on the test images against the time to train: see the table">
</picture>"""


LEGEND = """
This table compares the recipes with other projects' recipes. One machine trained all of them. The time runs from the
start of the process until the trained weights are on disk. The test comes after that. *As published* loads the images
as the source does: on a CPU, pytorch/examples never shuffles them, and Keras' example keeps 6,000 of them for
validation. *In memory* is the same recipe with all 60,000 images, shuffled, and with batches from memory. In the
picture, a dotted line joins these two. The blue line joins the best recipes of this project.
""".strip()


class Setting(NamedTuple):
    """How all rows are trained. With `steps`, each run has one epoch of at most so many steps."""

    accelerator: str = "cpu"
    steps: int | None = None


class Row(NamedTuple):
    """A recipe.

    Attributes:
        label: Its name in the picture.
        kind: One of `chart.KINDS`.
        cell: Its name in the table.
        code: Returns the text that its results depend on.
        measure: Trains a seed in an empty folder. Returns the accuracy on the test images in 0..1, and the seconds.
    """

    label: str
    kind: str
    cell: str
    code: Callable[[], str]
    measure: Callable[[int, Path, Setting], tuple[float, float]]


def measure_ours(config: Path, seed: int, folder: Path, setting: Setting) -> tuple[float, float]:
    """Train with `fit`, and test the last checkpoint. `accuracy.py` has the same runs, so each is trained once."""
    if not setting.steps:
        folder = accuracy.folder_of(config, setting.accelerator) / f"seed_{seed}"
    limits = [f"--trainer.limit_train_batches={setting.steps}", "--trainer.max_epochs=1"] if setting.steps else []
    seconds = accuracy.train(config, seed, folder, setting.accelerator, *limits)
    if seconds is None:  # the run was stopped in between
        shutil.rmtree(folder)
        return measure_ours(config, seed, folder, setting)
    return accuracy.test(folder, setting.accelerator), seconds


def measure_peer(peer: str, loader: str, seed: int, folder: Path, setting: Setting) -> tuple[float, float]:
    """Train with `peers.py`, on files that torchvision has extracted before."""
    shutil.copytree(archive.raw_folder(report.DATA), archive.raw_folder(str(folder)))
    MNIST(str(folder), download=True)
    device, weights = report.device_of(setting.accelerator), folder / "weights.pt"
    limits = ["--steps", str(setting.steps)] if setting.steps else []
    options = ["--data", str(folder), "--weights", str(weights), "--seed", str(seed), "--device", str(device), *limits]
    start = time.perf_counter()
    accuracy.run_python(peers.__file__, peer, loader, *options)
    seconds = time.perf_counter() - start
    return peers.test(peers.PEERS[peer], weights, folder, device), seconds


def all_rows() -> dict[str, Row]:
    """Return the rows, by the names that `--only` takes."""
    rows = {}
    for config in sorted((report.ROOT / "configs").glob("*.yaml")):
        if config.name != "sweep.yaml":  # not a recipe
            cell = f"`configs/{config.name}`"
            code, measure = partial(accuracy.digest, config), partial(measure_ours, config)
            rows[config.stem] = Row(config.name, "ours", cell, code, measure)
    for name, peer in peers.PEERS.items():
        for loader in ("memory", "published"):
            cell = f"[{peer.name}]({peer.source}), {chart.KINDS[loader].removeprefix('others, ')}"
            measure = partial(measure_peer, name, loader)
            rows[f"{name}-{loader}"] = Row(peer.name, loader, cell, Path(peers.__file__).read_text, measure)
    return rows


def key_of(row: Row, setting: Setting) -> str:
    """Return a name for what a result depends on: the code, the device, the versions and the setting."""
    measured = "\n".join([row.code(), report.setup(setting.accelerator), str(setting.steps)])
    return hashlib.sha256(measured.encode()).hexdigest()[:8]


def results_of(path: Path, name: str, key: str) -> list[dict[str, Any]]:
    """Return the results of a row with the present code, at most one for each seed."""
    found = {
        result["seed"]: result for result in report.read_results(path) if (result["row"], result["key"]) == (name, key)
    }
    return [found[seed] for seed in sorted(found)]


def train_missing(path: Path, rows: dict[str, Row], seeds: Sequence[int], setting: Setting) -> None:
    """Measure each seed of each row that has no result yet, and append the result to the file."""
    for seed in seeds:
        for name, row in rows.items():
            key = key_of(row, setting)
            if any(result["seed"] == seed for result in results_of(path, name, key)):
                continue
            print(f"\n== seed {seed} of {name} ==", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                right, seconds = row.measure(seed, Path(folder), setting)
            result = {"row": name, "seed": seed, "accuracy": right, "seconds": seconds, "key": key}
            about = {"commit": report.commit(), "setup": report.setup(setting.accelerator)}
            report.add_result(path, result | about)


def table(path: Path, rows: dict[str, Row], setting: Setting) -> tuple[str, list[chart.Point]]:
    """Return the table of all rows that have results, and their points in the picture."""
    lines, points = [HEADING], []
    for name, row in rows.items():
        if results := results_of(path, name, key_of(row, setting)):
            shares, seconds = ([result[what] for result in results] for what in ("accuracy", "seconds"))
            commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(result["commit"] for result in results))
            lines.append(f"| {row.cell} | {accuracy.summary(shares, seconds)} | {commits} |")
            points.append(chart.Point(row.label, row.kind, seconds, [100 * (1 - share) for share in shares]))
    return "\n".join(lines), points


def main() -> None:
    rows, most = all_rows(), accuracy.MOST_SEEDS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help=f"Number of seeds, 1..{most}. Default: 5")
    parser.add_argument("--only", nargs="+", choices=rows, default=[*rows], metavar="ROW", help=", ".join(rows))
    parser.add_argument("--steps", type=int, help="Train only so many steps, for a test. The README does not change.")
    report.add_accelerator(parser)
    options = parser.parse_args()
    if not 1 <= options.seeds <= most:
        parser.error(f"--seeds is {options.seeds}; expected 1..{most}")
    setting = Setting(options.accelerator, options.steps)
    setup = report.setup(setting.accelerator)
    print(f"On {setup}.")
    if torch.get_num_threads() < (cores := len(os.sched_getaffinity(0))):
        print(f"torch uses {torch.get_num_threads()} of {cores} cores: see OMP_NUM_THREADS", file=sys.stderr)
    if not setting.steps:
        report.read_block("frontier")  # stops now if the table can't be written at the end
    path = report.ROOT / "benchmarks/runs/frontier.jsonl"
    train_missing(path, {name: rows[name] for name in options.only}, range(options.seeds), setting)
    text, points = table(path, rows, setting)
    print(f"\n{text}")
    folder = path.parent if setting.steps else report.ROOT / "docs"
    for name, theme in (("frontier.svg", "light"), ("frontier_dark.svg", "dark")):
        (folder / name).write_text(chart.draw(points, theme))
    if not setting.steps:
        report.write_block("frontier", f"{LEGEND}\n\n{PICTURE}\n\n{text}\n\nOn {setup}.")


if __name__ == "__main__":
    main()
