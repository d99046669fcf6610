"""Signals that stop a run: SIGTERM, which clusters send, and SIGINT, which Ctrl-C sends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals with a function, and restore the previous handlers at the end."""
    previous = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, previous_handler in previous.items():
            signal.signal(signum, previous_handler)


@contextmanager
def exit_at_once() -> Iterator[None]:
    """End the process at a signal, with the exit code that shells use: 130 or 143.

    Python would print a traceback for Ctrl-C, and Lightning would exit with 1.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    with handled_by(leave):
        yield


class Stopped(SystemExit):
    """A signal stopped a run, and the run is saved. The exit code is the one that shells use: 130 or 143.

    Args:
        signum: The signal.
        checkpoint: The file that the run was saved to.
    """

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint


class StopSignal:
    """Remembers the first signal, so that the current step can finish. A second signal ends the process at once.

    Lightning's own handlers exit with 0 (PL#19916), raise Ctrl-C in the middle of a step, and hang when one of
    several processes receives the signal (PL#20806).

    Attributes:
        received: The number of the signal, 0 before there is one.
    """

    def __init__(self) -> None:
        self.received = 0

    def watch(self) -> None:
        """Replace Lightning's handlers. Lightning sets them just before training, and removes them at the end."""
        for signum in SIGNALS:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for each in SIGNALS:
            # The system's handler: Python's do not run while this process waits for another process.
            signal.signal(each, signal.SIG_DFL)
