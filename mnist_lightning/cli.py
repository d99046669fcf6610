"""The command line: a table from verbs to functions, and one place that prints errors."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from mnist_lightning.runs import signals

CHECKPOINT = {"checkpoint": "--ckpt_path"}
ROOT = {"root": "--data.root"}
RUN = {
    **CHECKPOINT,
    "config": "--config",
    **{name: f"--model.{name}" for name in ("network", "optimizer", "lr_scheduler")},
    **{name: f"--model.network.{name}" for name in ("blocks", "dropout", "jitter", "shift")},
    **{name: f"--data.{name}" for name in ("root", "batch_size", "val_size", "std", "fade")},
    **{f: f"--data.distortion.{f}" for f in ("rotation", "scale", "shear", "translation", "elastic")},
    "every_n_steps": "--checkpoint.every_n_steps",
}


class Verb(NamedTuple):
    """A verb: the first word of a command.

    Attributes:
        function: Takes the arguments after the verb. It is imported only if the verb is typed, because Lightning
            and torchvision take seconds to import.
        summary: What the verb does.
        flags: The flag of each argument that an error can name.
    """

    function: str
    summary: str
    flags: Mapping[str, str] = {}


VERBS = {
    "fit": Verb("mnist_lightning.runs.verbs:fit", "Train a network, or continue a run.", RUN),
    "validate": Verb("mnist_lightning.runs.verbs:validate", "Measure a checkpoint on the validation images.", RUN),
    "test": Verb("mnist_lightning.runs.verbs:test", "Measure a checkpoint on the test images.", RUN),
    "predict": Verb(
        "mnist_lightning.use.predict:predict",
        "Read digits in photos, or in the test images.",
        {**CHECKPOINT, **ROOT, "output": "--output", "show": "--show"},
    ),
    "export": Verb("mnist_lightning.use.export:export", "Write a network to a file for other programs.", CHECKPOINT),
    "sweep": Verb(
        "mnist_lightning.use.sweep.verb:sweep",
        "Search for better settings.",
        {**RUN, "config": "FILE", "storage": "--storage"},
    ),
    "compare": Verb("mnist_lightning.use.compare:compare", "Compare two networks on the test images.", ROOT),
    "runs": Verb("mnist_lightning.runs.listing:list_runs", "List the runs in lightning_logs."),
}


def main(args: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: The verb and its arguments. By default, the arguments of this process.

    Raises:
        SystemExit: The arguments, or the files that they name, can't be used. A message says why. A signal, or output
            that can't be written, also ends the program so.
    """
    with signals.exit_at_once():
        # This file imports other modules only here and in `run`: without the handlers, Ctrl-C prints a traceback.
        from mnist_lightning.console import lasting_output

        with lasting_output():
            run(sys.argv[1:] if args is None else args)


def run(args: list[str]) -> None:
    """Run one verb, and turn an error into a message.

    Args:
        args: The verb and its arguments.
    """
    from mnist_lightning.console import program
    from mnist_lightning.errors import UserError

    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        print(usage(program()))
        return
    if name not in VERBS:
        sys.exit(f"{program()}: error: {name} is not a verb; expected one of {', '.join(VERBS)}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the user's network: the console script leaves this folder out
    verb = VERBS[name]
    try:
        with imported(verb.function) as function:
            function(rest)
    except UserError as error:
        flag = verb.flags.get(error.argument or "")
        sys.exit(f"{program()} {name}: error: {f'{flag}: ' if flag else ''}{error}")


@contextmanager
def imported(name: str) -> Iterator[Callable[[list[str]], None]]:
    """Import a function. While it runs, Python's garbage collector leaves out all that was imported before.

    Lightning and torch make 400,000 objects that stay until the process ends. Python would search them for garbage
    again and again, while it imports and while a network is trained.

    Args:
        name: The module and the function, with a colon between.
    """
    import gc
    import pkgutil

    gc.disable()
    try:
        function = pkgutil.resolve_name(name)
    finally:
        gc.enable()
    gc.collect()  # frees the garbage of the import: what is frozen is not freed
    gc.freeze()
    try:
        yield function
    finally:
        gc.unfreeze()


def usage(program: str) -> str:
    """Return the list of verbs.

    Args:
        program: What the user typed to start this program.
    """
    verbs = "\n".join(f"  {name:10}{verb.summary}" for name, verb in VERBS.items())
    return f"""usage: {program} VERB [FLAGS]

{verbs}

Flags of a verb: {program} fit --help

Examples:
  {program} fit --trainer.max_epochs 5
  {program} test --ckpt_path best
  {program} predict photo.jpg"""
