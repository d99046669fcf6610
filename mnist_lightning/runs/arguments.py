"""`RunParser`: the flags of `fit`, `validate` and `test`, with a help and with errors that a person can read."""

import argparse
import difflib
import pkgutil
import re
import textwrap
from collections.abc import Mapping
from inspect import signature
from typing import Any, NoReturn, Union, get_args, get_origin

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from mnist_lightning.console import usage_error
from mnist_lightning.errors import in_a_line
from mnist_lightning.settings import KINDS

OPTIMIZER = "--model.optimizer.lr"  # an argument of the optimizer's class: jsonargparse does not list it
WIDTH = 100  # columns of the help
INDENT = 34
HELP = {"-h", "--help", "--help_all"}

DESCRIPTIONS = {
    "fit": "Train a network on MNIST, or continue a run. `--model.optimizer.lr 0.1` sets an argument of the optimizer. "
    "Flags of a network, a schedule or a callback have the same form.",
    "validate": "Measure a checkpoint on the validation images of its run.",
    "test": "Measure a checkpoint on the 10,000 test images, and add the result to its run.",
}
CKPT_PATH = {
    "fit": "The checkpoint to continue from: best, last, a run folder, version_N or a file.",
    "validate": "The checkpoint to measure: best, last, a run folder, version_N or a file (default: best).",
    "test": "The checkpoint to measure: best, last, a run folder, version_N or a file (default: best).",
}

OWNERS = {
    "model": "DigitClassifier",
    "data": "MNISTDataModule",
    "data.distortion": "Distortion",
    "trainer": "Lightning's Trainer, a selection",
}
# Help texts for flags of Lightning.
WORDS = {
    "config": "A YAML file with settings. Later flags and files win over earlier ones.",
    "seed_everything": "The seed of the order of the images, and of all random numbers.",
    "trainer.default_root_dir": "The folder in which `lightning_logs` is made.",
    "trainer.fast_dev_run": "Run only this number of batches of each split, to find bugs.",
    "trainer.limit_train_batches": "Training batches in an epoch: a number, or a share in 0.0..1.0.",
    "trainer.limit_val_batches": "Validation batches: a number, or a share in 0.0..1.0.",
    "trainer.limit_test_batches": "Test batches: a number, or a share in 0.0..1.0.",
    "trainer.max_steps": "Training steps after which `fit` stops, -1 for no limit.",
}
_OURS = "config ckpt_path data.root data.batch_size"
_TRAINER = "accelerator devices strategy precision callbacks logger profiler default_root_dir"
# The flags that `--help` lists, below headings.
SHOWN = {
    "fit": {
        "This program": "config ckpt_path seed_everything checkpoint.every_n_steps figures stop_at_nan",
        "model": "network optimizer lr_scheduler lr_interval",
        "data": "root batch_size val_size mean std fade",
        "data.distortion": "rotation scale shear translation elastic",
        "trainer": f"max_epochs max_steps max_time {_TRAINER} gradient_clip_val accumulate_grad_batches "
        "limit_train_batches val_check_interval fast_dev_run",
    },
    "validate": {"This program": _OURS, "trainer": f"{_TRAINER} limit_val_batches"},
    "test": {"This program": f"{_OURS} figures", "trainer": f"{_TRAINER} limit_test_batches"},
}


# The flags that take the name of a class, and what the class must be.
CLASSES: dict[str, type] = {
    **{f"model.{name}": kinds[0] for name, (_, kinds) in KINDS.items()},
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}


class RunParser(LightningArgumentParser):
    """Makes flags from the signatures of classes, as LightningCLI does.

    Attributes:
        shown: The flags that `--help` lists, by group. `--help_all` lists all, with every class that can be named.
    """

    shown: Mapping[str, str] = {}

    def add_lightning_class_args(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class, so that 1 stays an int where a type has both int and float.

        Lightning runs 1 batch for 1, and all batches for 1.0. jsonargparse takes the first type that fits. Lightning
        writes `Optional[Union[int, float]]`, but a cache in `typing` returns `Union[float, int]` if that came first.
        """
        names = super().add_lightning_class_args(*args, **kwargs)
        for action in self._actions:
            kind = getattr(action, "_typehint", None)
            if get_origin(kind) is Union and int in get_args(kind) and float in get_args(kind):
                kinds = sorted(get_args(kind), key=lambda one: one is not int)
                action._typehint = Union[tuple(kinds)]  # type: ignore[attr-defined]  # noqa: UP007
        return names

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with a line that names the flag, what was found, and what was expected.

        jsonargparse would print the whole usage, and one line for each alternative of a type.
        """
        if not self.exit_on_error:  # an inner parser: its message becomes part of a longer one
            super().error(message, ex)
        message = _mistyped(message) or message
        message = re.sub(r"^Problems parsing config:", "--config is not a YAML file:", message)
        key = r"'(.+?)(?:\.class_path|\.init_args.*)?'"
        message = re.sub(
            rf"Group '(.+?)' does not accept option {key}", r"--config has an unknown key: --\1.\2", message
        )
        message = re.sub(rf"^Option {key} is not accepted", r"--config has an unknown key: --\1", message)
        message = re.sub(r'Parser key "(.+?)":', r"--\1:", message)
        message = re.sub(r"Expected an? (<class '(.+?)'>)?", r"expected \2", message).replace("typing.", "")
        message = re.sub(r"Type Callable.* callable class: |(Got|Given) value: Namespace.*", "", message)
        message = re.sub(r"^Unexpected config:.*", "--config is not a YAML file of settings", message)
        noise = r"Does not validate|Subtypes:|Errors:|expected NoneType|expected path but|Given value type|$"
        lines = [re.sub(r"^\s*(- )?", "", line) for line in message.splitlines()]
        message = " ".join(line for line in lines if not re.match(noise, line)).strip()
        message = re.sub(r"--([\w.]+): --(\w+):", r"--\1.\2:", message)
        message = re.sub(r"(expected \w+) expected dot import path string: \S+", r"\1", message)
        message = re.sub(r"expected dot import path string: (\S+)", r"expected a class, and found \1", message)
        message = re.sub(r"Option '(.+?)' is not accepted\.?", r"it has no argument \1", message)
        message = re.sub(r' in "<unicode string>", (line \d+).*', r"; see \1", message)
        message = re.sub(r"expected Literal\[(.+?)\]", r"expected \1", message)
        needs = r"(--[\w.]+): (?:expected list )?Problem with given class_path '[\w.]*?(\w+)': .* are required: (\w+).*"
        message = re.sub(needs, r"\2 also needs \1.\3", message)
        message = in_a_line(message, 500)  # a file can hold any text
        flags = [option for action in self._actions for option in action.option_strings]
        self.exit(2, usage_error(self.prog, message, [*flags, OPTIMIZER]))

    def format_help(self, formatter: Any = None) -> str:
        """Return the help for the flags that people use. jsonargparse's has more than a thousand lines (PL#20591)."""
        actions = {action.dest: action for action in self._actions}
        lines = [f"usage: {self.prog} [FLAGS]", "", *textwrap.wrap(self.description or "", WIDTH), ""]
        for group, names in self.shown.items():
            lines += [f"{group}:"] if " " in group else [f"{group}: arguments of {OWNERS[group]}"]
            for name in names.split():
                lines += _described(actions[name if " " in group else f"{group}.{name}"])
            lines.append("")
        return "\n".join([*lines, f"All flags: {self.prog} --help_all", ""])


class HelpAll(argparse.Action):
    """Prints the help of all flags."""

    def __init__(self, option_strings: list[str], **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help="Show all flags.")

    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        print(LightningArgumentParser.format_help(parser))  # jsonargparse's own
        parser.exit()


def as_list(value: Any) -> list[Any]:
    """Return an argument of the trainer as a list. It may be None, one object or a list."""
    return value.copy() if isinstance(value, list) else [] if value is None else [value]


def _mistyped(message: str) -> str | None:
    """Return a short message about an unknown class, or an unknown argument of a class. None for other messages."""
    flag = re.match(r'Parser key "([\w.]+)":', message)
    option = re.search(r"Option '(\w+)' is not accepted", message)
    owner = re.search(r"class_path[ =]'([\w.]+)'", message)
    name = re.search(r"dot import path string: ([A-Za-z_]\w*)$", message, re.MULTILINE)
    path = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if flag and option and owner:
        found, known = f"it has no argument {option[1]}", list(signature(pkgutil.resolve_name(owner[1])).parameters)
    elif flag and name and flag[1] in CLASSES and message.count("Parser key") == 1:  # not an argument of the class
        found, known = f"expected a class, and found {name[1]}", sorted(_subclasses(CLASSES[flag[1]]))
    elif flag and path:
        found, known = f"{path[1]} has no class {path[2]}", dir(pkgutil.resolve_name(path[1]))
    else:
        return None
    names = {word.lower(): word for word in known}
    close = difflib.get_close_matches(found.split()[-1].lower(), names, 1)
    return f"--{flag[1]}: {found}" + (f"; did you mean {names[close[0]]}?" if close else "")


def _subclasses(kind: type) -> set[str]:
    """Return the names of all imported subclasses that a user may name."""
    below: list[type] = kind.__subclasses__()
    return {one.__name__ for one in below if one.__name__[0] != "_"}.union(*(_subclasses(one) for one in below))


def _described(action: argparse.Action) -> list[str]:
    """Return the lines of a flag: its name, the first sentence of its help, and its default."""
    flag = next(option for option in action.option_strings if option.startswith("--") and not option.endswith("+"))
    text = " ".join(WORDS.get(action.dest, str(action.help)).replace("``", "").split())
    text = re.sub(r" \([^()]*\d{4}\)", "", text)  # references to papers
    sentence = re.match(r".*?\.(?=\s|$)|.*", text)[0]  # type: ignore[index]
    if isinstance(action.default, bool | int | float | str) and action.default != argparse.SUPPRESS:
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        sentence = f"{sentence.removesuffix('.')} (default: {default})."
    first, rest = f"  {flag} ".ljust(INDENT), " " * INDENT
    if len(first) > INDENT:
        return [first.rstrip(), *textwrap.wrap(sentence, WIDTH, initial_indent=rest, subsequent_indent=rest)]
    return textwrap.wrap(sentence, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
