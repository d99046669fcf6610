"""The page's JavaScript computes what torch computes, or `export` refuses the network."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BEST, DATA, ROOT, load
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning import DigitReader, LeNet, archive
from mnist_lightning.cli import main
from mnist_lightning.errors import OutputError
from mnist_lightning.networks import ConvNet
from mnist_lightning.use.export import FORMATS
from mnist_lightning.use.page.graph import Constants, steps_of

SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { compute, unpack } from "./engine.js";

const { steps, constants } = JSON.parse(readFileSync("data.json"));
const [images, tensors] = [readFileSync("images"), unpack(constants)];
const logits = [];
for (let i = 0; i < images.length; i += 784) {
  const results = compute(steps, tensors, images.subarray(i, i + 784));
  logits.push(...results.at(-2).data); // the last step is the softmax
}
writeFileSync("logits", Float32Array.from(logits));
"""


def in_node(data: str, images: Tensor, folder: Path) -> Tensor:
    """Return the logits that a page computes for images, `(N, 10)`. The data are those of the page, in JSON."""
    assert shutil.which("node"), "Node.js is not installed: apt-get install nodejs"
    shutil.copy(ROOT / "mnist_lightning/use/page/engine.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "data.json").write_text(data)
    (folder / "images").write_bytes(images.numpy().tobytes())
    (folder / "logits.js").write_text(SCRIPT)
    subprocess.run(["node", "logits.js"], cwd=folder, check=True)
    return torch.from_numpy(np.fromfile(folder / "logits", dtype=np.float32)).view(-1, 10)


def data_of_page(reader: DigitReader) -> str:
    page = FORMATS[".html"](reader)[0].decode()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return found[1]


def in_torch(reader: DigitReader, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([reader(batch)[0] for batch in images.split(500)])


@pytest.mark.slow
def test_lenet_gives_the_same_logits_for_all_test_images(good: Path, tmp_path: Path) -> None:
    reader, (images, _) = DigitReader.load(good), archive.read(DATA, "test")
    assert len(images) == 10_000
    difference = (in_node(data_of_page(reader), images, tmp_path) - in_torch(reader, images)).abs().max().item()
    print(f"largest difference: {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "count"), [(0.0, 200), (0.75, 30)])
def test_convnet_gives_the_same_logits(shift: float, count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ConvNet(shift=shift)
    images = archive.read(DATA, "test")[0][:count]
    network.train()
    for batch in images.split(50) * 3:
        network((batch[:, None] / 255 - 0.1) / 0.3)  # the mean and variance of each batch normalization change
    reader = DigitReader(network, 0.1, 0.3)
    difference = (in_node(data_of_page(reader), images, tmp_path) - in_torch(reader, images)).abs().max().item()
    print(f"largest difference: {difference:.1e}")
    assert difference < 1e-4


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def batch_norm(affine: bool) -> nn.Module:
    layer = nn.BatchNorm2d(4, affine=affine)
    for tensor in [*layer.parameters(), layer.running_mean, layer.running_var]:
        nn.init.uniform_(tensor, 0.5, 2)
    return layer


def columns(x: Tensor) -> Tensor:
    return x[:, :, :, [3, 0, 3]]


# The layers see the four channels of a convolution, (1, 4, 28, 28).
KNOWN: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: nn.Conv2d(4, 6, (5, 3), stride=(2, 3)),
    "padding": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1)),
    "padding, strides and dilation": lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(3, 2), dilation=(3, 2)),
    "the same size": lambda: nn.Conv2d(4, 6, 5, padding="same", bias=False),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "a group for each channel": lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "max pool": lambda: nn.MaxPool2d((3, 2), stride=(2, 3), padding=1),
    "max pool with dilation": lambda: nn.MaxPool2d(3, stride=1, dilation=2),
    "max pool over the edge": lambda: nn.MaxPool2d(3, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d((2, 3), padding=1),
    "average pool without padding": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average pool with a divisor": lambda: nn.AvgPool2d(3, 2, padding=1, divisor_override=5),
    "global average": lambda: nn.AdaptiveAvgPool2d(1),
    "batch norm": lambda: batch_norm(True),
    "batch norm without weights": lambda: batch_norm(False),
    "batch norm of features": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 784, affine=False)),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "dropout": lambda: nn.Dropout(0.5),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 784, 7)),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 784, 7, bias=False)),
    "numbers": lambda: Layer(lambda x: (2 - x * 3 + 1) / 4),
    "add": lambda: Layer(lambda x: x + x[:, [1]]),
    "subtract": lambda: Layer(lambda x: x - x.mean((2, 3), keepdim=True)),
    "multiply": lambda: Layer(lambda x: x.mean(1, keepdim=True) * x),
    "divide": lambda: Layer(lambda x: x / (x.mean((-3, -1), keepdim=True).sigmoid() + 1)),
    "mean without the axis": lambda: Layer(lambda x: x.mean((1, 2))),
    "rows": lambda: Layer(lambda x: x[:, :, 3:20:2]),
    "the middle": lambda: Layer(lambda x: x[..., 2:-2, -26:26]),
    "chosen columns": lambda: Layer(columns),
    "edges repeated": lambda: nn.ReplicationPad2d(2),
}


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer)
    size = layers.eval()(torch.zeros(1, 1, 28, 28)).numel()
    return nn.Sequential(layers, Layer(lambda x: x.reshape(-1, size)), nn.Linear(size, 10))


def check(layer: nn.Module, folder: Path) -> None:
    reader, constants = DigitReader(network(layer)), Constants()
    images = archive.read(DATA, "test")[0][:10]
    steps = steps_of(torch.export.export(reader, (images[:1],)), constants)
    logits = in_node(json.dumps({"steps": steps, "constants": constants.packed()}), images, folder)
    assert torch.allclose(logits, in_torch(reader, images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", KNOWN.values(), ids=list(KNOWN))
def test_a_layer_gives_the_same_logits(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    check(layer(), tmp_path)


# Operations that are close to known ones. A page may refuse them, but it may not give other logits.
UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "softmax of each column": lambda: Layer(lambda x: x.softmax(2)),
    "softmax of features": lambda: Layer(lambda x: x.flatten(1).softmax(1)),
    "two indices": lambda: Layer(lambda x: x[:, [0, 1], [2, 3]]),
    "whole numbers": lambda: Layer(lambda x: (x * 10).long().float()),
    "half precision": lambda: Layer(lambda x: x.half().float()),
    "add with a factor": lambda: Layer(lambda x: torch.add(x, x, alpha=2)),
    "transposed": lambda: Layer(lambda x: x.transpose(1, 2)),
    "expanded": lambda: Layer(lambda x: x[:, :1].expand(-1, 3, -1, -1)),
    "average pool over the edge": lambda: nn.AvgPool2d(3, ceil_mode=True),
    "a transposed convolution": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2),
    "zeros around": lambda: nn.ZeroPad2d(2),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm of this batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "max": lambda: Layer(lambda x: x.amax((2, 3))),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "mean of all": lambda: Layer(lambda x: x - x.mean()),
    "division of whole numbers": lambda: Layer(lambda x: torch.div(x, 0.3, rounding_mode="floor")),
    "batches of products": lambda: Layer(lambda x: x @ x),
    "a maximum and its place": lambda: Layer(lambda x: sum(F.max_pool2d(x, 2, return_indices=True))),
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", UNUSUAL.values(), ids=list(UNUSUAL))
def test_an_unusual_layer_gives_the_same_logits_or_is_refused(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    try:
        check(layer(), tmp_path)
    except OutputError as error:
        assert "which a page can't compute" in str(error)


class Cumulative(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.cumsum(2))


def test_a_network_with_an_unknown_operation_is_refused(trained: Path, workplace: Path) -> None:
    shutil.copytree(trained, "lightning_logs")
    content = load(BEST)
    content["hyper_parameters"]["network"]["class_path"] = "test_page_engine.Cumulative"
    torch.save(content, BEST)
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["export", "digits.html", "--ckpt_path=best"])
    # Python prints a text as code, and ends with 1.
    assert re.search(
        r"the network uses cumsum, which a page can't compute; export an \.onnx file", str(stop.value.code)
    )
    assert sorted(Path().rglob("*")) == before


def test_a_page_is_one_small_file(trained: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, "lightning_logs")
    before = set(Path().rglob("*"))
    main(["export", "digits.html"])
    assert capsys.readouterr().out.splitlines() == [
        f"Checkpoint: {BEST}",
        "Written:    digits.html. Open it in a browser.",
    ]
    assert set(Path().rglob("*")) - before == {Path("digits.html")}
    assert Path("digits.html").stat().st_size <= 400_000
