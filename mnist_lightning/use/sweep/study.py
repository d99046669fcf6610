"""`Study`: the trials of a sweep. Several processes, also on several machines, can work on one study."""

import gc
import itertools
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import OutOfMemoryError

from mnist_lightning.errors import ArchiveError, OutputError, UserError, in_a_line
from mnist_lightning.use.sweep.life import SILENCE, Watch, signs_of_life
from mnist_lightning.use.sweep.record import DATABASE_ERRORS
from mnist_lightning.use.sweep.search import SAMPLERS, Search
from mnist_lightning.use.sweep.trial_run import TrialRun

KEPT = 5  # the best trials, which keep their checkpoints
ATTEMPTS = 3  # Settings that end so often with an error or a kill count as pruned. Otherwise, no sweep would end.
FAILURES = "failures"  # an attribute of a trial: how often its settings have failed before


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
        """Return the trials that count. Stopped and killed trials do not count."""
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
            goes_on: Says whether to go on. It is called before each trial.
        """
        self._remove_checkpoints()  # a killed process may have left some
        watch, waits = Watch(), False
        while goes_on() and len(self.done()) < self.size:
            for trial in watch.silent(self.trials(TrialState.RUNNING)):
                self._fail(trial.number, is_failure=True)
            if self.trials(TrialState.WAITING) or self._count_before(math.inf) < self.size:
                self._run_trial()
                continue
            if not waits:
                print(f"Waiting for the trials of other workers, or for {SILENCE} s if they were killed", flush=True)
            waits = True
            time.sleep(1)

    def _fail(self, number: int, is_failure: bool) -> None:
        """Tell that a trial has failed, and queue its settings, unless another worker has done this."""
        with suppress(UpdateFinishedTrialError, ValueError):
            trial = self.record.tell(number, state=TrialState.FAIL)
            # A trial that ended early may not have received all settings that it was queued with.
            settings = trial.system_attrs.get("fixed_params", {}) | trial.params
            self.record.enqueue_trial(settings, {FAILURES: trial.user_attrs.get(FAILURES, 0) + is_failure})

    def _count_before(self, number: float) -> int:
        """Return how many trials with lower numbers count, or will count."""
        trials = self.trials(TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.number < number for trial in trials)

    def _run_trial(self) -> None:
        """Run one trial. `Study.optimize` would leave a trial running that a signal stops."""
        trial, start = self.record.ask(), time.perf_counter()
        if self._count_before(trial.number) >= self.size:  # two workers have asked for the last trial
            self.record.tell(trial, state=TrialState.FAIL)
            return
        # Without it, two workers or a continued sweep could choose the same settings.
        self.record.sampler = SAMPLERS[self.search.sampler](seed=self.search.seed + trial.number)
        score, state, note = None, TrialState.FAIL, ""
        with signs_of_life(trial):
            try:
                settings = self.search.suggest(trial)
                if trial.user_attrs.get(FAILURES, 0) >= ATTEMPTS:
                    raise optuna.TrialPruned(f"given up: {ATTEMPTS} attempts were killed, or ended with an error")
                score, state = self._score(trial, settings), TrialState.COMPLETE
            except optuna.TrialPruned as error:
                state, note = TrialState.PRUNED, str(error)
            except UpdateFinishedTrialError:
                note = "given to another worker"  # because this process was suspended for a while
            except BaseException as error:  # an error in the user's network, a signal or a full disk
                self._fail(trial.number, is_failure=not isinstance(error, (SystemExit, UserError, *DATABASE_ERRORS)))
                raise
            told = self.record.tell(trial, score, state, skip_if_finished=True)
        self._remove_checkpoints()
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
                scores.append(run.train())
            except (OutputError, ArchiveError):
                raise
            except (UserError, OutOfMemoryError) as error:
                raise optuna.TrialPruned(in_a_line(error)) from error
            if run.scores.stopped:
                raise optuna.TrialPruned("pruned")
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


def short(key: str) -> str:
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
