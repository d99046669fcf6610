"""A trained network as a file that needs nothing of this project."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.files import written_whole
from mnist_lightning.output import OutputError

IMAGES = {"dtype": "uint8", "shape": ["N", 28, 28], "values": "0..255, ink 255 on 0, as in MNIST"}
SCORES = {"dtype": "float32", "shape": ["N", 10]}


class DigitReader(nn.Module):
    """A network with all that lies around it: uint8 images in, logits and calibrated probabilities out.

    Args:
        network: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out.
        mean: subtracted from pixels in 0..1.
        std: what is left is divided by it.
        temperature: logits are divided by it before the softmax.
    """

    def __init__(self, network: nn.Module, mean: float, std: float, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.mean = mean
        self.std = std
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, float32 `(N, 10)`, for uint8 images `(N, 28, 28)`."""
        pixels = images.unsqueeze(1).float().div(255).sub(self.mean).div(self.std)
        logits = self.network(pixels)
        return logits, (logits / self.temperature).softmax(1)


def write(model: DigitClassifier, data: MNISTDataModule, path: Path, source: Mapping[str, Any]) -> None:
    """Write a network in the format of a path's suffix, and beside it, as JSON, what it is.

    Args:
        model: the classifier of the network, with its calibration.
        data: knows how images are normalised.
        path: with one of the suffixes in `FORMATS`.
        source: what else the JSON file is to say.

    Raises:
        OutputError: a package that the format needs is not installed.
        OSError: a file can't be written.
    """
    calibration = model.calibration
    temperature = calibration.temperature if calibration else 1.0
    reader = copy.deepcopy(DigitReader(model.network, data.mean, data.std, temperature)).eval()
    # Of plain memory format, with tensors that share nothing, as other programs expect them.
    for tensor in [*reader.parameters(), *reader.buffers()]:
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    with written_whole(path) as partial:
        interface = FORMATS[path.suffix.lower()](reader, partial)
    kind = type(model.network)
    description = {
        "file": path.name,
        **interface,
        "network": f"{kind.__module__}.{kind.__qualname__}",
        "arguments": model.hparams.get("network", {}).get("init_args", {}),  # none are known of a notebook's
        # Of the last validation: its step, how many images, the share that was read right, and what was chosen there.
        "validation": asdict(calibration) if calibration else None,
        **source,
    }
    with written_whole(description_of(path)) as partial:
        partial.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def description_of(path: Path) -> Path:
    """Return where the description of an exported network is written."""
    return path.with_name(f"{path.name}.json")


def _write_state_dict(reader: DigitReader, path: Path) -> dict[str, Any]:
    with path.open("wb") as file:  # torch itself makes a RuntimeError of what the disk refuses
        torch.save(reader.network.state_dict(), file)
    pixels = f"(x / 255 - {reader.mean}) / {reader.std}, for x in {IMAGES['values']}"
    probabilities = f"softmax(logits / {reader.temperature})"
    return {
        "format": "state_dict of the network, for torch.load",
        "inputs": {"images": {"dtype": "float32", "shape": ["N", 1, 28, 28], "values": pixels}},
        "outputs": {"logits": SCORES | {"values": f"probabilities of digits 0 to 9 are {probabilities}"}},
    }


def _write_program(reader: DigitReader, path: Path) -> dict[str, Any]:
    with path.open("wb") as file:  # torch wants a name that ends in .pt2
        torch.export.save(_program(reader), file)
    return {"format": "ExportedProgram, for torch.export.load", **_interface()}


def _write_onnx(reader: DigitReader, path: Path) -> dict[str, Any]:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OutputError(f"ONNX files need {error.name}: pip install 'mnist-lightning[export]'") from error
    interface = _interface()
    program = torch.onnx.export(
        _program(reader), input_names=list(interface["inputs"]), output_names=list(interface["outputs"]), verbose=False
    )
    assert program is not None  # it is where no file is named
    program.save(path)
    return {"format": "ONNX", **interface}


def _program(reader: DigitReader) -> torch.export.ExportedProgram:
    two = torch.zeros(2, 28, 28, dtype=torch.uint8)  # for a single image, torch would take 1 for a constant
    try:
        return torch.export.export(reader, (two,), dynamic_shapes=[{0: torch.export.Dim("N")}])
    except Exception as error:  # a network of one's own can be more than torch can follow
        reason = str(error).strip().partition("\n")[0]
        raise OutputError(f"torch.export can't follow the network ({reason}); a .pth file takes any") from error


def _interface() -> dict[str, Any]:
    return {
        "inputs": {"images": IMAGES},
        "outputs": {"logits": SCORES, "probabilities": SCORES | {"values": "of digits 0 to 9, calibrated"}},
    }


FORMATS: dict[str, Callable[[DigitReader, Path], dict[str, Any]]] = {
    ".pth": _write_state_dict,
    ".onnx": _write_onnx,
    ".pt2": _write_program,
}
