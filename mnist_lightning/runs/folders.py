"""Run folders: `lightning_logs/version_N`, each with everything that one run has written."""

import datetime
import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_lightning.errors import CheckpointError, OutputError, UserError
from mnist_lightning.files import written_whole

# The errors of a file system without locks. Some network file systems have none.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def find_checkpoint(name: str | Path, logs: Path, prefer: str = "best") -> Path:
    """Return the checkpoint file that a name stands for.

    Lightning's own `last` looks only in the folder of the new run, finds nothing, and trains from scratch or tests
    random weights (PL#18524). Its own `best` is lost when the process ends (PL#17312).

    Args:
        name: `best` or `last` for the newest run that has one, a run folder, `version_N`, or a file.
        logs: The folder of the runs.
        prefer: `best` or `last`. Which checkpoint of a run folder counts.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if name in ("best", "last"):
        for run in reversed(list_runs(logs)):
            checkpoint = run / "checkpoints" / f"{name}.ckpt"
            if checkpoint.is_file():
                return checkpoint
        raise CheckpointError(f"no run in {logs} has a checkpoints/{name}.ckpt; train one first with `fit`")
    if not str(name):
        raise CheckpointError("the name of the checkpoint is empty; expected best, last, a run folder or a file")
    path = Path(name)
    if re.fullmatch(r"version_\d+", str(name)) and not path.exists():
        path = logs / path
        if not path.exists():
            raise CheckpointError(f"there is no run {path}")
    if not os.path.isdir(path):  # unlike `path.is_dir()`, it takes a name of any length
        return path  # `checkpoint.read` reports what is wrong with it
    checkpoint = path / "checkpoints" / f"{prefer}.ckpt"
    if not checkpoint.is_file():
        raise CheckpointError(f"{path} has no checkpoints/{prefer}.ckpt; expected the folder of a run that has one")
    return checkpoint


def list_runs(logs: Path) -> list[Path]:
    """Return the run folders in `logs`, oldest first."""
    folders = [path for path in (logs.iterdir() if logs.is_dir() else ()) if path.is_dir()]
    return sorted((path for path in folders if isinstance(version(path), int)), key=version)


def version(run: Path) -> int | str:
    """Return the N of a folder `version_N`, and the name of any other folder."""
    match = re.fullmatch(r"version_(\d+)", run.name)
    return int(match[1]) if match else run.name


def create_run(logs: Path) -> int:
    """Make the folder of a new run, and return its number. Runs that start at the same time get different numbers."""
    while True:
        number = max((int(version(run)) for run in list_runs(logs)), default=-1) + 1
        try:
            (logs / f"version_{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        return number


def configurations(run: Path) -> list[Path]:
    """Return the configurations of a run, oldest first: `config.yaml`, then `config_2.yaml` and so on."""
    first = [path for path in [run / "config.yaml"] if path.is_file()]
    later = {
        int(match[1]): path for path in run.glob("config_*.yaml") if (match := re.fullmatch(r"config_(\d+)", path.stem))
    }
    return first + [later[number] for number in sorted(later)]


def next_configuration(run: Path) -> Path:
    """Return the path of the next configuration of a run."""
    paths = configurations(run)
    if not paths:
        return run / "config.yaml"
    newest = paths[-1].stem.partition("_")[2] or "1"
    return run / f"config_{int(newest) + 1}.yaml"


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies in none."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" and configurations(folder.parent) else None


def run_configured_by(file: Path) -> Path | None:
    """Return the run folder that a configuration was written to, or None if the file is of no run."""
    file = file.resolve()
    return file.parent if file in configurations(file.parent) and (file.parent / "checkpoints").is_dir() else None


def status_file(run: Path) -> Path:
    """Return the file that says how far a run has come."""
    return run / "status.json"


def read_status(run: Path) -> dict[str, Any]:
    """Return who trains a run, and how far it has come. Empty if there is no such file."""
    try:
        status = json.loads(status_file(run).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    known = status.items() if isinstance(status, dict) else ()
    return {key: value for key, value in known if isinstance(value, str | int | float | None)}


def update_status(run: Path, **values: object) -> None:
    """Write values to `status.json`, which `runs` reads without importing torch."""
    started = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
    with written_whole(status_file(run)) as partial:
        partial.write_text(json.dumps({"started": started} | read_status(run) | values, indent=1) + "\n")


def lock(run: Path) -> FileLock:
    """Reserve a run for this process, so that no other process trains it. The system releases the lock after a kill.

    If the file system of the run knows no locks, this function prints a line, and the run is not reserved.

    Raises:
        UserError: Another process trains the run.
        OutputError: The file `.lock` can't be written.
    """
    lock, name = lock_file(run / ".lock"), os.path.relpath(run)
    try:
        lock.acquire(timeout=0.5)  # `is_running` holds it for a moment
    except Timeout:
        status = read_status(run)
        process = f"process {status.get('process', '?')} on {status.get('host', 'another host')}"
        raise UserError(f"{name} is being trained by {process}; stop that process first, or start a new run") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OutputError(f"{name}/.lock can't be written: {error.strerror}") from error
        print(f"The file system of {name} knows no locks. Make sure that no other process trains this run.", flush=True)
    update_status(run, process=os.getpid(), host=socket.gethostname())
    return lock


def is_running(run: Path) -> bool:
    """Return whether a process trains a run. Where the file system knows no locks, the answer is no."""
    if not (run / ".lock").exists():
        return False
    try:
        with lock_file(run / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # also, if the folder belongs to somebody else
        return False


def lock_file(path: Path) -> FileLock:
    # filelock's own replacement for missing locks is a file, which stays after a kill and would block the run.
    return FileLock(path, fallback_to_soft=False)
