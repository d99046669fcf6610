"""Files of a run that are there whole or not at all, whatever ends the process that writes them."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# What the name of a file ends in while it is written.
PARTIAL = ".partial"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file, and put it in the place of `path` when it is written and on the disk.

    Until then, and if writing fails, `path` stays what it is. The file lies in the same folder, as a move from one
    file system to another can be cut off, and has a name that nothing else in the folder has.
    """
    partial = path.with_name(secrets.token_hex(8) + PARTIAL)
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
