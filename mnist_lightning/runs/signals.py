"""How a run is told to stop: SIGTERM, which launchers and clusters send, and SIGINT, which Ctrl-C sends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function handle the signals, and in the end those that did before."""
    previous = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler_before in previous.items():
            signal.signal(signum, handler_before)


@contextmanager
def exit_at_once() -> Iterator[None]:
    """Let a signal end the process with the exit code that a shell gives for it, 130 or 143.

    Python prints a traceback for Ctrl-C, and Lightning exits with 1.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    with handled_by(leave):
        yield


class Stopped(SystemExit):
    """A run that was told to stop has saved itself. The exit code is the shell's for the signal, 130 or 143.

    Args:
        signum: the signal.
        checkpoint: what was saved.
        code: the exit code, where it is another.
    """

    def __init__(self, signum: int, checkpoint: Path, code: int | None = None) -> None:
        super().__init__(128 + signum if code is None else code)
        self.signum = signum
        self.checkpoint = checkpoint


class StopSignal:
    """Notes the first signal, so that the step at hand can end. The second one ends the process at once.

    Lightning's own handling exits with 0 (PL#19916), raises Ctrl-C in the middle of a step, and hangs when one of
    several processes is told to stop (PL#20806).

    Attributes:
        received: the number of the signal, 0 before there is one.
    """

    def __init__(self) -> None:
        self.received = 0

    def watch(self) -> None:
        """Take the place of Lightning's handlers, which it sets last before it trains and takes away in the end."""
        for signum in SIGNALS:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for each in SIGNALS:
            # Not a handler of ours: while a process waits for another one, Python runs none.
            signal.signal(each, signal.SIG_DFL)
