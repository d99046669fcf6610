"""Files of a run that are there whole or not at all, whatever ends the process that writes them."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# What the name of a file ends in while it is written.
PARTIAL = ".partial"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file, and put it in the place of `path` when it is written and on the disk.

    Until then, and if writing fails, `path` stays what it is. The file lies in the same folder, as a move from one
    file system to another can be cut off, and has no name that a reader of the folder would know.
    """
    partial = path.with_name("half" + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if os.name == "posix":  # Windows can't open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partial(run: Path) -> None:
    """Remove from a run's folder what a process was writing when it was killed."""
    for partial in [*run.glob(f"*{PARTIAL}"), *run.glob(f"checkpoints/*{PARTIAL}")]:
        partial.unlink(missing_ok=True)


class OutputError(Exception):
    """A file can't be written where it was asked for."""


def check_output(path: Path, flag: str, suffixes: Iterable[str], overwrite: bool) -> None:
    """Make sure, before anything is computed, that an output has a place.

    Args:
        path: a file that is to be written; without suffixes, a folder.
        flag: the flag that named it, for the message.
        suffixes: what the file's name may end in.
        overwrite: whether what is there may be replaced.

    Raises:
        OutputError: it has not.
    """
    if suffixes and path.suffix not in suffixes:
        raise OutputError(f"{flag} is {path}; expected a name that ends in {', '.join(suffixes)}")
    if suffixes and path.is_dir():
        raise OutputError(f"{flag} is {path}, which is a folder; expected a file")
    if not suffixes and path.exists() and not path.is_dir():
        raise OutputError(f"{flag} is {path}, which is a file; expected a folder")
    if not path.parent.is_dir():
        raise OutputError(f"{flag} is {path}, and there is no folder {path.parent}")
    if (any(path.iterdir()) if path.is_dir() else path.exists()) and not overwrite:
        raise OutputError(f"{flag} is {path}, which is there already; expected a new name, or --overwrite")
