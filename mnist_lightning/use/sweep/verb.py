"""`sweep`: searches for better settings. Each trial is a run in the folder of the sweep, `lightning_logs/sweep_N`."""

import argparse
import hashlib
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import make_url

from mnist_lightning.console import Parser, program, silence
from mnist_lightning.errors import OutputError, UserError
from mnist_lightning.files import written_whole
from mnist_lightning.runs import configuration, folders
from mnist_lightning.use.sweep.record import FILE, errors_of, open_record
from mnist_lightning.use.sweep.report import report
from mnist_lightning.use.sweep.search import Search
from mnist_lightning.use.sweep.study import Study
from mnist_lightning.use.sweep.trial_run import check


def sweep(args: list[str]) -> None:
    """Run the trials of a sweep that are not done yet, and print the best settings.

    Raises:
        UserError: The file or the database can't be used, a worker was killed, or no trial has finished.
    """
    parser = Parser("sweep", "Search for better settings. To go on with a sweep, type the same line again.")
    parser.add_argument("file", metavar="FILE", type=Path, help="What to search, such as configs/sweep.yaml.")
    parser.add_argument("--trials", type=int, help="Number of trials. Default: as in FILE")
    parser.add_argument("--repeats", type=int, default=1, help="Seeds of each trial: their mean counts. Default: 1")
    parser.add_argument("--workers", type=int, default=1, help="Processes on this machine. Default: 1")
    parser.add_argument("--storage", metavar="URL", help="For several machines: postgresql://USER@HOST/NAME")
    parser.add_argument("--worker_of", type=int, help=argparse.SUPPRESS)  # the process that has started this one
    options = parser.parse_args(args)
    for name in ("trials", "repeats", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least 1")
    silence()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    search = Search.read(options.file)
    own = {} if options.worker_of else check(search, options.file)
    study, url = open_study(search, options.repeats, options.trials or search.trials, options.storage)
    with errors_of(url):
        if options.worker_of:
            return study.work(goes_on=lambda: os.getppid() == options.worker_of)
        if own:
            study.record.enqueue_trial(own, skip_if_exists=True)  # so the best trial is not worse than the base
        done = len(study.done())
        print(f"Sweep:      {study.folder}, {done} of {max(done, study.size)} trials are done", flush=True)
        more = f"Continue:   {program()} sweep {shlex.join(args)}"
        try:
            codes = run_workers(args, options.workers) if options.workers > 1 else study.work()
        except SystemExit:
            print(f"\n{more}")
            raise
        if len(study.done()) < study.size:
            raise UserError(f"the workers ended with the exit codes {codes}, before all trials were done.\n{more}")
        print(report(study))


def open_study(search: Search, repeats: int, size: int, storage: str | None) -> tuple[Study, str]:
    """Open the study that the same line has made before, or make it.

    Args:
        search: What is searched.
        repeats: The number of runs of each trial.
        size: The number of trials.
        storage: The URL of the database of the trials, None for a file in the folder of the sweep.

    Returns:
        The study, and the URL of its database.

    Raises:
        UserError: The database can't be used, or does not know the runs in the folder.
    """
    identity: dict[str, Any] = search._asdict() | {"base": configuration.read(search.base), "repeats": repeats}
    del identity["trials"]  # a sweep can go on with more trials
    content = yaml.safe_dump(identity, sort_keys=False)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    if storage is not None:
        record = open_record(storage, name, search.pruner)  # first: a wrong URL leaves no folder behind
        content += f"storage: {make_url(storage).render_as_string()}\n"  # without the password
    logs = Path("lightning_logs")
    try:
        logs.mkdir(exist_ok=True)
        with folders.lock_file(logs / ".sweep.lock"):
            folder = find_folder(logs, content.encode())
            if storage is None:
                # Under the lock: after a kill, the database may lack the index that prevents a second study.
                storage = f"{FILE}{folder / 'trials.db'}"
                record = open_record(storage, name, search.pruner)
    except OSError as error:
        raise OutputError(f"{error.filename or logs} can't be used: {error.strerror}") from error
    study = Study(record, search, folder, repeats, size)
    with errors_of(storage):
        is_new = not study.trials()
    if is_new and any(folder.glob("version_*")):
        raise UserError(f"{folder} has runs of trials that its database does not know; move that folder")
    return study, storage


def find_folder(logs: Path, content: bytes) -> Path:
    """Return the folder of a sweep in `logs`. Make it, unless the same line has made it before.

    Args:
        logs: The folder of all sweeps.
        content: All that the sweep does. The folder keeps it as `search.yaml`.
    """
    files = [logs / f"sweep_{number}/search.yaml" for number in range(len(os.listdir(logs)) + 1)]
    for file in files:
        if file.is_file() and file.read_bytes() == content:
            return file.parent
    file = next(file for file in files if not file.exists())
    file.parent.mkdir(exist_ok=True)  # a kill may have left an empty folder
    with written_whole(file) as partial:
        partial.write_bytes(content)
    return file.parent


def run_workers(args: list[str], count: int) -> list[int]:
    """Run the trials in several processes, each with its share of the cores. Return their exit codes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", "mnist_lightning", "sweep", *args, f"--worker_of={os.getpid()}"]
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
    # Each worker has its own session. Otherwise Ctrl-C would reach it twice, and the second one ends a run unsaved.
    workers = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(count)]
    try:
        return [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
