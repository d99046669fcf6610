"""Files that no program would write: real ones that are damaged, and real data that is changed."""

import io
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, wholes: Callable[[], list[bytes]]) -> bytes:
    """A real file with some bits flipped, and with parts cut out, inserted, repeated or moved."""
    data = bytearray(draw(st.sampled_from(wholes())))
    for _ in range(draw(st.integers(1, 4))):
        start, stop = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        stop = min(stop, start + draw(st.sampled_from([1, 4, 100, len(data)])))
        match draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat", "zero"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:stop]
            case "end":
                del data[start:]
            case "insert":
                data[start:start] = draw(st.binary(max_size=20))
            case "repeat":
                data[start:start] = data[start:stop] * draw(st.integers(1, 3))
            case _:
                data[start:stop] = bytes(stop - start)
    return bytes(data)


def deep(levels: int) -> list[Any]:
    """A list in a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels: int) -> list[Any]:
    """A small object that looks like 2^levels values."""
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


NAMES = ["", "x", "a\nb", "\x1b[31mred", "é" * 300, "class_path", "init_args", "state", "last_epoch", "step", "items"]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**63, 10**40, math.nan, math.inf, -math.inf, 0.5, 1e-320, 1e308]),
    st.integers(),
    st.floats(),
    st.sampled_from([*NAMES, "no.such", "builtins.exec", "torch.nn.Linear", "torch.optim.SGD", "os:system", "\ud800"]),
    st.text(max_size=20),
    st.builds(lambda make: make(), st.sampled_from([list, dict, lambda: [1], lambda: {"a": [[]]}, lambda: deep(200)])),
)
ANYTHING = st.one_of(
    PLAIN,
    st.builds(torch.zeros, st.sampled_from([(), (0,), (1,), (3,), (10, 49), (49, 10), (10,), (1, 1, 1)])),
    st.sampled_from([torch.full((10,), math.nan), torch.ones(10, dtype=torch.int64), torch.ones(1).expand(10, 49)]),
    st.sampled_from([torch.ones(10, 49, dtype=torch.cfloat), torch.eye(10).to_sparse(), torch.ones(10, device="meta")]),
    st.sampled_from([torch.float16, torch.Size([1]), {1, 2}, (), b"bytes", bytearray(3), 1j]),
    st.builds(lambda make: make(), st.sampled_from([OrderedDict, lambda: {1: 2}, lambda: {None: 1}])),
    st.builds(doubled, st.sampled_from([15, 60])),
)


@st.composite
def changed(draw: st.DrawFn, wholes: Callable[[], list[Any]], values: st.SearchStrategy[Any] = PLAIN) -> Any:
    """A copy of nested data with some values replaced, removed or moved, and some names changed."""
    whole = copied(draw(st.sampled_from(wholes())))
    for _ in range(draw(st.integers(1, 3))):
        parent, place = None, whole
        while isinstance(place, dict | list) and place and (parent is None or draw(st.integers(0, 5))):
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            parent, place = place, place[key]
        if parent is None:
            return draw(values)
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add", "move"])):
            case "replace":
                parent[key] = draw(values)
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from([*NAMES, 3, None]))] = parent.pop(key)
            case "move":
                parent[key] = draw(st.sampled_from(list(parent.values() if isinstance(parent, dict) else parent)))
            case _ if isinstance(parent, dict):
                parent[draw(st.sampled_from(NAMES))] = draw(values)
    return whole


def copied(value: Any) -> Any:
    """Copy dictionaries and lists, and nothing else."""
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    return [copied(item) for item in value] if isinstance(value, list) else value


def packed(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def repacked(whole: bytes, pickled: bytes) -> bytes:
    """A checkpoint with another pickle in it, and the right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()
