"""Small data in the official format, cut from the real archives, and the command line in this process."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # heeded when torch is imported: a core for each worker, and what it starts

import torch
from helpers import DATA
from torch import Tensor
from torchvision.datasets import MNIST

from mnist_lightning import DigitReader, archive
from mnist_lightning.cli import main


def write_idx(path: Path, tensor: Tensor) -> str:
    """Write a uint8 tensor as a gzipped IDX file, and return its MD5."""
    header = bytes([0, 0, 8, tensor.dim()]) + b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    packed = gzip.compress(header + tensor.to(torch.uint8).numpy().tobytes(), mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return hashlib.md5(packed).hexdigest()


@pytest.fixture(scope="session")
def small_archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """A data folder with the first 640 training and 200 test images, and the MD5 of each of its archives."""
    root = tmp_path_factory.mktemp("small")
    resources = []
    for split, prefix, size in (("train", "train", 640), ("test", "t10k", 200)):
        images, labels = archive.read(DATA, split)
        for tensor, suffix in ((images, "images-idx3-ubyte.gz"), (labels, "labels-idx1-ubyte.gz")):
            name = f"{prefix}-{suffix}"
            resources.append((name, write_idx(archive.raw_folder(str(root)) / name, tensor[:size])))
    return root, resources


@pytest.fixture
def small_data(
    small_archives: tuple[Path, list[tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A copy of the small archives, taken for the official ones."""
    root, resources = small_archives
    monkeypatch.setattr(MNIST, "resources", resources)
    return str(shutil.copytree(root, tmp_path / "small_data"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, for runs to be written in."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Run = Callable[..., None]


@pytest.fixture
def run(small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line on the small data, quickly: 540 images and 5 steps an epoch. A run that goes on stays so."""
    monkeypatch.setattr(sys, "argv", ["mnist_lightning"])

    def run(verb: str, *args: str) -> None:
        quick = [] if verb in ("export", "runs", "sweep") else [f"--data.root={small_data}"]
        if verb in ("fit", "validate", "test") and not any(arg.startswith("--ckpt_path") for arg in args):
            quick += ["--trainer.log_every_n_steps=1"]
            if verb == "fit":
                quick += ["--data.val_size=100", "--trainer.max_epochs=2"]
        main([verb, *quick, *args])

    return run


def fit_quickly(folder: Path, *args: str) -> Path:
    """Train the tutorial's network with a high learning rate on the real archives. Return the folder of the run."""
    place = [f"--data.root={DATA}", f"--trainer.default_root_dir={folder}"]
    settings = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1", "--model.lr_interval=step"]
    settings += ["--model.optimizer.nesterov=true", "--data.batch_size=64"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mnist_lightning"])
        main(["fit", *place, *settings, *args])
    return folder / "lightning_logs/version_0"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of a run that reads digits: half an epoch on the real archives."""
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=400", "--trainer.enable_progress_bar=false"]
    return fit_quickly(tmp_path_factory.mktemp("trained"), *quick).parent


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run of two epochs on the real archives."""
    folder = tmp_path_factory.mktemp("good")
    return fit_quickly(folder, "--trainer.max_epochs=2", "--figures=false") / "checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser of Playwright's. Its event loop ends with the module, because other tests need their own."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def reader(good: Path) -> DigitReader:
    """The network of a run of two epochs."""
    return DigitReader.load(good)


@pytest.fixture(scope="module")
def digits_html(reader: DigitReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of this network."""
    from browser import exported

    return exported(reader, tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Any, digits_html: Path) -> Iterator[Any]:
    """The page of this network in a browser."""
    from browser import opened

    with opened(browser, digits_html) as page:
        yield page


Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def program(workplace: Path) -> Iterator[Program]:
    """Start the program, or Python with a line in its place, in an empty folder and a group of processes of its own."""
    processes = []

    def program(*arguments: str, python: str = "") -> subprocess.Popen[str]:
        what = ["-c", python] if python else ["-m", "mnist_lightning"]
        process = subprocess.Popen(
            [sys.executable, *what, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield program
    for process in processes:
        process.kill()
        process.communicate()
