"""Signals that stop the program: Ctrl-C sends SIGINT, clusters send SIGTERM, and a closed terminal sends SIGHUP.

`main` imports this file before its handlers are installed, so it imports only small modules.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))

Handler = Callable[[int, FrameType | None], None]


def handle(handler: Handler) -> dict[signal.Signals, object]:
    """Handle the signals with a function, and return the previous handlers.

    If SIGHUP is ignored, it stays ignored: `nohup` starts the program so.
    """
    signals = [signum for signum in SIGNALS if signum != HANGUP or signal.getsignal(signum) != signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in signals}


def end_at_the_next(signum: int) -> None:
    """Let the next signal end the process at once, now that a first one is handled.

    The next SIGHUP is ignored: a terminal that closes sends it, and the terminal's shell sends it again. The SIGTERM of
    a logout can follow.
    """
    if HANGUP:
        signal.signal(HANGUP, signal.SIG_IGN)
    if signum != HANGUP:
        for each in (signal.SIGINT, signal.SIGTERM):
            # The system's handler: Python's do not run while this process waits for another process.
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Handle the signals with a function. At the end, restore the previous handlers of the signals that it handles."""
    previous = handle(handler)
    try:
        yield
    finally:
        for signum, previous_handler in previous.items():
            if signal.getsignal(signum) == handler:
                signal.signal(signum, previous_handler)  # type: ignore[arg-type]


@contextmanager
def exit_at_once() -> Iterator[None]:
    """End the process at a signal, with the exit code that shells use: 129, 130 or 143.

    Python would print a traceback for Ctrl-C, and Lightning would exit with 1.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        end_at_the_next(signum)
        while frame:
            # An imported module can swallow an exception, or print a traceback. There is nothing to clean up yet.
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(128 + signum)
            frame = frame.f_back
        raise SystemExit(128 + signum)

    with handled_by(leave):
        yield


class Stopped(SystemExit):
    """A signal stopped a run, and the run is saved. The exit code is the one that shells use: 129, 130 or 143.

    Args:
        signum: The signal.
        checkpoint: The file that the run was saved to.
    """

    def __init__(self, signum: int, checkpoint: "Path") -> None:
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
        handle(self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        end_at_the_next(signum)
