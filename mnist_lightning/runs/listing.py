"""`runs`: lists the runs of a folder, from their files and without importing torch."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_lightning.console import Parser
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
    parser.add_argument("logs", nargs="?", type=Path, default="lightning_logs", help="Folder of the runs.")
    parser.add_argument("--sort", choices=list(COLUMNS), default="run", help="The column to sort by. Default: run")
    options = parser.parse_args(args)
    rows = [describe(run) for run in folders.list_runs(options.logs)]
    if not rows:
        print(f"There are no runs in {options.logs}.")
        return
    if options.sort != "run":  # the best and the newest come last, next to the prompt
        rows.sort(key=lambda row: (row[options.sort] is not None, row[options.sort]))
    cells = [list(COLUMNS)] + [
        [show(row[name]) if row[name] is not None else "" for name, show in COLUMNS.items()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def describe(run: Path) -> dict[str, Any]:
    """Return the value of each column for a run, None where it is unknown."""
    status = folders.read_status(run)
    date = datetime.datetime.fromtimestamp(run.stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    return {
        "run": run.name,
        "started": status.get("started", date),
        "network": status.get("network"),
        "epochs": status.get("epochs"),
        "val/acc": status.get("best_val_acc"),
        "test/acc": status.get("test_acc"),
        "size": sum(file.stat().st_size for file in run.rglob("*") if file.is_file()),
        "state": "running" if folders.is_running(run) else "stopped",
    }
