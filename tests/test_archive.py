import functools
import os
import re
import shutil
import socket
import socketserver
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA, write_idx
from processes import PROCESSES
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


@contextmanager
def serve(server: socketserver.BaseServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def mirror(small_data: str) -> Iterator[str]:
    """A real HTTP server on loopback with the small archives."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(raw_folder(small_data)))
    with serve(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url


class Misbehaviour(socketserver.BaseRequestHandler):
    """An HTTP server that fails in the way that its class names."""

    kind: str

    def handle(self) -> None:
        self.request.recv(10_000)
        if self.kind == "silence":
            time.sleep(1)
        elif self.kind == "no HTTP":
            self.request.sendall(b"what?\r\n\r\n")
        elif self.kind == "not found":
            self.request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"half of it" * 5000)
            time.sleep(1 if self.kind == "stall" else 0.1)
            if self.kind == "reset":  # closing sends RST
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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
    assert str(caught.value).startswith(f"{path} is {state}, and can't be downloaded ({NOWHERE}: ")
    assert "Connection refused" in str(caught.value)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["silence", "no HTTP", "not found", "closed early", "reset", "stall"])
def test_a_mirror_that_fails_is_left_for_the_next(
    kind: str, mirror: str, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "TIMEOUT_SECONDS", 0.3)
    root = tmp_path / "elsewhere"
    handler = type("Handler", (Misbehaviour,), {"kind": kind})
    with serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)) as bad:
        monkeypatch.setattr(MNIST, "mirrors", [bad])
        with pytest.raises(ArchiveError, match=rf"ubyte.gz is missing, and can't be downloaded \({bad}: "):
            archive.prepare(str(root))
        assert list(root.rglob("*ubyte*")) == []
        monkeypatch.setattr(MNIST, "mirrors", [bad, mirror])
        monkeypatch.setattr(MNIST, "resources", MNIST.resources[-1:])
        archive.prepare(str(root))
    (path,) = raw_folder(str(root)).iterdir()
    assert path.read_bytes() == (raw_folder(small_data) / path.name).read_bytes()
    assert socket.getdefaulttimeout() is None


@pytest.mark.slow
def test_silent_mirrors_are_given_up_within_30_seconds(small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(raw_folder(small_data))
    handler = type("Handler", (Misbehaviour,), {"kind": "silence", "handle": lambda self: time.sleep(30)})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with serve(server) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [silent] * len(MNIST.mirrors))
        start = time.monotonic()
        with pytest.raises(ArchiveError, match="timed out"):
            archive.prepare(small_data)
        assert time.monotonic() - start < 30


def test_a_mirror_with_another_file_is_not_believed(
    mirror: str, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    (raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz").write_bytes(b"another file")
    with pytest.raises(ArchiveError, match=r"t10k-labels-idx1-ubyte\.gz is missing, and can't be downloaded"):
        archive.prepare(str(tmp_path / "elsewhere"))


def test_read_refuses_an_archive_that_is_not_the_official_one(small_data: str) -> None:
    path = raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"t10k-labels-idx1-ubyte.gz has MD5 \w{32}; the official file has \w{32}"):
        archive.read(small_data, "test")


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "corrupt": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "of another length": lambda path: write_idx(path, torch.zeros(150)),
    "missing": lambda path: path.unlink(),
    # torchvision reads extracted files in place of the archives.
    "beside an empty extracted file": lambda path: path.with_suffix("").write_bytes(b""),
    "beside a truncated extracted file": lambda path: path.with_suffix("").write_bytes(b"\0\0\10\1\0\0"),
    "beside a corrupt extracted file": lambda path: path.with_suffix("").write_bytes(
        b"\0\0\10\1\0\0\0\310" + bytes(200)
    ),
}


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_bad_files_are_repaired_or_named_and_never_used(
    name: str, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = archive.read(small_data, "test")
    named, repaired = [], []
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(raw_folder(small_data)))
    with serve(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as good:
        for state, damage in DAMAGES.items():
            root = str(tmp_path / state)
            shutil.copytree(small_data, root)
            damage(raw_folder(root) / name)
            monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
            try:
                archive.prepare(root)
            except ArchiveError as error:
                assert re.search(rf"{name} is (damaged|missing), and can't be downloaded", str(error))
                with pytest.raises(ArchiveError, match=rf"{name} .*(has MD5|No such file)"):
                    archive.read(root, "test")
                named.append(state)
            monkeypatch.setattr(MNIST, "mirrors", [good])
            archive.prepare(root)
            for tensor, same in zip(archive.read(root, "test"), expected, strict=True):
                assert torch.equal(tensor, same)
            repaired.append(state)
    assert named == list(DAMAGES)[:5]
    assert repaired == list(DAMAGES)
    with capsys.disabled():
        print(f"\n{len(repaired)} of {len(DAMAGES)} bad {name}: repaired with a network, never used without one")


@pytest.mark.parametrize("there", [[], ["elsewhere"], ["elsewhere", "elsewhere/MNIST"]])
def test_folders_without_an_archive_are_removed_again(
    there: list[str], small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were there before stay."""
    for folder in there:
        Path(folder).mkdir()
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    with pytest.raises(ArchiveError):
        archive.prepare("elsewhere")
    assert sorted(map(str, workplace.rglob("*"))) == [str(workplace / folder) for folder in there]


def test_folders_with_an_archive_stay_if_the_next_one_is_missing(
    mirror: str, small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    first = MNIST.resources[0][0]
    for path in raw_folder(small_data).iterdir():
        if path.name != first:
            path.unlink()
    with pytest.raises(ArchiveError):
        archive.prepare("elsewhere")
    assert [path.name for path in raw_folder("elsewhere").iterdir()] == [first]


def prepare_in_child(mirrors: list[str], resources: Any, root: str) -> None:
    MNIST.mirrors, MNIST.resources = mirrors, resources
    archive.prepare(root)
    archive.read(root, "train")


@pytest.mark.slow
def test_four_processes_fill_an_empty_folder_at_once(mirror: str, tmp_path: Path) -> None:
    arguments = ([mirror], MNIST.resources, str(tmp_path / "empty"))
    processes = [PROCESSES.Process(target=prepare_in_child, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    names = sorted(path.name for path in raw_folder(str(tmp_path / "empty")).iterdir())
    assert names == sorted(name for name, _ in MNIST.resources)


def test_a_read_only_folder_is_enough(small_data: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        shutil.copytree(small_data, root, dirs_exist_ok=True)
        for folder in (Path(root), Path(root, "MNIST"), raw_folder(root)):
            folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # for whom nothing is read-only
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                (raw_folder(root) / "new").touch()
            archive.prepare(root)
            assert len(archive.read(root, "train")[1]) == 640
        finally:
            os.seteuid(user)
            for folder in (Path(root), Path(root, "MNIST"), raw_folder(root)):
                folder.chmod(0o755)
