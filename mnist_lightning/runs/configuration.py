"""Configurations: the YAML that `--config` names, checked before it is used."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from mnist_lightning.errors import ConfigurationError

LARGEST = 100_000  # bytes of a file, and values after all aliases are followed


def read(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file.

    Raises:
        ConfigurationError: The file can't be read, has no settings, repeats a key, or has too many values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigurationError(f"{path} is too large for settings: more than {LARGEST // 1000} kB")
        settings = load(content.decode())
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not a YAML file: it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: {problem.splitlines()[0]}") from error
    if settings is None or settings == "":
        raise ConfigurationError(f"{path} is empty; expected settings such as `seed_everything: 1`")
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path} is not a YAML file of settings; expected lines such as `seed_everything: 1`")
    return settings


def load(text: str) -> Any:
    """Parse YAML as jsonargparse does, and refuse what PyYAML accepts silently.

    PyYAML keeps the last of repeated keys. It follows aliases, and nine lines of aliases can make a billion values.

    Raises:
        yaml.YAMLError: The text is not YAML, a key is repeated, or there are too many values.
    """
    try:
        nodes, count = [yaml.compose(text, Loader=yaml.SafeLoader)], 0
    except RecursionError:
        raise yaml.YAMLError("the values are nested too deeply for a configuration") from None
    while nodes:
        node, count = nodes.pop(), count + 1
        if count > LARGEST:
            raise yaml.YAMLError(f"aliases (`*name`) make more than {LARGEST:,} values")
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                nodes += [key, value]
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in lines:
                    problem = f"{key.value} is already set in line {lines[key.value]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        elif node and "\0" in node.value:
            raise yaml.MarkedYAMLError(problem="a text has a zero byte", problem_mark=node.start_mark)
    try:
        return _load(text)
    except TypeError:  # jsonargparse expects it of a single key
        raise yaml.YAMLError("a key is not text") from None


_load = get_loader("yaml")
set_loader("yaml", load, (yaml.YAMLError,))
