"""How long an epoch takes: the tutorial's loop, bare loops over tensors in memory, and `fit` as a user runs it.

    python benchmarks/speed.py [ROUNDS]

Runs on the CPU, all in turn in each round, so that a machine whose speed drifts does not favour one. An epoch
is the same 55,000 images in batches of 128 for all; `fit` also validates on 5,000, draws curves, saves two
checkpoints and shows its bar.
"""

import contextlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_lightning import LeNet, archive
from mnist_lightning.cli import main as mnist_lightning
from mnist_lightning.data import split

DATA = str(Path(__file__).resolve().parent.parent / "data")


class Net(LeNet):
    """The tutorial's network in the tutorial's order: the ReLU before the pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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


def bare_epoch(images: torch.Tensor, labels: torch.Tensor, tuned: bool = False) -> float:
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
        EpochTimer.seconds = time.perf_counter() - self.start


def fit_epoch() -> float:
    """`python -m mnist_lightning fit` with its defaults, but for three epochs, of which this is the mean."""
    arguments = ["--trainer.accelerator=cpu", "--trainer.max_epochs=3", f"--data.root={DATA}"]
    mnist_lightning(["fit", *arguments, "--trainer.callbacks=__main__.EpochTimer"])
    return EpochTimer.seconds / 3


def main(rounds: int = 5) -> None:
    images, labels = archive.read(DATA, "train")
    train, _ = split(labels, 5_000)
    normalised = (images[train, None] / 255 - 0.5) / 0.5
    shutil.copytree(archive.raw_folder(DATA), archive.raw_folder("."))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    subset = Subset(MNIST(".", train=True, download=True, transform=transform), train.tolist())

    epochs = {
        "tutorial": lambda: tutorial_epoch(subset),
        "bare": lambda: bare_epoch(normalised, labels[train]),
        "bare, tuned": lambda: bare_epoch(normalised, labels[train], tuned=True),
        "fit": fit_epoch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, epoch in epochs.items():
            seconds[name].append(epoch())

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    print(f"\n{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} threads, {versions}")
    print(f"{'':11} {'median s':>8} {'min':>6} {'max':>6} {'x bare':>7}   ({rounds} epochs each)")
    for name, times in seconds.items():
        ratio = statistics.median(times) / statistics.median(seconds["bare"])
        print(f"{name:11} {statistics.median(times):8.2f} {min(times):6.2f} {max(times):6.2f} {ratio:7.2f}")


if __name__ == "__main__":
    # torchvision extracts the archives, and `fit` writes runs.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
