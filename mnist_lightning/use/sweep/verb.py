"""`sweep`: searches for better settings. Each trial is a run in the folder of the sweep, `lightning_logs/sweep_N`."""

import argparse
import hashlib
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import stdev

import yaml
from filelock import FileLock

from mnist_lightning.console import Parser, program, silence, table
from mnist_lightning.errors import OutputError, UserError, first_cause, in_a_line
from mnist_lightning.files import written_whole
from mnist_lightning.runs import configuration

try:
    import optuna
    import optuna.visualization as plots
    import plotly  # noqa: F401
    from optuna.exceptions import StorageInternalError
    from optuna.trial import FixedTrial
    from sqlalchemy import make_url

    from mnist_lightning.use.sweep.search import Search
    from mnist_lightning.use.sweep.study import KEPT, Study, database_in, open_record, short, shown
    from mnist_lightning.use.sweep.trial_run import TrialRun, check
except ImportError as error:
    raise UserError(f"a sweep needs {error.name}: pip install 'mnist-lightning[sweep]'") from error


def sweep(args: list[str]) -> None:
    """Run the trials of a sweep that are not done yet, and print the best settings.

    Raises:
        UserError: The file or the storage can't be used, or no trial has finished.
    """
    parser = Parser("sweep", "Search for better settings. To go on with a sweep, type the same line again.")
    parser.add_argument("file", metavar="FILE", type=Path, help="What to search, such as configs/sweep.yaml.")
    parser.add_argument("--trials", type=int, help="Number of trials. Default: as in FILE")
    parser.add_argument("--repeats", type=int, default=1, help="Seeds of each trial: their mean counts. Default: 1")
    parser.add_argument("--workers", type=int, default=1, help="Processes on this machine. Default: 1")
    parser.add_argument("--storage", metavar="URL", help="For several machines: postgresql://USER:PASSWORD@HOST/NAME")
    parser.add_argument("--worker_of", type=int, help=argparse.SUPPRESS)  # the process that has started this one
    options = parser.parse_args(args)
    for name in ("trials", "repeats", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least 1")
    silence()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    search = Search.read(options.file)
    is_worker = options.worker_of is not None
    own = {} if is_worker else check(search, options.file)
    study = open_study(search, options.repeats, options.trials or search.trials, options.storage, own)
    more = f"Continue:   {program()} sweep {shlex.join(args)}"
    try:
        if is_worker:
            return study.work(goes_on=lambda: os.getppid() == options.worker_of)
        print(f"Sweep:      {study.folder}, {len(study.done())} of {study.size} trials are done", flush=True)
        if options.workers > 1:
            start_workers(args, options.workers)
        else:
            study.work()
        if len(study.done()) < study.size:
            raise SystemExit(1)  # the workers have said why
        print(report(study))
    except StorageInternalError as error:
        raise UserError(f"the storage can't be used: {in_a_line(first_cause(error))}.\n{more}") from error
    except SystemExit:
        if not is_worker:
            print(f"\n{len(study.done())} of {study.size} trials are done.\n{more}")
        raise


def open_study(search: Search, repeats: int, size: int, storage: str | None, own: dict[str, object]) -> Study:
    """Open the study that the same line has made before, or make it.

    Args:
        search: What is searched.
        repeats: The number of runs of each trial.
        size: The number of trials.
        storage: The database of the trials, None for a file in the folder of the sweep.
        own: Settings of the base for the first trial, so that the best trial is not worse than the base.

    Raises:
        UserError: The storage can't be used, or does not know the runs in the folder.
    """
    what = search._asdict() | {"base": configuration.read(search.base), "repeats": repeats}
    content = yaml.safe_dump({key: value for key, value in what.items() if key != "trials"}, sort_keys=False)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    # A database that can't be reached leaves no folder behind.
    record = open_record(storage, name, search.pruner) if storage else None
    folder = find_folder(content + (f"storage: {without_password(storage)}\n" if storage else ""))
    record = record or open_record(database_in(folder), name, search.pruner)
    study = Study(record, search, folder, repeats, size)
    if not study.trials():
        if any(folder.glob("version_*")):
            raise UserError(f"{folder} has runs of trials that the storage does not know; move that folder", "storage")
        if own:
            record.enqueue_trial(own)
    return study


def without_password(storage: str) -> str:
    return make_url(storage).render_as_string(hide_password=True)


def find_folder(content: str) -> Path:
    """Return the folder of a sweep. Make it, unless the same line has made it before.

    Args:
        content: All that the sweep does. The folder keeps it as `search.yaml`.
    """
    logs = Path("lightning_logs")
    try:
        logs.mkdir(exist_ok=True)
        with FileLock(logs / ".sweep.lock"):
            files = [logs / f"sweep_{number}/search.yaml" for number in range(len([*logs.iterdir()]) + 1)]
            for file in files:
                if file.is_file() and file.read_text() == content:
                    return file.parent
            file = next(file for file in files if not file.parent.exists())
            file.parent.mkdir()
            file.write_text(content)
            return file.parent
    except OSError as error:
        raise OutputError(f"{logs} can't be written: {error.strerror}") from error


def start_workers(args: list[str], count: int) -> None:
    """Run the trials in several processes, each with its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", "mnist_lightning", "sweep", *args, f"--worker_of={os.getpid()}"]
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
    # In a session of their own: Ctrl-C in a terminal would reach them twice, and the second one ends a run unsaved.
    workers = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.wait()
    except SystemExit as stop:
        for worker in workers:
            worker.send_signal(int(str(stop.code)) - 128)
        for worker in workers:
            worker.wait()
        raise


def report(study: Study) -> str:
    """Write `best.yaml` and the picture. Return the five best trials, and what to type next.

    Raises:
        UserError: No trial has finished.
    """
    best, folder = study.best(KEPT), study.folder
    if not best:
        raise UserError(f"none of the trials in {folder} has finished; try other ranges")
    settings = study.search.suggest(FixedTrial(best[0].params))
    (run, seed), *_ = study.runs(best[0].number).items()
    cli = TrialRun(study.search.base, settings | {"seed_everything": seed}, run)
    with written_whole(folder / "best.yaml") as partial:
        partial.write_text(cli.parser.dump(cli.config, skip_none=False))
    drawings = (plots.plot_optimization_history, plots.plot_slice)
    figures = [draw(study.record, target_name="val/acc") for draw in drawings]
    parts = [figure.to_html(full_html=False, include_plotlyjs=figure is figures[0]) for figure in figures]
    with written_whole(folder / "sweep.html") as partial:
        partial.write_text("".join(parts), encoding="utf-8")
    rows = [["trial", "val/acc", "sd", *map(short, best[0].params), "run"]]
    for trial in best:
        scores, values = trial.user_attrs["scores"], map(shown, trial.params.values())
        spread = f"{stdev(scores):.4f}" if len(scores) > 1 else "?"
        run = next(iter(study.runs(trial.number)))
        rows.append([str(trial.number), f"{trial.value:.4f}", spread, *values, str(run)])
    lines = [table(rows)]
    if len(best) > 1:
        weights = optuna.importance.get_param_importances(study.record)
        lines.append("Importance: " + ", ".join(f"{short(key)} {weight:.0%}" for key, weight in weights.items()))
    lines += [
        f"Picture:    {folder / 'sweep.html'}",
        f"Train best: {program()} fit --config {folder / 'best.yaml'}",
        f"See curves: tensorboard --logdir {folder}",
    ]
    return "\n".join(lines)
