"""What a user reads in the terminal, beside Lightning's own words."""

import errno
import logging
import re
import sys
import threading
import warnings
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

PROGRAM = "python -m mnist_lightning"


def fail(message: str) -> NoReturn:
    """End the process with a message and exit code 1."""
    sys.exit(f"{PROGRAM}: error: {message}")


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error says that there is no room for a file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def silence() -> None:
    """Take out what a user of this program can't act on."""
    # TensorBoard writes from a thread, where a full disk leaves a traceback; it raises the same error to us.
    threading.excepthook = lambda args: None if is_full_disk(args.exc_value) else threading.__excepthook__(args)
    # Advertisements for two packages, and how Lightning counts the steps of a schedule.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.search("Tip:|^Loading `train_dataloader`", record.getMessage())
    )
    for message in (
        # Lightning 2.6 under a newer torch.
        r".*LeafSpec.* is deprecated",
        # How torch draws the network's graph for TensorBoard.
        r"`torch\.jit\.trace(_method)?` is deprecated",
        # A checkpoint that is tested, or that a new run starts from: no callback has anything to restore.
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        r"The dirpath has changed from",
        # A run that goes on, with a ModelCheckpoint of the user's.
        r"Checkpoint directory .* exists and is not empty",
        # The table of layers estimates bytes, for which it takes 32 bits.
        r"Precision .* is not supported by the model summary",
    ):
        warnings.filterwarnings("ignore", message)


class Parser(LightningArgumentParser):
    """A parser that says in a line what is wrong: the flag, what was found, what was expected.

    jsonargparse prints the whole usage, and every alternative of a type on a line of its own.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one of its inner parsers, whose message becomes part of a longer one
            super().error(message, ex)
        message = re.sub(r"^Problems parsing config:", "--config is not a YAML file:", message)
        message = re.sub(r'Parser key "(.+?)":', r"--\1:", message)
        message = message.replace("are required: export.", "are required: --")
        message = re.sub(r"Expected an? (<class '(.+?)'>)?", r"expected \2", message).replace("typing.", "")
        message = re.sub(r"Type Callable.* callable class: |(Got|Given) value: Namespace.*", "", message)
        noise = r"Does not validate|Subtypes:|Errors:|expected NoneType|expected path but|Given value type|$"
        lines = [re.sub(r"^\s*(- )?", "", line) for line in message.splitlines()]
        message = " ".join(line for line in lines if not re.match(noise, line))
        self.exit(2, f"{PROGRAM}: error: {message}\nSee {PROGRAM} VERB --help\n")
