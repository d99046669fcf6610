"""The four official MNIST archives on disk: verified, downloaded where missing, read as tensors."""

import gzip
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import download_url

TRAIN_SIZE = 60_000

# torchvision sets none, and a mirror that accepts and never answers would hang a run for ever.
TIMEOUT_SECONDS = 4.0


class ArchiveError(Exception):
    """An archive is missing or damaged and could not be downloaded."""


def raw_folder(root: str) -> Path:
    """Return the folder of the archives below `root`, the same as torchvision's."""
    return Path(root, "MNIST", "raw")


def prepare(root: str) -> None:
    """Make sure that `root` holds the four official archives, and download those that it doesn't.

    torchvision would extract them, and from then on trust whatever carries the extracted file's name, truncated or
    not. Here only archives count, by their official MD5, and a new one appears under its name when it is whole.

    Raises:
        ArchiveError: no mirror gave the file, or the folder can't be written.
    """
    for name, md5 in MNIST.resources:
        path = raw_folder(root) / name
        if not path.is_file() or _md5(path.read_bytes()) != md5:
            _download(path, md5)


def read(root: str, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Read one official split: images uint8 `(N, 28, 28)` in 0..255 and labels int64 `(N,)` in 0..9.

    N is 60,000 for `train` and 10,000 for `test`. Format: LeCun's IDX, described with the data set.

    Raises:
        ArchiveError: an archive is missing, or is not the official one.
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(raw_folder(root) / f"{prefix}-images-idx3-ubyte.gz")
    labels = _read_idx(raw_folder(root) / f"{prefix}-labels-idx1-ubyte.gz")
    return images, labels.long()


def _read_idx(path: Path) -> Tensor:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path} (--data.root) can't be read: {error.strerror}") from error
    # What is parsed is what was verified, whatever happens to the file meanwhile.
    found, expected = _md5(packed), dict(MNIST.resources)[path.name]
    if found != expected:
        raise ArchiveError(f"{path} (--data.root) has MD5 {found}; the official file has {expected}")
    data = bytearray(gzip.decompress(packed))
    # Two zero bytes, the type (8: uint8), the number of dimensions, and each dimension as a big-endian uint32.
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * len(shape)).view(shape)


def _download(path: Path, md5: str) -> None:
    """Fetch `path` from the first mirror that gives the right file."""
    state = "damaged" if path.exists() else "missing"
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder, _socket_timeout():
            for mirror in MNIST.mirrors:
                try:
                    download_url(mirror + path.name, folder, md5=md5)
                # torchvision raises RuntimeError for a wrong MD5, the rest are network errors of all kinds.
                except (HTTPException, OSError, RuntimeError) as error:
                    failures.append(f"{mirror} ({error})")
                    (Path(folder) / path.name).unlink(missing_ok=True)
                else:
                    os.replace(Path(folder) / path.name, path)
                    return
    except OSError as error:
        raise ArchiveError(f"{path} is {state} and {path.parent} can't be written: {error.strerror}") from error
    raise ArchiveError(
        f"{path} is {state} and no mirror gave it: {', '.join(failures)}.\n"
        "Run from the project's folder, whose data/ holds it, or name a folder that does with --data.root."
    )


@contextmanager
def _socket_timeout() -> Iterator[None]:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
