"""`Study`: the trials of a sweep. Several processes, also on several machines, can work on one study."""

import gc
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import OutOfMemoryError

from mnist_lightning.errors import ArchiveError, OutputError, UserError, in_a_line
from mnist_lightning.files import written_whole
from mnist_lightning.use.sweep.search import PRUNERS, SAMPLERS, Search
from mnist_lightning.use.sweep.trial_run import TrialRun

KEPT = 5  # the best trials, which keep their checkpoints
HEARTBEAT, SILENCE = 5, 30  # seconds between two signs of life of a trial, and until it is given to another worker


class Study(NamedTuple):
    """The trials of a sweep.

    Attributes:
        record: Optuna's record of all trials.
        search: What is searched.
        folder: The folder of the runs.
        repeats: The number of runs of each trial. They differ in their seeds.
        size: The number of trials after which the sweep ends.
    """

    record: optuna.Study
    search: Search
    folder: Path
    repeats: int
    size: int

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.record.get_trials(deepcopy=False, states=states or None)

    def done(self) -> list[FrozenTrial]:
        """Return the trials that count. A trial that was stopped or killed does not: its settings are tried again."""
        return self.trials(TrialState.COMPLETE, TrialState.PRUNED)

    def best(self, count: int) -> list[FrozenTrial]:
        return best_of(self.trials(), count)

    def runs(self, trial: int) -> dict[Path, int]:
        """Return the run folders of a trial and their seeds. No other trial has them, on any machine."""
        numbers = range(trial * self.repeats, (trial + 1) * self.repeats)
        return {self.folder / f"version_{number}": self.search.seed + number for number in numbers}

    def work(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Run trials until the study is done.

        Args:
            goes_on: Is asked before each trial.
        """
        waits = False
        while goes_on() and len(self.done()) < self.size:
            self._fail_trials_of_dead_workers()
            if self.trials(TrialState.WAITING) or self._count_before(math.inf) < self.size:
                self._run_trial()
                continue
            if not waits:
                print("Waiting for the trials of other workers", flush=True)
            waits = True
            time.sleep(1)

    def _fail_trials_of_dead_workers(self) -> None:
        optuna.storages.fail_stale_trials(self.record)
        for trial in self.trials(TrialState.RUNNING):
            # Killed before its first sign of life. Optuna would wait for it forever.
            started = trial.datetime_start
            if not trial.params and started and time.time() - started.timestamp() > SILENCE:
                self.record.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _count_before(self, number: float) -> int:
        """Return how many trials with lower numbers count, or will count."""
        trials = self.trials(TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.number < number for trial in trials)

    def _run_trial(self) -> None:
        trial, start = self.record.ask(), time.perf_counter()
        score, state, note = None, TrialState.FAIL, ""
        # `Study.optimize` would leave a trial that a signal stops as running.
        with get_heartbeat_thread(trial._trial_id, self.record._storage):
            try:
                if self._count_before(trial.number) < self.size:  # otherwise, two workers have asked for the last trial
                    # Each trial has a seed of its own: workers must not choose alike, nor a sweep that goes on.
                    self.record.sampler = SAMPLERS[self.search.sampler](seed=self.search.seed + trial.number)
                    score = self._score(trial, self.search.suggest(trial))
                    state = TrialState.COMPLETE
            except optuna.TrialPruned as error:
                state, note = TrialState.PRUNED, str(error)
            except UpdateFinishedTrialError:
                note = "given to another worker"  # because this process was suspended for a while
            except BaseException:  # a signal, a full disk, or an error in the user's network
                self.record.enqueue_trial(
                    self.trials()[trial.number].system_attrs.get("fixed_params", {}) | trial.params
                )
                self.record.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                raise
        told = self.record.tell(trial, score, state, skip_if_finished=True)
        self._remove_checkpoints()
        if told.params:
            self._print_line(told, time.perf_counter() - start, note)

    def _score(self, trial: Trial, settings: dict[str, Any]) -> float:
        """Train with some settings, and return the mean of the best `val/acc` of each run.

        Raises:
            TrialPruned: A run was hopeless, has diverged, or can't be trained.
        """
        scores: list[float] = []
        steps = itertools.count()

        def is_hopeless(score: float) -> bool:
            trial.report(score, next(steps))
            return trial.should_prune()

        for folder, seed in self.runs(trial.number).items():
            gc.collect()  # or the images of several earlier runs stay in memory
            try:
                run = TrialRun(self.search.base, settings | {"seed_everything": seed}, folder, is_hopeless)
                run.train()
            except (OutputError, ArchiveError):
                raise
            except (UserError, OutOfMemoryError) as error:
                raise optuna.TrialPruned(in_a_line(error)) from error
            if run.scores.stopped:
                raise optuna.TrialPruned("pruned")
            scores.append(run.scores.best)
        trial.set_user_attr("scores", scores)
        return mean(scores)

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of all trials that are over, except the best ones."""
        trials = self.trials()  # read once: the best trial of another worker may end in between
        kept = [trial.number for trial in best_of(trials, KEPT)]
        for trial in trials:
            if trial.state.is_finished() and trial.number not in kept:
                for run in self.runs(trial.number):
                    shutil.rmtree(run / "checkpoints", ignore_errors=True)

    def _print_line(self, trial: FrozenTrial, seconds: float, note: str) -> None:
        cells = [f"{len(self.done()):3} of {self.size}", f"trial {trial.number}"]
        cells += [f"val/acc {value:.4f}" for value in trial.values or ()]
        cells += [f"best {best.value:.4f}" for best in self.best(1)]
        cells += [f"{short(key)} {shown(value)}" for key, value in trial.params.items()]
        print("  ".join([*cells, f"{seconds:.1f} s", note]).rstrip(), flush=True)


def best_of(trials: list[FrozenTrial], count: int) -> list[FrozenTrial]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: trial.values[0], reverse=True)[:count]


def database_in(folder: Path) -> str:
    """Return the URL of the database of trials in a folder. Make it, if there is none.

    SQLite commits each table by itself. A kill would leave a database without the index that keeps names unique.
    """
    file = folder / "trials.db"
    with FileLock(folder / ".lock"):
        if not file.exists():
            with written_whole(file) as partial:
                storage = optuna.storages.RDBStorage(f"sqlite:///{partial.absolute()}")
                storage.remove_session()
                storage.engine.dispose()
    return f"sqlite:///{file.absolute()}"


def open_record(url: str, name: str, pruner: str) -> optuna.Study:
    """Open Optuna's record of trials in a database, or make it.

    Raises:
        UserError: The database can't be used.
    """
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")  # `_run_trial` sends it
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for attempts_left in (2, 1, 0):
        try:
            storage = optuna.storages.RDBStorage(
                url.replace("postgresql://", "postgresql+psycopg://"),
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
                heartbeat_interval=HEARTBEAT,
                grace_period=SILENCE,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
            return optuna.create_study(
                storage=storage, pruner=PRUNERS[pruner](), study_name=name, direction="maximize", load_if_exists=True
            )
        except Exception as error:  # of Optuna, SQLAlchemy or a driver
            if not attempts_left:
                raise UserError(f"the storage can't be used: {in_a_line(error)}", "storage") from error
            time.sleep(1)  # another machine may be making the tables: PostgreSQL then refuses to make them
    raise AssertionError  # for the type checker


def short(key: str) -> str:
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
