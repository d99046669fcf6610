import functools
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import DATA
from torchvision.datasets import MNIST

from mnist_lightning import archive
from mnist_lightning.archive import ArchiveError, raw_folder


@pytest.mark.parametrize(
    ("split", "size", "first_labels"), [("train", 60_000, [5, 0, 4, 1]), ("test", 10_000, [7, 2, 1, 0])]
)
def test_reads_the_official_splits(split: str, size: int, first_labels: list[int]) -> None:
    images, labels = archive.read(DATA, split)
    assert images.shape == (size, 28, 28)
    assert images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert labels.shape == (size,)
    assert labels.dtype == torch.int64
    assert labels[:4].tolist() == first_labels


def test_reads_what_torchvision_reads(tmp_path: Path) -> None:
    shutil.copytree(raw_folder(DATA), raw_folder(str(tmp_path)))  # torchvision extracts the archives in place
    theirs = MNIST(str(tmp_path), train=False, download=True)
    images, labels = archive.read(DATA, "test")
    assert torch.equal(images, theirs.data)
    assert torch.equal(labels, theirs.targets)


@pytest.fixture
def mirror(small_data: str) -> Iterator[str]:
    """A real HTTP server on loopback with the small archives."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(raw_folder(small_data)))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


NOWHERE = "http://127.0.0.1:9/"  # the discard port: nobody listens


def test_downloads_what_is_missing_and_damaged_from_the_first_mirror_that_works(
    mirror: str, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE, mirror])
    folder = raw_folder(str(tmp_path / "elsewhere"))
    folder.mkdir(parents=True)
    damaged = folder / "train-images-idx3-ubyte.gz"
    damaged.write_bytes((raw_folder(small_data) / damaged.name).read_bytes()[:-1])

    archive.prepare(str(tmp_path / "elsewhere"))

    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(name for name, _ in MNIST.resources)
    for name in names:
        assert (folder / name).read_bytes() == (raw_folder(small_data) / name).read_bytes()


def test_prepare_leaves_whole_archives_alone(small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [])
    times = {path: path.stat().st_mtime_ns for path in raw_folder(small_data).iterdir()}
    archive.prepare(small_data)
    assert {path: path.stat().st_mtime_ns for path in raw_folder(small_data).iterdir()} == times


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_without_a_network_says_which_archive_and_what_was_tried(
    state: str, small_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    path = raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz"
    path.unlink() if state == "missing" else path.write_bytes(b"no archive")
    with pytest.raises(ArchiveError) as caught:
        archive.prepare(small_data)
    assert str(caught.value).startswith(f"{path} is {state} and no mirror gave it: {NOWHERE} (")
    assert "Connection refused" in str(caught.value)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_mirror_that_accepts_and_never_answers_is_given_up(small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(archive, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(ArchiveError, match="timed out"):
            archive.prepare(small_data)
    assert socket.getdefaulttimeout() is None


def test_a_mirror_with_another_file_is_not_believed(
    mirror: str, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    (raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz").write_bytes(b"another file")
    with pytest.raises(ArchiveError, match=r"t10k-labels-idx1-ubyte\.gz is missing and no mirror gave it"):
        archive.prepare(str(tmp_path / "elsewhere"))


def test_read_refuses_an_archive_that_is_not_the_official_one(small_data: str) -> None:
    path = raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArchiveError, match=r"t10k-labels-idx1-ubyte.gz .* has MD5 \w{32}; the official file has \w{32}"
    ):
        archive.read(small_data, "test")
