"""Run folders: `lightning_logs/version_N`, each with all that a run left behind."""

import re
from collections.abc import Iterator
from pathlib import Path


class NoCheckpointError(Exception):
    """No run has the checkpoint that was asked for."""


def find_checkpoint(name: str, logs: Path) -> Path:
    """Return the checkpoint `best` or `last` of the newest run that has one.

    Lightning's own `last` looks only in the folder of the run that is about to start, finds nothing there, and
    trains from scratch or tests random weights (PL#18524); its `best` is forgotten with the process (PL#17312).

    Args:
        name: `best` or `last`.
        logs: the folder of the runs.

    Raises:
        NoCheckpointError: no run has one.
    """
    for run in reversed(list_runs(logs)):
        checkpoint = run / "checkpoints" / f"{name}.ckpt"
        if checkpoint.is_file():
            return checkpoint
    raise NoCheckpointError(f"no run in {logs} has a checkpoints/{name}.ckpt; train one first with `fit`")


def checkpoint_at(path: Path) -> Path:
    """Return the best checkpoint of a run folder, or the checkpoint itself that a path names.

    Raises:
        NoCheckpointError: there is none.
    """
    checkpoint = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise NoCheckpointError(
            f"{checkpoint} does not exist; expected a run folder with checkpoints/best.ckpt, or a checkpoint file"
        )
    return checkpoint


def list_runs(logs: Path) -> list[Path]:
    """Return the run folders in `logs`, oldest first."""
    folders = [path for path in (logs.iterdir() if logs.is_dir() else ()) if path.is_dir()]
    return sorted((path for path in folders if isinstance(version(path), int)), key=version)


def version(run: Path) -> int | str:
    """Return the N of a folder `version_N`, or the name of one that is called otherwise."""
    match = re.fullmatch(r"version_(\d+)", run.name)
    return int(match[1]) if match else run.name


def create_run(logs: Path) -> int:
    """Make the folder of a new run, and return its number. Runs that start at once each get their own."""
    while True:
        number = max((int(version(run)) for run in list_runs(logs)), default=-1) + 1
        try:
            (logs / f"version_{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        return number


def configurations(run: Path) -> list[Path]:
    """Return what a run was configured with, first to newest: `config.yaml`, and `config_2.yaml` ... if it went on."""
    first = [path for path in [run / "config.yaml"] if path.is_file()]
    later = {
        int(match[1]): path for path in run.glob("config_*.yaml") if (match := re.fullmatch(r"config_(\d+)", path.stem))
    }
    return first + [later[number] for number in sorted(later)]


def next_configuration(run: Path) -> Path:
    """Return where the next configuration of a run is to be written."""
    paths = configurations(run)
    if not paths:
        return run / "config.yaml"
    newest = paths[-1].stem.partition("_")[2] or "1"
    return run / f"config_{int(newest) + 1}.yaml"


def next_best(checkpoint: Path, logs: Path) -> Iterator[Path]:
    """Yield what could be used in place of a checkpoint: the newest ones of its run, then those of the newest runs."""
    run = of_checkpoint(checkpoint)
    others = [other for other in reversed(list_runs(logs)) if run is None or not other.samefile(run)]
    for folder in [run, *others] if run else others:
        found = [path for path in folder.glob("checkpoints/*.ckpt") if path.is_file() and not path.samefile(checkpoint)]
        yield from sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies in none."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" and configurations(folder.parent) else None
