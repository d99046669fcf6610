"""The four official MNIST archives on disk: checked, downloaded if missing, and read as tensors."""

import gzip
import hashlib
import os
import socket
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import download_url

from mnist_lightning.errors import ArchiveError
from mnist_lightning.files import no_empty_folders

TRAIN_SIZE = 60_000
TIMEOUT_SECONDS = 4.0  # torchvision sets none, and would wait for ever for a mirror that never answers


def raw_folder(root: str) -> Path:
    """Return the folder of the archives below `root`. torchvision uses the same one."""
    return Path(root, "MNIST", "raw")


def prepare(root: str) -> None:
    """Download the archives that `root` does not hold.

    torchvision's MNIST extracts the archives, and later uses any extracted file, even a truncated one. This function
    keeps only the archives, and checks each by its official MD5. A download gets its final name when it is complete.

    Raises:
        ArchiveError: No mirror provides a file, or the folder can't be written.
    """
    with no_empty_folders(raw_folder(root)):
        for name, md5 in MNIST.resources:
            path = raw_folder(root) / name
            if not path.is_file() or _md5(path.read_bytes()) != md5:
                _download(path, md5)


def read(root: str, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Read one official split.

    Args:
        root: Folder that holds the archives in `MNIST/raw`.
        split: `train` has 60,000 images, `test` has 10,000.

    Returns:
        Images, uint8 `(N, 28, 28)` in 0..255, and labels, int64 `(N,)` in 0..9.

    Raises:
        ArchiveError: An archive is missing, or differs from the official one.
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(raw_folder(root) / f"{prefix}-images-idx3-ubyte.gz")
    return images, _read_idx(raw_folder(root) / f"{prefix}-labels-idx1-ubyte.gz").long()


def _read_idx(path: Path) -> Tensor:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path} can't be read: {error.strerror}") from error
    # Check the bytes that are used: the file may change after `prepare`.
    found, expected = _md5(packed), dict(MNIST.resources)[path.name]
    if found != expected:
        raise ArchiveError(f"{path} has MD5 {found}; the official file has {expected}")
    data = bytearray(gzip.decompress(packed))
    # Two zero bytes, the type (8 for uint8), the number of dimensions, and each dimension as a big-endian uint32.
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * len(shape)).view(shape)


def _download(path: Path, md5: str) -> None:
    """Fetch `path` from the first mirror that provides the right file."""
    state, failures = "damaged" if path.exists() else "missing", []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            for mirror in MNIST.mirrors:
                try:
                    download_url(mirror + path.name, folder, md5=md5)
                # torchvision raises RuntimeError for a wrong MD5. Downloads fail in many ways.
                except (HTTPException, OSError, RuntimeError) as error:
                    failures.append(f"{mirror}: {' '.join(str(error).split())}")
                    (Path(folder) / path.name).unlink(missing_ok=True)
                else:
                    os.replace(Path(folder) / path.name, path)
                    return
    except OSError as error:
        raise ArchiveError(f"{path} is {state}, and {path.parent} can't be written: {error.strerror}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    raise ArchiveError(
        f"{path} is {state}, and can't be downloaded ({'; '.join(failures)}). "
        "Name a folder that holds the four archives in MNIST/raw, such as data/ of a clone of this project"
    )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
