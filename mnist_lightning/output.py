"""Files that a person asks for by a flag: checked before anything is computed, and not replaced without being asked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class OutputError(Exception):
    """A file can't be written as it was asked for."""


def check_file(path: Path, flag: str, suffixes: Iterable[str], overwrite: bool) -> None:
    """Make sure that a file can be written.

    Args:
        path: its name.
        flag: what named it.
        suffixes: what the name may end in.
        overwrite: whether what is there may be replaced.

    Raises:
        OutputError: it can't, and why.
    """
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{flag} is {path}; expected a name that ends in {', '.join(suffixes)}")
    if path.is_dir():
        raise OutputError(f"{flag} is {path}, which is a folder; expected a file")
    _check_place(path, flag, path.exists() and not overwrite)


def check_folder(path: Path, flag: str, overwrite: bool) -> None:
    """Make sure that files can be written into a folder, which is made if it is not there.

    Args and raises: as `check_file`.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{flag} is {path}, which is a file; expected a folder")
    _check_place(path, flag, path.is_dir() and any(path.iterdir()) and not overwrite)


def _check_place(path: Path, flag: str, taken: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"{flag} is {path}, and there is no folder {path.parent}")
    if taken:
        raise OutputError(f"{flag} is {path}, which is there already; expected a new name, or --overwrite")


@contextmanager
def written(path: Path, flag: str) -> Iterator[None]:
    """Let what the disk refuses say which flag's file can't be written.

    Raises:
        OutputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{flag} is {path}, which can't be written: {error.strerror}") from error
