"""`Search`: which settings a sweep tries, from a file such as `configs/sweep.yaml`."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from jsonargparse import Namespace
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial

from mnist_lightning.errors import ConfigurationError, in_a_line
from mnist_lightning.runs import configuration

RANGES: dict[str, Callable[..., Any]] = {
    "float": lambda trial, key, low, high: trial.suggest_float(key, low, high),
    "log_float": lambda trial, key, low, high: trial.suggest_float(key, low, high, log=True),
    "int": lambda trial, key, low, high: trial.suggest_int(key, low, high),
    "choice": lambda trial, key, *values: trial.suggest_categorical(key, values),
}
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {"tpe": TPESampler, "random": RandomSampler}
PRUNERS: dict[str, Callable[[], BasePruner]] = {"median": MedianPruner, "none": NopPruner}
RESERVED = {"seed_everything", "ckpt_path", "config", "trainer.logger", "trainer.default_root_dir"}
LARGEST = 2**53  # The largest end of a range. Optuna computes with floats, which skip whole numbers above this one.

# The values that each key of the file accepts. For Python, `true` is an int, so these checks compare types.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "base": ("a file such as fast.yaml", lambda value: isinstance(value, str) and value != ""),
    "sampler": (" or ".join(SAMPLERS), lambda value: value in [*SAMPLERS]),
    "pruner": (" or ".join(PRUNERS), lambda value: value in [*PRUNERS]),
    "trials": ("1 to 1000000", lambda value: type(value) is int and 1 <= value <= 10**6),
    "seed": (f"0 to {2**31}", lambda value: type(value) is int and 0 <= value <= 2**31),
}


class Search(NamedTuple):
    """What a sweep does.

    Attributes:
        base: The configuration to improve.
        search: For each flag of `fit`, its range, such as `{"int": [1, 5]}`, or one value for all trials.
        sampler: How settings are chosen.
        pruner: How hopeless trials are found.
        trials: The number of trials.
        seed: The seed of the first run. Each later run has the next one.
    """

    base: Path
    search: dict[str, Any]
    sampler: str = "tpe"
    pruner: str = "median"
    trials: int = 30
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file.

        Raises:
            ConfigurationError: The file can't be used. The message names the key.
        """
        content = {"base": None, "search": None, **configuration.read(path)}
        if unknown := content.keys() - set(cls._fields):
            raise ConfigurationError(f"{path}: unknown key {min(unknown)}; expected {', '.join(cls._fields)}")
        for key, (expected, is_right) in KEYS.items():
            if key in content and not is_right(content[key]):
                raise ConfigurationError(f"{path}: {key} is {in_a_line(content[key])}; expected {expected}")
        ranges = content["search"]
        if not isinstance(ranges, dict) or not any(isinstance(value, dict) for value in ranges.values()):
            raise ConfigurationError(f"{path}: search has no range; expected `data.batch_size: {{int: [32, 256]}}`")
        search = cls(**content | {"base": path.parent / content["base"]})
        configuration.read(search.base)
        for key, value in ranges.items():
            if key in RESERVED:
                raise ConfigurationError(f"{path}: search: the sweep itself sets {key}")
            try:
                search.probes(key)
            except (KeyError, TypeError, ValueError) as error:
                expected = "a value, {float: [0, 1]}, {log_float: [0.01, 1]}, {int: [1, 5]} or {choice: [32, 64]}"
                found = f"{path}: search: {key} is {in_a_line(value)}"
                raise ConfigurationError(f"{found}; expected {expected}: {in_a_line(error)}") from error
        return search

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Return the settings of a trial: flags of `fit` without dashes, and their values."""
        return {key: self._suggest(trial, key) for key in self.search}

    def probes(self, key: str) -> list[Any]:
        """Return values of a key that show whether its range is right: its choices, or its ends and one between.

        Raises:
            KeyError, TypeError, ValueError: The range is not of one of the four kinds.
        """
        if not isinstance(spec := self.search[key], dict):
            return [spec]
        ((kind, values),) = spec.items()
        if kind == "choice":
            kinds = (bool, int, float, str, type(None))
            if not isinstance(values, list) or not values or not all(isinstance(value, kinds) for value in values):
                raise ValueError("one or more choices are needed; each choice must be a number, a text, a bool or null")
        else:
            low, high = values
            numbers = (int,) if kind == "int" else (int, float)
            if not all(type(end) in numbers and abs(end) <= LARGEST for end in values):
                raise ValueError(f"both ends must be {'whole ' if kind == 'int' else ''}numbers, at most 2**53")
            values = [low, high, low + (high - low) // 3 if kind == "int" else low + (high - low) / 3]
        return [self._suggest(FixedTrial({key: value}), key) for value in values]

    def settings_of(self, config: Namespace) -> dict[str, Any]:
        """Return the settings of a configuration that lie in their ranges.

        Args:
            config: The configuration of a run, with all defaults.
        """
        inside = {}
        for key in (key for key, spec in self.search.items() if isinstance(spec, dict)):
            # Skip a short name of a flag, and a value outside the range. Optuna only warns of some values.
            with warnings.catch_warnings(action="error"), suppress(KeyError, TypeError, ValueError, UserWarning):
                self._suggest(FixedTrial({key: config[key]}), key)
                inside[key] = config[key]
        return inside

    def _suggest(self, trial: BaseTrial, key: str) -> Any:
        if not isinstance(spec := self.search[key], dict):
            return spec
        ((kind, values),) = spec.items()
        return RANGES[kind](trial, key, *values)
