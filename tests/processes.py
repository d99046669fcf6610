"""Real processes that run `fit`, and end themselves at a chosen moment."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import BEST, LAST, curves, differences, load
from torchvision.datasets import MNIST

from mnist_lightning import DigitClassifier
from mnist_lightning.cli import main

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mnist_lightning.runs.verbs"])  # each process starts with the imports done

EXIT_CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "exception": 1, None: 0}


def wait_for(happened: Callable[[], object], seconds: float = 60, pause: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(pause)


def stop_at(patch: pytest.MonkeyPatch, kind: str, method: str, call: int) -> None:
    """Let the call of a method of the model's end the run."""
    original, calls = getattr(DigitClassifier, method), 0

    def stopping(self: DigitClassifier, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and kind == "exception":
            raise RuntimeError("an exception in the run")
        if calls == call and kind == "sleep":
            time.sleep(60)
        elif calls == call:
            os.kill(os.getpid(), getattr(signal, kind))
        return original(self, *arguments)

    patch.setattr(DigitClassifier, method, stopping)


def child(resources: Any, arguments: list[str], stop: tuple[str, str, int] | None, errors: Path | None) -> None:
    MNIST.resources = resources
    sys.argv = ["mnist_lightning"]
    if errors:
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    if stop:
        stop_at(pytest.MonkeyPatch(), *stop)
    main(["fit", *arguments])


def start(arguments: list[str], stop: tuple[str, str, int] | None = None, errors: Path | None = None) -> Any:
    """Start `fit` in a process of its own, which ends with the tests. A file can receive its errors."""
    process = PROCESSES.Process(target=child, args=(MNIST.resources, arguments, stop, errors), daemon=True)
    process.start()
    return process


def fit(arguments: list[str], stop: tuple[str, str, int] | None = None) -> None:
    process = start(arguments, stop)
    process.join(timeout=120)
    assert process.exitcode == EXIT_CODES[stop[0] if stop else None]


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    monkeypatch.chdir(folder)


class Outcome:
    """All that a run in the current folder has left that could differ: both checkpoints and every scalar."""

    def __init__(self) -> None:
        self.checkpoints = {path.name: load(path) for path in (BEST, LAST)}
        self.curves = curves()

    def assert_same(self, other: "Outcome") -> None:
        assert differences(self.checkpoints, other.checkpoints) == []
        assert self.curves == other.curves
