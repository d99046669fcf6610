"""How long an epoch takes: the tutorial's loop, a bare loop over tensors in memory, Lightning, and `fit`.

    python benchmarks/speed.py [--rounds N]

On the CPU of a Linux machine; all in turn in each round, so that a machine whose speed drifts does not favour one. An
epoch is the same 55,000 images in batches of 128 for all. Lightning also validates on 5,000, and `fit` draws curves,
saves checkpoints and shows its bar. Measures the start, memory, and ten times the images, too, and writes all of it
into the README.
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
from pathlib import Path

import report
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule, archive, cli
from mnist_lightning.data import TensorLoader, split

DATA = str(report.ROOT / "data")
IMAGE_BYTES = 60_000 * 28 * 28


class Net(LeNet):
    """The tutorial's network in the tutorial's order: the ReLU before the pooling."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def tutorial_epoch(subset: Subset) -> float:
    """Images one by one through PIL and torchvision's transforms, in two worker processes."""
    loader = DataLoader(subset, batch_size=128, shuffle=True, num_workers=2)
    network = Net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    start = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def bare_epoch(images: Tensor, labels: Tensor, tuned: bool = False) -> float:
    """Float images `(N, 1, 28, 28)`, normalised beforehand, and nothing else; `tuned` as this project does it."""
    memory_format = torch.channels_last if tuned else torch.contiguous_format
    network = LeNet().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, fused=tuned)
    start = time.perf_counter()
    for batch in torch.randperm(len(images)).split(128):
        optimizer.zero_grad()
        logits = network(images[batch].to(memory_format=memory_format))
        F.cross_entropy(logits, labels[batch]).backward()
        optimizer.step()
    return time.perf_counter() - start


class EpochTimer(Callback):
    """Times the epochs of a run, validation and checkpoints included."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        EpochTimer.seconds = (time.perf_counter() - self.start) / trainer.current_epoch


class TenTimes(MNISTDataModule):
    """Trains on each image ten times an epoch, each a copy of its own."""

    def _loader(self, images: Tensor, labels: Tensor, indices: Tensor, shuffle: bool = False) -> TensorLoader:
        if shuffle:
            indices = torch.cat([indices + copy * len(images) for copy in range(10)])
            images, labels = images.repeat(10, 1, 1), labels.repeat(10)
        return super()._loader(images, labels, indices, shuffle)


def barebones_epoch(data: type[MNISTDataModule] = MNISTDataModule) -> float:
    """Lightning without all that it would add, around this project's classes."""
    timer = EpochTimer()
    trainer = Trainer(barebones=True, max_epochs=1, accelerator="cpu", callbacks=timer)
    trainer.fit(DigitClassifier(LeNet()), data(DATA))
    return timer.seconds


def fit_epoch() -> float:
    """`python -m mnist_lightning fit` with its defaults, but for three epochs, of which this is the mean."""
    options = ["--trainer.accelerator=cpu", "--trainer.max_epochs=3", f"--data.root={DATA}"]
    cli.main(["fit", *options, "--trainer.callbacks=__main__.EpochTimer"])
    return EpochTimer.seconds


class FirstStep(Callback):
    """Ends the process at its first training step."""

    def on_train_batch_start(self, *_: object) -> None:
        os._exit(0)


def start_up() -> float:
    """Seconds from the command to its first training step."""
    options = ["--trainer.accelerator=cpu", f"--data.root={DATA}", "--trainer.callbacks=speed.FirstStep"]
    environment = os.environ | {"PYTHONPATH": f"{report.ROOT}:{report.ROOT / 'benchmarks'}"}
    command = [sys.executable, "-m", "mnist_lightning", "fit", *options]
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def import_libraries() -> float:
    """Seconds that a process takes to import what Lightning imports, torch above all."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lightning.pytorch.cli, os; os._exit(0)"], check=True)
    return time.perf_counter() - start


def peak_memory(data: type[MNISTDataModule] | None) -> int:
    """Bytes that this process has held at most, after some steps on a data set, or on a single batch of zeros."""
    trainer = Trainer(barebones=True, max_steps=20, accelerator="cpu")
    if data:
        trainer.fit(DigitClassifier(LeNet()), data(DATA))
    else:
        batch = (torch.zeros(128, 1, 28, 28), torch.zeros(128, dtype=torch.int64))
        trainer.fit(DigitClassifier(LeNet()), DataLoader([batch], batch_size=None))
    status = Path("/proc/self/status").read_text()  # `getrusage` counts what the parent had held at the fork
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def in_turn(measurements: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take each measurement once a round, without the lines that it prints."""
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds):
        for name, measure in measurements.items():
            with contextlib.redirect_stdout(io.StringIO()):
                taken[name].append(measure())
            print(f"round {number + 1} of {rounds}: {name}: {taken[name][-1]:.2f} s", flush=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of one epoch of each, 5 or more (default: 7)")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error(f"--rounds is {options.rounds}; expected at least 5")
    report.read_block("speed")  # what can't be written in the end is not begun
    commit = report.commit()

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        libraries, once, ten = (pool.apply(peak_memory, (data,)) for data in (None, MNISTDataModule, TenTimes))
    images, labels = archive.read(DATA, "train")
    train, _ = split(labels, 5_000)
    normalised = (images[train, None] / 255 - 0.5) / 0.5
    shutil.copytree(archive.raw_folder(DATA), archive.raw_folder("."))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    subset = Subset(MNIST(".", train=True, download=True, transform=transform), train.tolist())

    bare, tutorial = "(b) a bare PyTorch loop over tensors in memory", "(a) the tutorial's loop"
    epochs: dict[str, Callable[[], float]] = {
        tutorial: lambda: tutorial_epoch(subset),
        bare: lambda: bare_epoch(normalised, labels[train]),
        "(b'), with channels_last and the fused SGD step, as here": lambda: bare_epoch(
            normalised, labels[train], tuned=True
        ),
        "(c) Lightning's `barebones` around this project's classes": barebones_epoch,
        "(d) `fit`: validation, curves, checkpoints and bar included": fit_epoch,
    }
    seconds = in_turn(epochs, options.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    table = ["| an epoch | median | range | of the time of (b) | faster than (a) |", "|---|---|---|---|---|"]
    for name, times in seconds.items():
        ratios = f"{median[name] / median[bare]:.2f} | {median[tutorial] / median[name]:.2f} times"
        table.append(f"| {name} | {median[name]:.2f} s | {min(times):.2f} to {max(times):.2f} s | {ratios} |")

    sizes = in_turn({"once": barebones_epoch, "ten times": lambda: barebones_epoch(TenTimes)}, 3)
    start = in_turn({"start": start_up, "imports": import_libraries}, 5)
    growth = statistics.median(sizes["ten times"]) / statistics.median(sizes["once"])
    start_seconds, import_seconds = (statistics.median(start[name]) for name in ("start", "imports"))
    text = (
        f"Medians of {options.rounds} rounds, all in turn (of `fit`, means of a run of three), on {report.setup()}, "
        f"`{commit}`. From the command to the first training step: {start_seconds:.1f} s, of which "
        f"{import_seconds:.1f} s import Lightning and torch. Ten times the images take {growth:.2f} times as long. A "
        f"run needs at most {libraries / 2**20:,.0f} MiB without data; {(once - libraries) / IMAGE_BYTES:.2f} bytes "
        f"more for each byte of MNIST's images; {(ten - libraries) / IMAGE_BYTES / 10:.2f} if there are ten times as "
        f"many."
    )
    report.write_block("speed", "\n".join([*table, "", text]))
    print(report.read_block("speed"))


if __name__ == "__main__":
    # torchvision extracts the archives, and `fit` writes runs.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main()
