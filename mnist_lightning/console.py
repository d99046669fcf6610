"""What a user reads in the terminal: usage, errors, and no noise from libraries."""

import argparse
import difflib
import errno
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast


def program() -> str:
    """Return what the user typed to start this program, without the verb."""
    return "mnist-lightning" if Path(sys.argv[0]).name.startswith("mnist-lightning") else "python -m mnist_lightning"


class Output:
    """Standard output, or standard error. If it can no longer be written, the program goes on without it.

    The reader of a pipe may have read enough, as `| head` does. The terminal may be closed, or the disk full. A run
    that trains should not end for that.

    Args:
        stream: What to write to.

    Attributes:
        error: Why the output can't be written. It is None while it can be written, and after its reader is gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Python has no stream if the program was started with a closed one (`>&-`).
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Closing a terminal gives EIO. The file descriptor is replaced, because the stream keeps what it could not
            # write, and Python tries again to write it at the end.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.error = error
                sys.stderr.write(f"{program()}: error: the output can't be written: {error.strerror}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Go on without standard output or standard error if it can no longer be written.

    Raises:
        SystemExit: Standard output could not be written, and its reader is not gone.
    """
    streams = sys.stdout, sys.stderr
    out, err = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        try:
            yield
        finally:
            out.flush()  # or Python would write the rest, and print a traceback if it can't
            err.flush()
    except SystemExit as stop:
        if stop.code or not out.error:
            raise
    finally:
        sys.stdout, sys.stderr = streams
    if out.error:
        raise SystemExit(1)


class Parser(argparse.ArgumentParser):
    """Parses the flags of one verb. An error takes a line or two, and proposes the flag that was probably meant.

    Args:
        verb: The verb.
        description: What the verb does.
    """

    def __init__(self, verb: str, description: str) -> None:
        # Scripts should not depend on abbreviations: a new flag would make them ambiguous.
        super().__init__(f"{program()} {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, usage_error(self.prog, message, (o for action in self._actions for o in action.option_strings)))

    def check_output(self, path: Path, name: str, suffixes: Collection[str] = (), overwrite: bool = False) -> None:
        """Make sure that a file or a folder can be written, before anything is computed. Otherwise, exit.

        Args:
            path: Where it will be written.
            name: The argument that named it.
            suffixes: The allowed endings of a file's name. Without any, `path` is a folder.
            overwrite: Whether an existing file, or files in the folder, may be replaced.
        """
        try:
            if suffixes and path.suffix.lower() not in suffixes:
                self.error(f"{name}: {path} has an unknown format; expected a name that ends in {', '.join(suffixes)}")
            if path.exists() and path.is_dir() == bool(suffixes):
                found, expected = ("a folder", "a file") if suffixes else ("a file", "a folder")
                self.error(f"{name}: {path} is {found}; expected {expected}")
            if not path.parent.is_dir():
                self.error(f"{name}: the folder {path.parent} does not exist")
            taken = any(path.iterdir()) if path.is_dir() else path.exists()
        except OSError as error:  # the name is too long, or the folder can't be read
            self.error(f"{name}: {path} can't be written: {error.strerror}")
        if taken and not overwrite:
            self.error(f"{name}: {path} already exists; expected a new name, or --overwrite")


def usage_error(prog: str, message: str, flags: Iterable[str]) -> str:
    """Return what to print about wrong arguments.

    Args:
        prog: The program and the verb.
        message: The parser's message.
        flags: All flags of the verb.
    """
    unknown = re.search(r"(?:unrecognized arguments|unknown key):.*?(--[\w.-]+)", message)
    proposal = _proposal(unknown[1], list(flags)) if unknown else None
    mean = f"; did you mean {proposal}?" if proposal else ""
    return f"{prog}: error: {message}{mean}\nSee {prog} --help\n"


def _proposal(flag: str, flags: list[str]) -> str | None:
    def last(name: str) -> str:
        return name.removeprefix("--").rpartition(".")[2]

    def likeness(known: str) -> float:
        return difflib.SequenceMatcher(None, last(flag), last(known)).ratio()

    same = [known for known in flags if last(known) == last(flag)]  # --lr
    longer = [known for known in flags if known.startswith(flag)]  # --trainer.max_ep
    closest = max(flags, key=likeness)  # --epochs
    return next(iter(same + longer + [closest] * (likeness(closest) > 0.6)), None)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text. The cells of a column start at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error means that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def silence() -> None:
    """Hide messages of Lightning and torch that a user of this program can do nothing about."""
    # TensorBoard writes in a thread, which prints a traceback for a full disk. The main thread gets the same error.
    threading.excepthook = lambda args: None if is_full_disk(args.exc_value) else threading.__excepthook__(args)
    # Advertisements for two packages, and how Lightning counts the steps of a schedule.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.search("Tip:|^Loading `train_dataloader`", record.getMessage())
    )
    for message in (
        # Lightning 2.6 uses a part of torch that newer versions deprecate.
        r".*LeafSpec.* is deprecated",
        # TensorBoard's graph of a network needs torch's old tracer.
        r"`torch\.jit\.trace(_method)?` is deprecated",
        # `test` attaches fewer callbacks than `fit`, and a new run has another folder than its checkpoint.
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        r"The dirpath has changed from",
        # A continued run with a ModelCheckpoint of the user.
        r"Checkpoint directory .* exists and is not empty",
        # Lightning's summary estimates the size of the network, and assumes 32 bits.
        r"Precision .* is not supported by the model summary",
        # The learning rate is a curve for every run, also for a constant one.
        r"You are using `LearningRateMonitor` callback with models that have no learning rate schedulers",
    ):
        warnings.filterwarnings("ignore", message)
