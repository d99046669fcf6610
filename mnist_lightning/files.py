"""Files that are written completely or not at all, and folders that are removed if they stay empty."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from mnist_lightning.errors import OutputError

# The ending of a file's name while it is being written.
PARTIAL = ".partial"


@contextlib.contextmanager
def written_whole(path: Path, argument: str | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the file is complete and on the disk.

    The temporary file lies in the same folder: a move from another file system could be interrupted. Its name is
    random, so that two writers use different files.

    Args:
        path: Where the file will be.
        argument: The argument that named it, for the message.

    Raises:
        OutputError: The disk is full, or the folder can't be written. `path` has not changed.
    """
    partial = path.with_name(secrets.token_hex(8) + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        unchanged = "; the existing file is unchanged" if path.is_file() else ""
        raise OutputError(f"{path} can't be written: {error.strerror or error}{unchanged}", argument) from error
    if os.name == "posix":  # Windows can't open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """Remove the folder `path` and its parents at the end, if they are new and empty.

    So a name with a typing error leaves no folders behind. Folders that existed before stay.
    """
    # Not `exists()` of Path: it fails for a name that is too long.
    new = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is not empty, or was never made
            for folder in new:
                folder.rmdir()


def remove_partial(run: Path) -> None:
    """Remove the unfinished files of a killed process from a run folder."""
    for partial in [*run.glob(f"*{PARTIAL}"), *run.glob(f"checkpoints/*{PARTIAL}")]:
        partial.unlink(missing_ok=True)
