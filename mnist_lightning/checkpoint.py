"""Reads checkpoints safely: a file is checked before it is used, and none of its content is run.

This file belongs to the core because `DigitClassifier.load_from_checkpoint` needs it. `runs/` writes checkpoints.
"""

import contextlib
import io
import mimetypes
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mnist_lightning.errors import CheckpointError, in_a_line
from mnist_lightning.settings import leaves

LARGEST = 4 * 2**30  # bytes; a network of 1 GB takes 3 GB together with the two averages of Adam
VERSION = r"([2-9]|[1-9][0-9])(\.[0-9]+)+((a|b|rc|\.dev|\.post)[0-9]+)*"  # of Lightning, from 2.0 on
LOOPS = {"fit_loop", "validate_loop", "test_loop", "predict_loop"}


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that Lightning wrote, with all tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, is damaged, or holds more than plain data.
    """
    path = Path(path)
    if re.match(r"\w\w+:/", str(path)):
        url = str(path).replace(":/", "://")  # Path removes one slash
        raise CheckpointError(f"{url} is a URL; expected a file. Download it first, if you trust its source")
    if not os.path.isfile(path):  # unlike `path.is_file()`, it takes a name of any length
        raise CheckpointError(f"{path} is not a file; expected best, last, a run folder, version_N or a checkpoint")
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > LARGEST:
                raise CheckpointError(f"{path} is too large: {size:,} bytes; expected at most {LARGEST:,}")
            if not zipfile.is_zipfile(opened):  # torch would read it as a pickle in its old format
                raise CheckpointError(f"{path} {_other_kind(path)}")
            opened.seek(0)
            file = io.BytesIO(opened.read(size))  # the bytes that are checked are the bytes that are used
        _check_records(file, path)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it did not write
            # With this argument, torch ignores TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        _check_content(content, path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:  # its message advises to load the file without this protection
        found = _forbidden_names(file)
        reason = f"holds more than plain data{found}, and could run code; it was not loaded"
        raise CheckpointError(f"{path} {reason}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can fail in any way
        reason = in_a_line(str(error) or repr(error))
        raise CheckpointError(f"{path} can't be read as a checkpoint: {reason}") from error
    return content


def _other_kind(path: Path) -> str:
    """Return what a file is that is not a checkpoint, as the end of a message."""
    if path.suffix.lower() in (".onnx", ".pt2"):
        kind = "an exported network"
    elif (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
        kind = "a picture"
    else:
        return "is not a checkpoint, or only a part of one"
    return f"is {kind}; expected best, last, a run folder, version_N or a checkpoint of `fit`"


def _check_records(file: BinaryIO, path: Path) -> None:
    """Make sure that a ZIP file has the records of a checkpoint, and that none is damaged.

    Raises:
        CheckpointError: It has other records, or a checksum is wrong.
    """
    with zipfile.ZipFile(file) as records:
        found = records.infolist()
        names = {record.filename.partition("/")[2] for record in found}
        if "constants.pkl" in names:
            raise CheckpointError(f"{path} is a TorchScript program; expected a checkpoint of `fit`")
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} {_other_kind(path)}")
        # torch stores each record once, and does not compress it. A small file could be unpacked to any size.
        size = file.seek(0, os.SEEK_END)
        if any(record.compress_type for record in found) or sum(record.file_size for record in found) > size:
            raise CheckpointError(f"{path} is not a checkpoint: its records are compressed, or overlap")
        damaged = records.testzip()  # compares each CRC-32; torch loads most flipped bits without an error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of its record {in_a_line(damaged)} is wrong")


def _forbidden_names(file: BinaryIO) -> str:
    """Return the classes and functions in a pickle that are not plain data, in brackets. Nothing is imported."""
    file.seek(0)
    with contextlib.suppress(Exception):  # other kinds of unknown data have no names
        if names := sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)):
            return f" ({in_a_line(', '.join(names))})"
    return ""


def _check_content(content: Any, path: Path) -> None:
    """Make sure that a file holds what Lightning and this program use, with the right types.

    Raises:
        CheckpointError: Something is missing, or has another type.
    """
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path} holds only the weights of a network; expected a checkpoint of `fit`, which also holds settings. "
            "In Python, load these weights with network.load_state_dict"
        )
    program = f"{path} is not a checkpoint of Lightning"
    for key in ("state_dict", "pytorch-lightning_version"):  # Lightning needs both
        if type(content) is not dict or key not in content:
            raise CheckpointError(f"{program}: it has no {key}")
    for key in ("state_dict", "loops", "hyper_parameters", "datamodule_hyper_parameters"):
        value = content.get(key, {})
        # A pickle can replace the methods of an OrderedDict. `_metadata` is torch's.
        if not isinstance(value, dict) or getattr(value, "__dict__", {}).keys() - {"_metadata"}:
            raise CheckpointError(f"{program}: its {key} is not a mapping")
    for name, weight in content["state_dict"].items():
        if not isinstance(name, str) or not (isinstance(weight, Tensor) or name.endswith("_extra_state")):
            raise CheckpointError(f"{program}: its state_dict holds more than tensors")
    version = content["pytorch-lightning_version"]
    if not isinstance(version, str) or not re.fullmatch(VERSION, version):
        found = in_a_line(version) if isinstance(version, str) else "of an unknown version"
        raise CheckpointError(f"{path} was written by Lightning {found}; expected version 2 or newer")
    loops = content.get("loops", {name: {} for name in LOOPS})
    if loops.keys() != LOOPS or not all(isinstance(loop, dict) for loop in loops.values()):
        raise CheckpointError(f"{program}: its loops are unknown")
    for _ in leaves({key: value for key, value in content.items() if key != "state_dict"}):
        pass  # `leaves` finds values that Lightning and torch would follow for ever
    progress = [value for loop in loops.values() for key, value in loop.items() if str(key).endswith("progress")]
    for count in leaves([progress, content.get("global_step", 0), content.get("epoch", 0)]):
        if not isinstance(count, int) or not 0 <= count < 2**31:
            raise CheckpointError(f"{program}: one of its counts is {in_a_line(count)}")


def load_weights(model: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """Load weights into a network or a classifier.

    Args:
        model: Receives the weights.
        weights: The tensor of each name.
        path: The checkpoint that the weights come from, for the message.

    Raises:
        CheckpointError: The weights belong to another network, or are not finite.
    """
    try:
        model.load_state_dict(weights)
    except Exception as error:  # users can write networks
        reason = str(error).partition("\n")[2] or str(error)  # below a heading, one line for each kind of difference
        raise CheckpointError(f"the weights in {path} don't fit the network: {in_a_line(reason)}") from error
    if name := not_finite(model):
        raise CheckpointError(f"{path} can't be used: its weights {name} are not finite")


def not_finite(model: nn.Module) -> str | None:
    """Return the name of weights that hold NaN or infinity, None if there are none.

    Logits can hide such weights: a ReLU turns minus infinity into 0. A buffer may hold infinity, as masks do.
    """
    wrong = [(name, weights.isfinite().logical_not()) for name, weights in model.named_parameters()]
    wrong += [(name, buffer.isnan()) for name, buffer in model.named_buffers()]
    return next((name for name, found in wrong if found.any()), None)
