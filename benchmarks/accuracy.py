"""How accurate a recipe is: trains it with several seeds, tests each once, and writes a row of the README's table.

    python benchmarks/accuracy.py CONFIG [--seeds N] [--accelerator gpu]

Each seed is one `fit` with the config, as a user would type it, and one `test` of its last checkpoint, so that no epoch
is chosen on the test images. The time is that of the whole `fit`, with its imports.

The runs are kept in `benchmarks/runs`. If this program is stopped, the same command continues it, also in the middle of
a run. With another config, other code or other versions, it starts from the beginning.
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
from mnist_lightning.runs import signals
from mnist_lightning.runs.resume import epochs_done

DATA = ["--data.root", report.DATA]

# Student's t for 2, 3, ... seeds: in 95 of 100 cases, the mean lies within this many standard errors. SciPy would
# compute it, but torchmetrics imports SciPy where it is installed, which makes each start up to a second slower.
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120]
MOST_SEEDS = len(T) + 1


def digest(config: Path, accelerator: str = "cpu") -> str:
    """Return a name for what is measured: the config, the code of the package, the machine and the versions."""
    settings = json.dumps(yaml.safe_load(config.read_text()))  # without its comments
    sources = [path.read_text() for path in sorted((report.ROOT / "mnist_lightning").rglob("*.py"))]
    measured = "\n".join([settings, *sources, report.setup(accelerator)])
    return hashlib.sha256(measured.encode()).hexdigest()[:8]


def folder_of(config: Path, accelerator: str = "cpu") -> Path:
    """Return the folder of the runs of a config, with the present code and versions."""
    return report.ROOT / "benchmarks/runs" / f"{config.stem}-{digest(config, accelerator)}"


def run_program(*arguments: str) -> None:
    """Run the program to its end. If a signal stops it, it saves its run."""
    run_python("-m", "mnist_lightning", *arguments)


def run_python(*arguments: str) -> None:
    """Run a process of Python to its end. A signal that stops this process also stops that one."""
    environment = os.environ | {"PYTHONPATH": str(report.ROOT)}
    command = [sys.executable, *arguments]
    # It has its own session, because otherwise Ctrl-C would reach it twice.
    with (
        subprocess.Popen(command, env=environment, start_new_session=True) as process,
        signals.handled_by(lambda signum, _: process.send_signal(signum)),
    ):
        ended = process.wait()
    code = ended if ended >= 0 else 128 - ended  # as in a shell, if a signal ended it
    if code in {128 + signum for signum in signals.SIGNALS}:
        print("The same command continues from here.", file=sys.stderr)
    if code:
        sys.exit(code)


def store(path: Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value))


def train(config: Path, seed: int, folder: Path, accelerator: str = "cpu", *flags: str) -> float | None:
    """Train one seed in a folder, or continue a run that was stopped there.

    Returns:
        Seconds from the start to the end of the process, None if the run was stopped in between.
    """
    trained = folder / "seconds.json"
    run = folder / "lightning_logs/version_0"
    last = run / "checkpoints/last.ckpt"
    if trained.exists():
        return json.loads(trained.read_text())
    if last.exists():
        epochs = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"]
        if epochs_done(checkpoint.read(last)) < epochs:
            run_program("fit", "--ckpt_path", str(last), "--trainer.default_root_dir", str(folder), *DATA)
        store(trained, None)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ["--config", str(config), "--seed_everything", str(seed), *report.flags_of(accelerator), *flags]
    start = time.perf_counter()
    run_program("fit", *arguments, "--trainer.default_root_dir", str(folder), *DATA)
    seconds = time.perf_counter() - start
    store(trained, seconds)
    return seconds


def test(folder: Path, accelerator: str = "cpu") -> float:
    """Return the accuracy of a trained seed on the test images, in 0..1."""
    tested = folder / "accuracy.json"
    run = folder / "lightning_logs/version_0"
    if not tested.exists():
        last = str(run / "checkpoints/last.ckpt")
        run_program("test", "--ckpt_path", last, *report.flags_of(accelerator), *DATA)
        store(tested, EventAccumulator(str(run)).Reload().Scalars("test/acc")[-1].value)
    return json.loads(tested.read_text())


def summary(accuracies: list[float], seconds: list[float | None]) -> str:
    """Return cells of a table: seeds, mean and standard deviation, 95 % interval of the mean, time.

    Args:
        accuracies: The accuracy of each seed, in 0..1.
        seconds: The time of each seed, None if it was not measured.
    """
    n, percent = len(accuracies), [100 * accuracy for accuracy in accuracies]
    mean, measured = statistics.mean(percent), [value for value in seconds if value is not None]
    took = f"{statistics.median(measured):.0f} s, at most {max(measured):.0f} s" if measured else "not measured"
    if n == 1:
        return f"1 | {mean:.2f} % | unknown | {took}"
    deviation = statistics.stdev(percent)
    margin = T[n - 2] * deviation / n**0.5
    return f"{n} | {mean:.3f} % ± {deviation:.3f} | {mean - margin:.3f} to {mean + margin:.3f} % | {took}"


def write_row(config: Path, cells: str, commit: str, accelerator: str = "cpu") -> None:
    """Write the row of a config to the README's table. Its previous row and rows from another machine are removed."""
    name, setup = f"| `{os.path.relpath(config, report.ROOT)}` |", f"On {report.setup(accelerator)}."
    heading, rule, *lines = report.read_block("accuracy").splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(name)] if setup in lines else []
    report.write_block("accuracy", "\n".join([heading, rule, *rows, f"{name} {cells} | `{commit}` |", "", setup]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help=f"Number of seeds, 1..{MOST_SEEDS}. Default: 5")
    report.add_accelerator(parser)
    options = parser.parse_args()
    if not options.config.is_file():
        parser.error(f"CONFIG is {options.config}, which is not a file; expected a recipe such as configs/fast.yaml")
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds is {options.seeds}; expected 1..{MOST_SEEDS}")
    config, seeds, accelerator = options.config.resolve(), range(options.seeds), options.accelerator
    report.read_block("accuracy")  # stops now if the table can't be written at the end
    commit, name = report.commit(), digest(config, accelerator)
    folder = folder_of(config, accelerator)
    seconds = []
    for seed in seeds:
        print(f"\n== {config.name}: {seed} of {len(seeds)} seeds trained ==", flush=True)
        if digest(config, accelerator) != name:
            sys.exit("The config or the code has changed since the first seed. Start again to measure the new one.")
        seconds.append(train(config, seed, folder / f"seed_{seed}", accelerator))
    cells = summary([test(folder / f"seed_{seed}", accelerator) for seed in seeds], seconds)
    write_row(config, cells, commit, accelerator)
    print(f"\nseeds | test accuracy, mean ± sd | 95 % interval of the mean | time of fit\n{cells}")


if __name__ == "__main__":
    main()
