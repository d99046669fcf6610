"""How well a recipe does: trains it with several seeds, then tests each once, and writes its row of the README's table.

    python benchmarks/accuracy.py CONFIG [--seeds N]

Each seed is a `fit` with the config, as a user would type it, and a `test` of its last checkpoint, so that no epoch is
picked. The time is that of the whole `fit`, imports included. What is done is kept in `benchmarks/runs`, by what was
measured: stopped, this goes on with the same command, in the middle of a run if it has to; with another config, other
code or other versions it starts anew.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lightning import checkpoint
from mnist_lightning.files import written_whole
from mnist_lightning.runs import signals as stop

DATA = ["--data.root", str(report.ROOT / "data")]

# Student's t for 2, 3, ... seeds: the mean lies within so many standard errors in 95 of 100 cases. A table, as the
# library for it, SciPy, is imported by torchmetrics where it is found, which makes every start up to a second longer.
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120]
MOST_SEEDS = len(T) + 1


def digest(config: Path) -> str:
    """Return a name for what is measured: the config, the code, and what they run with."""
    settings = json.dumps(yaml.safe_load(config.read_text()))  # its comments don't count
    sources = [path.read_text() for path in sorted((report.ROOT / "mnist_lightning").rglob("*.py"))]
    measured = "\n".join([settings, *sources, report.setup()])
    return hashlib.sha256(measured.encode()).hexdigest()[:8]


def folder_of(config: Path) -> Path:
    """Return where the runs of what is measured are kept."""
    return report.ROOT / "benchmarks/runs" / f"{config.stem}-{digest(config)}"


def run_program(*arguments: str) -> None:
    """Run the program to its end. What stops this process stops the program, which saves its run."""
    environment = os.environ | {"PYTHONPATH": str(report.ROOT)}
    command = [sys.executable, "-m", "mnist_lightning", *arguments]
    # In a session of its own, or Ctrl-C would reach it twice.
    with (
        subprocess.Popen(command, env=environment, start_new_session=True) as process,
        stop.handled_by(lambda signum, _: process.send_signal(signum)),
    ):
        code = process.wait()
    if code in {128 + signum for signum in stop.SIGNALS}:
        print("The same command goes on from here.", file=sys.stderr)
    if code:
        sys.exit(code)


def store(path: Path, value: Any) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value))


def train(config: Path, seed: int, folder: Path) -> float | None:
    """Train one seed in a folder, or finish what is begun there.

    Returns:
        Seconds from the start to the end of the process, None if there were several.
    """
    trained = folder / "seconds.json"
    run = folder / "lightning_logs/version_0"
    last = run / "checkpoints/last.ckpt"
    if trained.exists():
        return json.loads(trained.read_text())
    if last.exists():
        epochs = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"]
        if checkpoint.epochs_done(checkpoint.read(last)) < epochs:
            run_program("fit", "--ckpt_path", str(last), "--trainer.default_root_dir", str(folder), *DATA)
        store(trained, None)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ["--config", str(config), "--seed_everything", str(seed)]
    start = time.perf_counter()
    run_program("fit", *arguments, "--trainer.default_root_dir", str(folder), *DATA)
    seconds = time.perf_counter() - start
    store(trained, seconds)
    return seconds


def test(folder: Path) -> float:
    """Return the accuracy of a trained seed on the test images, in 0..1."""
    tested = folder / "accuracy.json"
    run = folder / "lightning_logs/version_0"
    if not tested.exists():
        run_program("test", "--ckpt_path", str(run / "checkpoints/last.ckpt"), *DATA)
        store(tested, EventAccumulator(str(run)).Reload().Scalars("test/acc")[-1].value)
    return json.loads(tested.read_text())


def summary(accuracies: list[float], seconds: list[float | None]) -> str:
    """Return cells of a table: seeds, mean and standard deviation, 95 % interval of the mean, time.

    Args:
        accuracies: of each seed, in 0..1.
        seconds: of each seed, None where they were not measured.
    """
    n, percent = len(accuracies), [100 * accuracy for accuracy in accuracies]
    mean, measured = statistics.mean(percent), [value for value in seconds if value is not None]
    took = f"{statistics.median(measured):.0f} s, at most {max(measured):.0f} s" if measured else "not measured"
    if n == 1:
        return f"1 | {mean:.2f} % | unknown | {took}"
    deviation = statistics.stdev(percent)
    margin = T[n - 2] * deviation / n**0.5
    return f"{n} | {mean:.3f} % ± {deviation:.3f} | {mean - margin:.3f} to {mean + margin:.3f} % | {took}"


def write_row(config: Path, cells: str, commit: str) -> None:
    """Write the config's row of the README's table, in place of the one before it, and of rows from another machine."""
    name, setup = f"| `{os.path.relpath(config, report.ROOT)}` |", f"On {report.setup()}."
    heading, rule, *lines = report.read_block("accuracy").splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(name)] if setup in lines else []
    report.write_block("accuracy", "\n".join([heading, rule, *rows, f"{name} {cells} | `{commit}` |", "", setup]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help=f"how many, 1..{MOST_SEEDS}, from 0 on (default: 5)")
    options = parser.parse_args()
    if not options.config.is_file():
        parser.error(f"CONFIG is {options.config}, which is not a file; expected one such as configs/fast.yaml")
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds is {options.seeds}; expected 1..{MOST_SEEDS}")
    config, seeds = options.config.resolve(), range(options.seeds)
    report.read_block("accuracy")  # what can't be written in the end is not begun
    commit, name = report.commit(), digest(config)
    folder = folder_of(config)
    seconds = []
    for seed in seeds:
        print(f"\n== {config.name}: {seed} of {len(seeds)} seeds trained ==", flush=True)
        if digest(config) != name:
            sys.exit("The config or the code has changed meanwhile; expected to measure one thing.")
        seconds.append(train(config, seed, folder / f"seed_{seed}"))
    cells = summary([test(folder / f"seed_{seed}") for seed in seeds], seconds)
    write_row(config, cells, commit)
    print(f"\nseeds | test accuracy, mean ± sd | 95 % interval of the mean | time of fit\n{cells}")


if __name__ == "__main__":
    main()
