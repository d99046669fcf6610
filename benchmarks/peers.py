"""What people use instead: recipes of other projects, written out in plain PyTorch for `frontier.py`.

    python benchmarks/peers.py PEER published|memory --data FOLDER --weights FILE [--seed N] [--device cuda]

`published` loads the images as the source does. If the source measures its network after each epoch, so does this.

`memory` is the same recipe with fast batches. All 60,000 images are in memory, in a new order in each epoch. One index
operation makes a batch. Nothing is measured. The memory format is `channels_last`. Steps of SGD and Adam are fused.
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Iterable[tuple[Tensor, Tensor]]  # float images (B, 1, 28, 28), int64 labels (B,)


class Peer:
    """A recipe. After each epoch, the learning rate is multiplied by `gamma`."""

    gamma = 1.0

    def one_by_one(self, folder: Path, train: bool, **options: Any) -> Batches:
        """Return batches whose images are loaded with PIL and torchvision's transforms."""
        from torch.utils.data import DataLoader
        from torchvision import transforms
        from torchvision.datasets import MNIST

        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((self.mean,), (self.std,))])
        return DataLoader(MNIST(folder, train, transform), **options)

    def read(self, folder: Path, part: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images and labels of `train` or `t10k`, from the files that torchvision extracts."""
        images, labels = (
            torch.frombuffer(bytearray((folder / f"MNIST/raw/{part}-{kind}-ubyte").read_bytes()), dtype=torch.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
        pixels = images[16:].view(-1, 1, 28, 28).to(device).float().div_(255).sub_(self.mean).div_(self.std)
        return pixels, labels[8:].to(device).long()


class Tutorial(Peer):
    name, source = "the tutorial's loop", "docs/tutorial.ipynb"
    batch_size, epochs, mean, std = 128, 20, 0.5, 0.5
    optimizer = staticmethod(partial(torch.optim.SGD, lr=0.001, momentum=0.9))

    def network(self) -> nn.Sequential:
        convolutions = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
        linear = [nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
        return nn.Sequential(*convolutions, nn.Flatten(), *linear)

    def published(self, folder: Path, _: torch.device) -> tuple[Batches, Batches]:
        return self.one_by_one(folder, True, batch_size=self.batch_size, shuffle=True, num_workers=2), []


class PyTorch(Peer):
    name, source = "pytorch/examples", "https://github.com/pytorch/examples/blob/main/mnist/main.py"
    batch_size, epochs, gamma, mean, std = 64, 14, 0.7, 0.1307, 0.3081
    optimizer = staticmethod(partial(torch.optim.Adadelta, lr=1.0))

    def network(self) -> nn.Sequential:
        convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        linear = [nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
        return nn.Sequential(*convolutions, nn.Dropout(0.25), nn.Flatten(), *linear)

    def published(self, folder: Path, device: torch.device) -> tuple[Batches, Batches]:
        """On a CPU, the source has no workers and never shuffles. It measures the test images after each epoch."""
        gpu = {"num_workers": 1, "persistent_workers": True, "pin_memory": True, "shuffle": True}
        options: dict[str, Any] = {} if device.type == "cpu" else gpu
        train = self.one_by_one(folder, True, batch_size=self.batch_size, **options)
        return train, self.one_by_one(folder, False, batch_size=1_000, **options)


class Keras(Peer):
    name = "Keras' example"
    source = "https://github.com/keras-team/keras-io/blob/master/examples/vision/mnist_convnet.py"
    batch_size, epochs, mean, std = 128, 15, 0.0, 1.0
    optimizer = staticmethod(partial(torch.optim.Adam, lr=0.001, eps=1e-7))  # the defaults of Keras

    def network(self) -> nn.Sequential:
        convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU()]
        network = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(1_600, 10))
        for name, weights in network.named_parameters():  # Keras starts with other weights than torch
            nn.init.zeros_(weights) if name.endswith("bias") else nn.init.xavier_uniform_(weights)
        return network

    def published(self, folder: Path, device: torch.device) -> tuple[Batches, Batches]:
        """The source has all images in memory. Its `validation_split=0.1` keeps the last 6,000 for validation."""
        images, labels = self.read(folder, "train", device)
        validation = zip(images[54_000:].split(self.batch_size), labels[54_000:].split(self.batch_size), strict=True)
        return MemoryLoader(images[:54_000], labels[:54_000], self.batch_size), [*validation]


PEERS = {"tutorial": Tutorial(), "pytorch": PyTorch(), "keras": Keras()}


class MemoryLoader:
    """Yields batches of tensors in memory, in a new order in each epoch."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(len(self.labels), device=self.labels.device).split(self.batch_size):
            yield self.images[batch], self.labels[batch]


@torch.no_grad()
def right_answers(network: nn.Module, batches: Batches, device: torch.device) -> int:
    network.eval()
    return sum(int((network(images.to(device)).argmax(1) == labels.to(device)).sum()) for images, labels in batches)


def train(peer: Any, loader: str, folder: Path, device: torch.device, steps: int | None = None) -> nn.Module:
    """Return a trained network. With `steps`, it has one epoch, of so many batches."""
    if fast := loader == "memory":
        batches, measured = MemoryLoader(*peer.read(folder, "train", device), peer.batch_size), []
    else:
        batches, measured = peer.published(folder, device)
    network = peer.network().to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)
    fused = {"fused": True} if fast and "fused" in signature(peer.optimizer).parameters else {}
    optimizer = peer.optimizer(network.parameters(), **fused)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, peer.gamma)
    for _ in range(1 if steps else peer.epochs):
        network.train()
        for images, labels in islice(batches, steps):
            optimizer.zero_grad()
            F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        right_answers(network, islice(measured, steps), device)
        schedule.step()
    return network


def test(peer: Any, weights: Path, folder: Path, device: torch.device) -> float:
    """Return the share of the test images that a trained network reads right, in 0..1."""
    network = peer.network().to(device)
    network.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    images, labels = peer.read(folder, "t10k", device)
    return right_answers(network, zip(images.split(1_000), labels.split(1_000), strict=True), device) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("loader", choices=["published", "memory"])
    parser.add_argument("--data", type=Path, required=True, help="Folder to which torchvision has extracted MNIST")
    parser.add_argument("--weights", type=Path, required=True, help="File to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cpu", help="Such as cuda. Default: cpu")
    parser.add_argument("--steps", type=int, help="Train only so many steps, for a test")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network = train(PEERS[options.peer], options.loader, options.data, options.device, options.steps)
    torch.save(network.state_dict(), options.weights)


if __name__ == "__main__":
    main()
