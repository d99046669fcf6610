"""`runs`: lists the runs of a folder, from their files and without importing torch."""

import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_lightning.console import Parser, table
from mnist_lightning.errors import in_a_line
from mnist_lightning.runs import folders

COLUMNS: dict[str, Callable[[Any], str]] = {
    "run": str,
    "started": str,
    "network": str,
    "epochs": str,
    "val/acc": lambda value: f"{value:.4f}",
    "test/acc": lambda value: f"{value:.4f}",
    "size": lambda value: f"{value / 1e6:.1f} MB",
    "state": str,
}


def list_runs(args: list[str]) -> None:
    """Print one line for each run."""
    parser = Parser("runs", "List runs, with their best val/acc, and their test/acc if they were tested.")
    parser.add_argument("logs", nargs="?", type=Path, help="Folder of the runs. Default: lightning_logs")
    parser.add_argument("--sort", choices=list(COLUMNS), default="run", help="The column to sort by. Default: run")
    options = parser.parse_args(args)
    if options.logs and not options.logs.is_dir():
        parser.error(f"there is no folder {options.logs}")
    logs = options.logs or Path("lightning_logs")
    rows = [describe(run) for run in folders.list_runs(logs)]
    if not rows:
        print(f"There are no runs in {logs}.")
        return
    if options.sort != "run":  # the best and the newest come last, next to the prompt
        rows.sort(key=lambda row: (row[options.sort] is not None, row[options.sort]))
    cells = [list(COLUMNS)] + [
        [show(row[name]) if row[name] is not None else "" for name, show in COLUMNS.items()] for row in rows
    ]
    print(table(cells))


def describe(run: Path) -> dict[str, Any]:
    """Return the value of each column for a run, None where it is unknown."""
    status = folders.read_status(run)

    def known(key: str, kind: type) -> Any:  # a file can be damaged
        value = status.get(key)
        if not isinstance(value, kind):
            return None
        return in_a_line(value) if kind is str else value

    date = datetime.datetime.fromtimestamp(run.stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    size = 0
    for file in run.rglob("*"):
        with contextlib.suppress(OSError):  # a run that is being trained renames files
            size += file.stat().st_size if file.is_file() else 0
    return {
        "run": run.name,
        "started": known("started", str) or date,
        "network": known("network", str),
        "epochs": known("epochs", int),
        "val/acc": known("best_val_acc", float),
        "test/acc": known("test_acc", float),
        "size": size,
        "state": "running" if folders.is_running(run) else "stopped",
    }
