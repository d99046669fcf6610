"""Signs of life: how workers notice that another worker has died, on this machine or on another one.

Optuna's own heartbeat compares the clocks of machines, waits forever for a worker that dies before its first heartbeat,
and prints a traceback if the database is away for a moment.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from mnist_lightning.use.sweep.record import DATABASE_ERRORS

INTERVAL, SILENCE = 5, 30  # seconds between two signs of life, and until a worker counts as dead
SIGN = "sign_of_life"  # an attribute of a running trial: a number that grows


@contextmanager
def signs_of_life(trial: Trial) -> Iterator[None]:
    """Give signs of life of a trial, from a thread of its own."""
    over = threading.Event()

    def give() -> None:
        for number in itertools.count():
            # A short failure of the database must not end the trial.
            with suppress(UpdateFinishedTrialError, *DATABASE_ERRORS):
                trial.set_user_attr(SIGN, number)
            if over.wait(INTERVAL):
                return

    thread = threading.Thread(target=give)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Watch:
    """Finds trials whose signs of life have stopped, by the clock of this process."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int | None], float] = {}  # when each sign of a trial was first seen

    def silent(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials that have given no new sign for too long."""
        now, signs = time.monotonic(), {(trial.number, trial.user_attrs.get(SIGN)): trial for trial in running}
        self._since = {sign: self._since.get(sign, now) for sign in signs}
        return [trial for sign, trial in signs.items() if now - self._since[sign] > SILENCE]
