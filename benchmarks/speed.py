"""How long an epoch takes: the tutorial's loop, a bare loop over tensors in memory, Lightning, and `fit`.

    python benchmarks/speed.py [--rounds N] [--accelerator gpu] [--parts]

It runs on a Linux machine, on the CPU or on one GPU. On a GPU, the images of all loops but the tutorial's lie in its
memory. Each round measures each loop once, so that a machine that becomes slower or
faster favours none. An epoch is the same 55,000 images in batches of 128 for all. Lightning also validates on 5,000
images. `fit` also draws curves and figures, saves checkpoints and shows its bar. The program also measures the start,
a data set of ten times as many images, and the memory of a run on the CPU. The results become a table in the README.

With `--parts`, it measures only `fit`, with and without its parts, and prints a table for docs/speed.md.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import report
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule, archive, cli
from mnist_lightning.data import split
from mnist_lightning.loader import TensorLoader
from mnist_lightning.normalization import normalize

DATA = report.DATA
IMAGE_BYTES = 60_000 * 28 * 28


def tutorial_epoch(subset: Subset, device: torch.device) -> float:
    """Load images one by one with PIL and torchvision's transforms, in two worker processes."""
    loader = DataLoader(subset, batch_size=128, shuffle=True, num_workers=2)
    network = peers.PEERS["tutorial"].network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    report.synchronize(device)
    start = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss.item()
    report.synchronize(device)
    return time.perf_counter() - start


def bare_epoch(images: Tensor, labels: Tensor, tuned: bool = False) -> float:
    """Train on images on their device.

    Args:
        images: Normalized, float `(N, 1, 28, 28)`. Or uint8 `(N, 28, 28)`: each step then normalizes its images and
            updates the training accuracy, as this project does.
        labels: int64 `(N,)`.
        tuned: Whether to use this project's memory format and fused optimizer.
    """
    memory_format = torch.channels_last if tuned else torch.contiguous_format
    network = LeNet().to(images.device, memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, fused=tuned)
    accuracy = DigitClassifier(LeNet()).train_accuracy.to(images.device) if images.dtype == torch.uint8 else None
    report.synchronize(images.device)
    start = time.perf_counter()
    for batch in torch.randperm(len(images), device=images.device).split(128):
        optimizer.zero_grad()
        pixels, targets = images.index_select(0, batch), labels.index_select(0, batch)
        if accuracy is not None:
            pixels = normalize(pixels, 0.5, 0.5)
        logits = network(pixels.to(memory_format=memory_format))
        loss = F.cross_entropy(logits, targets)
        if accuracy is not None:
            accuracy.update(logits, targets)
        loss.backward()
        optimizer.step()
    report.synchronize(images.device)
    return time.perf_counter() - start


class EpochTimer(Callback):
    """Times the epochs of a run, with validation and checkpoints.

    Attributes:
        seconds: The mean over the epochs of the last run.
    """

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report.synchronize(pl_module.device)
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report.synchronize(pl_module.device)
        EpochTimer.seconds = (time.perf_counter() - self.start) / trainer.current_epoch


class TenTimes(MNISTDataModule):
    """Trains on ten copies of each image in an epoch. Each copy takes its own memory."""

    def _loader(self, images: Tensor, labels: Tensor, indices: Tensor, shuffle: bool = False) -> TensorLoader:
        if shuffle:
            indices = torch.cat([indices + copy * len(images) for copy in range(10)])
            images, labels = images.repeat(10, 1, 1), labels.repeat(10)
        return super()._loader(images, labels, indices, shuffle)


def barebones_epoch(data: type[MNISTDataModule] = MNISTDataModule, accelerator: str = "cpu") -> float:
    """Train this project's classes with Lightning's `barebones`, which leaves out all extras."""
    timer = EpochTimer()
    trainer = Trainer(barebones=True, max_epochs=1, accelerator=accelerator, devices=1, callbacks=timer)
    trainer.fit(DigitClassifier(LeNet()), data(DATA, resident=accelerator == "gpu"))
    return timer.seconds


def fit_epoch(*flags: str, accelerator: str = "cpu") -> float:
    """Run `python -m mnist_lightning fit` with its defaults, and return the mean of three epochs."""
    options = [*report.flags_of(accelerator), "--trainer.max_epochs=3", f"--data.root={DATA}"]
    cli.main(["fit", *options, f"--trainer.callbacks={__name__}.EpochTimer", *flags])
    return EpochTimer.seconds


class FirstStep(Callback):
    """Ends the process before its first training step."""

    def on_train_batch_start(self, *_: object) -> None:
        os._exit(0)


def start_up(accelerator: str = "cpu") -> float:
    """Return the seconds from the command to its first training step."""
    options = [*report.flags_of(accelerator), f"--data.root={DATA}", "--trainer.callbacks=speed.FirstStep"]
    environment = os.environ | {"PYTHONPATH": f"{report.ROOT}:{report.ROOT / 'benchmarks'}"}
    command = [sys.executable, "-m", "mnist_lightning", "fit", *options]
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def import_libraries() -> float:
    """Return the seconds that a process takes to import Lightning, and torch with it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lightning.pytorch.cli, os; os._exit(0)"], check=True)
    return time.perf_counter() - start


def peak_memory(data: type[MNISTDataModule] | None) -> int:
    """Return the peak memory of this process in bytes, after 20 steps on a data set, or on one batch of zeros."""
    trainer = Trainer(barebones=True, max_steps=20, accelerator="cpu")
    if data:
        trainer.fit(DigitClassifier(LeNet()), data(DATA))
    else:
        batch = (torch.zeros(128, 1, 28, 28), torch.zeros(128, dtype=torch.int64))
        trainer.fit(DigitClassifier(LeNet()), DataLoader([batch], batch_size=None))
    status = Path("/proc/self/status").read_text()  # `getrusage` also counts the memory of the parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


class Terminal(io.StringIO):
    """Receives what is printed. It says that it is a terminal, so that `fit` shows its bar."""

    def isatty(self) -> bool:
        return True


def spread(times: list[float]) -> str:
    """Return two cells of a table: the median and the range of times in seconds."""
    return f"{statistics.median(times):.2f} s | {min(times):.2f} to {max(times):.2f} s"


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median of the ratios of two loops that each round has measured."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


PARTS = {
    "without validation and its figures": ["--trainer.limit_val_batches=0"],
    "without checkpoints": ["--trainer.enable_checkpointing=false"],
    # Without a logger, `fit` saves no checkpoints either.
    "without checkpoints, curves and figures": ["--trainer.logger=false"],
    "without the bar": ["--trainer.enable_progress_bar=false"],
}


def parts_of_fit(tuned: Callable[[], float], rounds: int, accelerator: str) -> str:
    """Return a Markdown table: the time of an epoch of `fit`, complete and without some of its parts.

    Args:
        tuned: Measures an epoch of the loop (b'), to compare with.
        rounds: How many times each variant is measured.
        accelerator: `cpu` or `gpu`.
    """
    everything = list(dict.fromkeys(flag for flags in PARTS.values() for flag in flags))
    flags = {"as it is": [], **PARTS, "without all of these": everything}
    fits = {name: partial(fit_epoch, *added, accelerator=accelerator) for name, added in flags.items()}
    seconds = in_turn({"(b')": tuned, **fits}, rounds)
    table = ["| `fit` | median | range | time relative to (b') |", "|---|---|---|---|"]
    bare = seconds.pop("(b')")
    for name, times in seconds.items():
        table.append(f"| {name} | {spread(times)} | {ratio(times, bare):.2f} |")
    return "\n".join(table)


def in_turn(measurements: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take each measurement once in each round, and hide what it prints."""
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds):
        for name, measure in measurements.items():
            with contextlib.redirect_stdout(Terminal()):
                taken[name].append(measure())
            print(f"round {number + 1} of {rounds}: {name}: {taken[name][-1]:.2f} s", flush=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Rounds, at least 5. Default: 7")
    parser.add_argument("--parts", action="store_true", help="Print the time of `fit` without some of its parts.")
    report.add_accelerator(parser)
    options = parser.parse_args()
    accelerator, device = options.accelerator, report.device_of(options.accelerator)
    if options.rounds < 5:
        parser.error(f"--rounds is {options.rounds}; expected at least 5")
    commit = report.commit()

    images, labels = archive.read(DATA, "train")
    train, _ = split(labels, 5_000)
    pixels, targets = images[train].to(device), labels[train].to(device)
    normalized = normalize(pixels, 0.5, 0.5)
    tuned_epoch = partial(bare_epoch, normalized, targets, tuned=True)
    if options.parts:
        print(f"{parts_of_fit(tuned_epoch, options.rounds, accelerator)}\n\nOn {report.setup(accelerator)}, {commit}.")
        return

    report.read_block("speed")  # stops now if the table can't be written at the end
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        libraries, once, ten = (pool.apply(peak_memory, (data,)) for data in (None, MNISTDataModule, TenTimes))
    shutil.copytree(archive.raw_folder(DATA), archive.raw_folder("."))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    subset = Subset(MNIST(".", train=True, download=True, transform=transform), train.tolist())

    bare, tutorial = "(b) a bare PyTorch loop over tensors in memory", "(a) the tutorial's loop"
    tuned = "(b') the same with channels_last and the fused SGD step, as in this project"
    fit = "(d) `fit`, with validation, curves, figures, checkpoints and bar"
    epochs: dict[str, Callable[[], float]] = {
        tutorial: lambda: tutorial_epoch(subset, device),
        bare: lambda: bare_epoch(normalized, targets),
        tuned: tuned_epoch,
        "(b'') the same with uint8 images and the training accuracy, as in this project": lambda: bare_epoch(
            pixels, targets, tuned=True
        ),
        "(c) this project's classes with Lightning's `barebones`": partial(barebones_epoch, accelerator=accelerator),
        fit: partial(fit_epoch, accelerator=accelerator),
    }
    seconds = in_turn(epochs, options.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    table = ["| loop | median | range | time relative to (b) | speed relative to (a) |", "|---|---|---|---|---|"]
    for name, times in seconds.items():
        ratios = f"{median[name] / median[bare]:.2f} | {median[tutorial] / median[name]:.2f}"
        table.append(f"| {name} | {spread(times)} | {ratios} |")

    copies = {"once": MNISTDataModule, "ten times": TenTimes}
    sizes = in_turn({name: partial(barebones_epoch, data, accelerator) for name, data in copies.items()}, 3)
    start = in_turn({"start": partial(start_up, accelerator), "imports": import_libraries}, 5)
    growth = statistics.median(sizes["ten times"]) / statistics.median(sizes["once"])
    start_seconds, import_seconds = (statistics.median(start[name]) for name in ("start", "imports"))
    text = (
        f"Medians of {options.rounds} rounds, on {report.setup(accelerator)}, `{commit}`. Each round measures each "
        "loop once. A measurement of `fit` is the mean of three epochs. In the median round, `fit` takes "
        f"{ratio(seconds[fit], seconds[tuned]):.2f} times as long as (b'). The command takes "
        f"{start_seconds:.1f} s to its first training step; {import_seconds:.1f} s of these import Lightning and "
        f"torch. Ten times the images take {growth:.2f} times as long. Without data, a run needs at most "
        f"{libraries / 2**20:,.0f} MiB of memory. Each byte of MNIST's images adds "
        f"{(once - libraries) / IMAGE_BYTES:.2f} bytes, or {(ten - libraries) / IMAGE_BYTES / 10:.2f} bytes with ten "
        "times the images."
    )
    report.write_block("speed", "\n".join([*table, "", text]))
    print(report.read_block("speed"))


if __name__ == "__main__":
    # torchvision extracts the archives there, and `fit` writes runs.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main()
