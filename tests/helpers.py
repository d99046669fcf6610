"""What several test files need: the paths of a first run, and ways to read and compare what runs have written."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule, archive

ROOT = Path(__file__).parent.parent
DATA = str(ROOT / "data")

FIRST, SECOND = Path("lightning_logs/version_0"), Path("lightning_logs/version_1")
BEST, LAST = (FIRST / f"checkpoints/{name}.ckpt" for name in ("best", "last"))


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, which is plain data."""
    return torch.load(path, weights_only=True)


def events(run: Path = FIRST) -> EventAccumulator:
    """Everything that TensorBoard can show of a run, the figures and removed points included."""
    return EventAccumulator(str(run), size_guidance={"images": 0}, purge_orphaned_data=False).Reload()


def curves(run: Path = FIRST) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each curve, in the order of the steps: files of one second are read in any order."""
    accumulator = events(run)
    return {
        name: sorted((point.step, point.value) for point in accumulator.Scalars(name))
        for name in accumulator.Tags()["scalars"]
    }


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places at which two checkpoints differ, to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{where}/{index}")]
    same = torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
    return [] if same else [where]


def right_answers(checkpoint: Path, root: str = DATA) -> int:
    """How many test images a plain LeNet reads right with the weights of a checkpoint."""
    network = LeNet()
    weights = load(checkpoint)["state_dict"].items()
    network.load_state_dict({name.removeprefix("network."): weight for name, weight in weights})
    images, labels = archive.read(root, "test")
    with torch.no_grad():
        return int((network((images[:, None] / 255 - 0.5) / 0.5).argmax(1) == labels).sum())


def fit_in_notebook(
    model: DigitClassifier, root: str, tmp_path: Path, ckpt_path: Path | None = None, **trainer: Any
) -> Trainer:
    """Train as a notebook would, on 540 images in batches of 128: 5 steps an epoch."""
    options = {
        "max_epochs": 2,
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    trained = Trainer(**(options | trainer))
    trained.fit(model, MNISTDataModule(root, val_size=100), ckpt_path=ckpt_path)
    return trained


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file of more bytes. That includes the file that pytest's own output goes to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_sweep(
    root: str, search: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None, **keys: Any
) -> None:
    """Write `sweep.yaml`, and the configuration that it improves, for images in a folder."""
    base = {
        "data": {"root": root, "val_size": 100},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1} | (trainer or {}),
    }
    search = search or {
        "model.optimizer.init_args.lr": {"log_float": [0.001, 1]},
        "data.batch_size": {"choice": [32, 64]},
    }
    Path("base.yaml").write_text(yaml.safe_dump(base))
    Path("sweep.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "search": search, **keys}))


class Net(nn.Module):
    """The tutorial's network as the tutorial computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.view(-1, 400)))
        return self.fc3(F.relu(self.fc2(x)))


class NoisyNetwork(nn.Module):
    """Random augmentation by all three generators, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.lenet = LeNet()

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            images = images.roll((random.randint(-2, 2), int(np.random.randint(-2, 3))), (2, 3))
            images = images + 0.1 * torch.randn_like(images)
        return F.dropout(self.lenet(images), 0.2, self.training)


class Branching(LeNet):
    """A network that computes one thing or another, by the images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


class Untraceable(nn.Module):
    """A network that torch can't trace, and which has no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("can't be traced")
        return self.linear(images.flatten(1))
