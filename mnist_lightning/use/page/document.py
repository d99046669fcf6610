"""Writes the page: one HTML file with a network and everything that a browser needs to use it."""

import base64
import copy
import hashlib
import json
import re
from datetime import date
from importlib.resources import files
from string import Template
from typing import Any

import torch

from mnist_lightning.networks import ConvNet
from mnist_lightning.use import ink, photos
from mnist_lightning.use.page.graph import Constants, steps_of
from mnist_lightning.use.reader import DigitReader


def document(reader: DigitReader) -> bytes:
    """Return the page of a reader.

    Raises:
        OutputError: The page can't compute an operation of the network.
    """
    constants = Constants()
    quick = steps = _steps(reader, constants)
    one_view = copy.deepcopy(reader)
    if isinstance(one_view.network, ConvNet) and one_view.network.shift:
        one_view.network.shift = 0.0  # while a stroke goes on, one view is enough
        quick = _steps(one_view, constants)
    numbers = {name: value for name, value in vars(ink).items() if name.isupper() and isinstance(value, int | float)}
    data = {
        "steps": steps,
        "quick": quick,
        "constants": constants.packed(),
        "ink": numbers | {"WORKING_SIDE": photos.WORKING_SIDE},
        "threshold": reader.threshold,
        "about": _about(reader),
    }
    script, style = _source("page.js"), _source("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; worker-src blob:; img-src data:"
    )
    parts = {
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "worker": "".join(map(_source, ("engine.js", "planes.js", "ink.js", "worker.js"))),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no text can end the script element
    }
    return Template(_source("page.html")).substitute(parts).encode()


def _source(name: str) -> str:
    """Return a file of the page. The modules become one script, so `import` and `export` are removed."""
    text = files(__package__).joinpath(name).read_text("utf-8")
    return re.sub(r"^(import [^;]*;\n|export )", "", text, flags=re.MULTILINE) if name.endswith(".js") else text


def _steps(reader: DigitReader, constants: Constants) -> list[dict[str, Any]]:
    return steps_of(torch.export.export(reader, (torch.zeros(1, 28, 28, dtype=torch.uint8),)), constants)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _about(reader: DigitReader) -> str:
    """Return where the network comes from, and how good it is."""
    name = type(reader.network).__name__
    run = f" of {reader.source['run']}" if reader.source.get("run") else ""
    found = reader.calibration
    right = f" It reads {found.accuracy:.2%} of {found.images:,} validation images correctly." if found else ""
    return f"The network is {name}{run}.{right} Exported on {date.today()}."
