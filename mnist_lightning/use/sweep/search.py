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

        def wrong(key: str, value: object, expected: str) -> ConfigurationError:
            return ConfigurationError(f"{path}: {key} is {in_a_line(value)}; expected {expected}")

        content = {"base": None, "search": None, **configuration.read(path)}
        if unknown := content.keys() - set(cls._fields):
            raise ConfigurationError(f"{path}: unknown key {min(unknown)}; expected {', '.join(cls._fields)}")
        for key, names in {"sampler": [*SAMPLERS], "pruner": [*PRUNERS]}.items():
            if content.get(key, names[0]) not in names:
                raise wrong(key, content[key], " or ".join(names))
        for key, (low, high) in {"trials": (1, 10**6), "seed": (0, 2**31)}.items():
            value = content.get(key, low)
            if type(value) is not int or not low <= value <= high:  # `true` is an int for Python
                raise wrong(key, value, f"{low} to {high}")
        if not isinstance(content["base"], str):
            raise wrong("base", content["base"], "a file such as fast.yaml")
        ranges = content["search"]
        if not isinstance(ranges, dict) or not any(isinstance(value, dict) for value in ranges.values()):
            raise ConfigurationError(f"{path}: search has no range; expected `data.batch_size: {{int: [32, 256]}}`")
        search = cls(**content | {"base": path.parent / content["base"]})
        configuration.read(search.base)
        for key, spec in ranges.items():
            if key in RESERVED:
                raise ConfigurationError(f"{path}: search: the sweep itself sets {key}")
            try:
                search.probes(key)
            except (KeyError, TypeError, ValueError) as error:
                expected = "a value, {float: [0, 1]}, {log_float: [0.01, 1]}, {int: [1, 5]} or {choice: [32, 64]}"
                raise wrong(f"search: {key}", spec, f"{expected}: {in_a_line(error)}") from error
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
            if not all(value is None or isinstance(value, bool | int | float | str) for value in values):
                raise ValueError("each choice must be a number, a text, true, false or null")
        else:
            low, high = values
            values = [low, high, low + (high - low) // 3 if kind == "int" else low + (high - low) / 3]
        return [self._suggest(FixedTrial({key: value}), key) for value in values or [None]]

    def own_settings(self, config: Namespace) -> dict[str, Any]:
        """Return the settings of the base that lie in their ranges.

        Args:
            config: The configuration of a run, with all defaults.
        """
        own = {}
        for key in (key for key, spec in self.search.items() if isinstance(spec, dict)):
            # A short name of a flag, or a value outside the range. Optuna warns of some of these values.
            with warnings.catch_warnings(action="error"), suppress(KeyError, TypeError, ValueError, UserWarning):
                self._suggest(FixedTrial({key: config[key]}), key)
                own[key] = config[key]
        return own

    def _suggest(self, trial: BaseTrial, key: str) -> Any:
        if not isinstance(spec := self.search[key], dict):
            return spec
        ((kind, values),) = spec.items()
        return RANGES[kind](trial, key, *values)
