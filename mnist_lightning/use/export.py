"""`export`: writes a trained network to a file that works without this project."""

import contextlib
import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from mnist_lightning.console import Parser
from mnist_lightning.errors import OutputError, first_cause, in_a_line
from mnist_lightning.files import written_whole
from mnist_lightning.use.page.document import document
from mnist_lightning.use.reader import DigitReader

IMAGES = {"dtype": "uint8", "shape": ["N", 28, 28], "values": "0..255, ink is 255 and background is 0, as in MNIST"}
SCORES = {"dtype": "float32", "shape": ["N", 10]}
PROBABILITIES = SCORES | {"values": "of the digits 0 to 9"}
INTERFACE = {"inputs": {"images": IMAGES}, "outputs": {"logits": SCORES, "probabilities": PROBABILITIES}}


def export(args: list[str]) -> None:
    """Write a network and its description, and print their names.

    Raises:
        UserError: There is no checkpoint, the format can't hold the network, or a file can't be written.
    """
    parser = Parser("export", "Write a network to a file that works without this project.")
    parser.add_argument(
        "output",
        metavar="FILE",
        type=Path,
        help=".pth for the tutorial's code, .html for a page to draw on, .onnx, or .pt2 for torch.export.",
    )
    parser.add_argument(
        "--ckpt_path", default="best", help="The network: best, last, a run folder, version_N or a file. Default: best"
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files.")
    options = parser.parse_args(args)
    description = options.output.with_name(f"{options.output.name}.json")
    parser.check_output(options.output, "FILE", FORMATS, options.overwrite)
    is_page = options.output.suffix.lower() == ".html"  # needs no .json, because the page names its run
    if not is_page:
        parser.check_output(description, "the description of FILE", [".json"], options.overwrite)
    reader = DigitReader.load(options.ckpt_path)
    content, interface = FORMATS[options.output.suffix.lower()](reader)
    with written_whole(options.output, "output") as partial:
        partial.write_bytes(content)
    print(f"Checkpoint: {reader.source['checkpoint']}")
    if is_page:
        print(f"Written:    {options.output}. Open it in a browser.")
        return
    with written_whole(description, "output") as partial:
        text = json.dumps({"file": options.output.name, **interface, **reader.source}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
    print(f"Written:    {options.output}, described in {description}")


def _state_dict(reader: DigitReader) -> tuple[bytes, dict[str, Any]]:
    file = io.BytesIO()
    torch.save(reader.network.state_dict(), file)
    pixels = f"(x / 255 - {reader.mean}) / {reader.std}, for x in {IMAGES['values']}"
    return file.getvalue(), {
        "format": "state_dict of the network, for torch.load",
        "inputs": {"images": {"dtype": "float32", "shape": ["N", 1, 28, 28], "values": pixels}},
        "outputs": {"logits": SCORES | {"values": "softmax(logits) are the probabilities of the digits 0 to 9"}},
    }


def _program(reader: DigitReader) -> tuple[bytes, dict[str, Any]]:
    file = io.BytesIO()
    torch.export.save(_traced(reader), file)
    return file.getvalue(), {"format": "ExportedProgram, for torch.export.load", **INTERFACE}


def _onnx(reader: DigitReader) -> tuple[bytes, dict[str, Any]]:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OutputError(f"ONNX files need {error.name}: pip install 'mnist-lightning[export]'", "output") from error
    traced = _traced(reader)
    try:
        with _quiet():
            program = torch.onnx.export(
                traced, input_names=["images"], output_names=["logits", "probabilities"], verbose=False
            )
    except Exception as error:  # users can write networks
        reason = in_a_line(first_cause(error))  # the outer errors give advice
        raise OutputError(
            f"ONNX can't hold the network ({reason}); expected a .pt2 or a .pth file", "output"
        ) from error
    assert program is not None  # it is None only if a file is named
    return program.model_proto.SerializeToString(), {"format": "ONNX", **INTERFACE}


def _page(reader: DigitReader) -> tuple[bytes, dict[str, Any]]:
    _traced(reader)  # raises a clear error if torch can't follow the network
    with _quiet():
        return document(reader), {}


def _traced(reader: DigitReader) -> torch.export.ExportedProgram:
    """Trace what a network computes, for any number of images.

    Raises:
        OutputError: torch can't follow the network, or would change its logits.
    """
    two = torch.zeros(2, 28, 28, dtype=torch.uint8)  # with one image, torch would fix N to 1
    three = (torch.arange(3 * 28 * 28) % 256).to(torch.uint8).view(3, 28, 28)
    try:
        with _quiet():
            program = torch.export.export(reader, (two,), dynamic_shapes=[{0: torch.export.Dim("N")}])
            same = torch.allclose(program.module()(three)[0], reader(three)[0], rtol=1e-3, atol=1e-3)
        reason = "the exported network gives other logits, for example because it uses random numbers"
    except Exception as error:  # users can write networks
        same, reason = False, _reason(error)
    if not same:
        raise OutputError(
            f"torch.export can't follow the network ({reason}); a .pth file can hold any network", "output"
        )
    return program


def _reason(error: Exception) -> str:
    """Return in one line what torch can't follow, and where. torch's own message has a page of advice."""
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = "the images decide which steps it computes"
    elif "your code specialized it to be a constant" in str(error):
        reason = "it fixes the number of images"
    else:
        reason = in_a_line(str(error) or repr(error))
    others = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{Path(places[-1].filename).name}, line {places[-1].lineno}: {reason}" if places else reason


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's messages. If torch fails, it prints all steps up to the error."""
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


FORMATS: dict[str, Callable[[DigitReader], tuple[bytes, dict[str, Any]]]] = {
    ".pth": _state_dict,
    ".onnx": _onnx,
    ".pt2": _program,
    ".html": _page,
}
