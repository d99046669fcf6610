"""Run folders: `lightning_logs/version_N`, each with all that a run left behind."""

import re
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


def list_runs(logs: Path) -> list[Path]:
    """Return the run folders in `logs`, oldest first."""
    runs = {
        int(match[1]): path
        for path in (logs.iterdir() if logs.is_dir() else ())
        if (match := re.fullmatch(r"version_(\d+)", path.name)) and path.is_dir()
    }
    return [runs[version] for version in sorted(runs)]


def of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies in none."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None
