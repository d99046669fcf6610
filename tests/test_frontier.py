"""`benchmarks/frontier.py`: recipes of others, resumable measurements, and the picture of error against seconds."""

import itertools
import json
import random
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn
from torchvision.datasets import MNIST

sys.path.insert(0, str(ROOT / "benchmarks"))
import chart
import frontier
import peers
import report

CPU = torch.device("cpu")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def extracted(small_data: str) -> Path:
    """A folder with 640 training images and 200 test images, as torchvision extracts them."""
    MNIST(small_data, download=True)
    return Path(small_data)


@pytest.mark.parametrize(
    ("name", "parameters", "batch_size", "epochs"),
    [("tutorial", 60_074, 128, 20), ("pytorch", 1_199_882, 64, 14), ("keras", 34_826, 128, 15)],
)
def test_a_peer_has_the_size_of_its_source(name: str, parameters: int, batch_size: int, epochs: int) -> None:
    peer = peers.PEERS[name]
    network = peer.network()
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(weights.numel() for weights in network.parameters()) == parameters
    assert (peer.batch_size, peer.epochs) == (batch_size, epochs)


def test_keras_starts_with_its_own_weights() -> None:
    """Biases are 0, and the last layer's other weights are even between two limits (Glorot and Bengio 2010)."""
    network = peers.PEERS["keras"].network()
    assert not any(layer.bias.any() for layer in network if hasattr(layer, "bias"))
    limit = (6 / (1_600 + 10)) ** 0.5
    assert 0.95 * limit < network[-1].weight.abs().max() <= limit


class Recording(torch.optim.Adadelta):
    """Keeps the learning rate of each step."""

    def step(self, closure: Any = None) -> None:
        self.rates.append(self.param_groups[0]["lr"])
        super().step(closure)


def test_the_learning_rate_of_pytorch_falls_after_each_of_14_epochs(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    peer = peers.PyTorch()
    assert peer.optimizer([nn.Parameter(torch.ones(1))]).defaults["lr"] == 1.0
    Recording.rates = []

    class Linear(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(images))
            return super().forward(images)

    monkeypatch.setattr(peer, "network", lambda: Linear(nn.Flatten(), nn.Linear(784, 10)), raising=False)
    monkeypatch.setattr(peer, "optimizer", lambda weights: Recording(weights, lr=1.0), raising=False)
    peers.train(peer, "memory", extracted, CPU)
    assert sizes == [64] * 140
    assert Recording.rates == pytest.approx([0.7**epoch for epoch in range(14) for _ in range(10)])


def test_both_loaders_give_the_same_images(extracted: Path) -> None:
    """On a CPU, pytorch/examples keeps the order of the files. The loader for memory has a new one in each epoch."""
    peer = peers.PEERS["pytorch"]
    images, labels = peer.read(extracted, "train", CPU)
    batches, measured = peer.published(extracted, CPU)
    for part, (expected, digits) in ((batches, (images, labels)), (measured, peer.read(extracted, "t10k", CPU))):
        loaded, read = (torch.cat(tensors) for tensors in zip(*part, strict=True))
        assert torch.equal(loaded, expected)
        assert torch.equal(read, digits)

    fast = peers.MemoryLoader(torch.arange(640), torch.arange(640) + 1_000, 64)
    first, second = ([*fast] for _ in range(2))
    assert [len(labels) for _, labels in first] == [64] * 10
    assert all(torch.equal(images + 1_000, labels) for images, labels in first)
    orders = [torch.cat([images for images, _ in epoch]) for epoch in (first, second)]
    assert not torch.equal(*orders)
    assert all(torch.equal(order.sort().values, torch.arange(640)) for order in orders)


def test_keras_validates_the_last_6000_images(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(60_000)
    monkeypatch.setattr(peers.Keras, "read", lambda *_: (numbers, numbers))
    batches, measured = peers.PEERS["keras"].published(Path(), CPU)
    assert torch.equal(torch.cat([labels for _, labels in batches]).sort().values, numbers[:54_000])
    assert torch.equal(torch.cat([labels for _, labels in measured]), numbers[54_000:])


def test_there_is_a_row_for_each_recipe_and_two_for_each_peer() -> None:
    configs = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"sweep"}
    others = {f"{name}-{loader}" for name in peers.PEERS for loader in ("memory", "published")}
    assert {*frontier.all_rows()} == configs | others


def test_runs_are_shared_with_accuracy_but_not_the_time_of_a_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, times = tmp_path / "seed_3", [None, 5.0]

    def train(config: Path, seed: int, folder: Path, *_: str) -> float | None:
        assert (seed, folder) == (3, run)
        assert not folder.exists()
        folder.mkdir()
        return times.pop(0)

    monkeypatch.setattr(frontier.accuracy, "folder_of", lambda *_: tmp_path)
    monkeypatch.setattr(frontier.accuracy, "train", train)
    monkeypatch.setattr(frontier.accuracy, "test", lambda *_: 0.99)
    assert frontier.measure_ours(Path("fast.yaml"), 3, Path("empty"), frontier.Setting()) == (0.99, 5.0)


Rows = dict[str, frontier.Row]


@pytest.fixture
def counted() -> tuple[Rows, list[tuple[str, int]]]:
    """Three rows that measure nothing, and a list of what was measured."""
    taken: list[tuple[str, int]] = []

    def row(name: str, kind: str) -> frontier.Row:
        def measure(seed: int, folder: Path, setting: frontier.Setting) -> tuple[float, float]:
            assert not [*folder.iterdir()]
            taken.append((name, seed))
            return 0.99 + seed / 1_000, 10.0 + seed

        return frontier.Row(name, kind, f"`{name}`", lambda: f"code of {name}", measure)

    return {"a": row("a", "ours"), "b": row("b", "memory"), "c": row("b", "published")}, taken


def test_a_stopped_measurement_goes_on_where_it_was_stopped(
    counted: tuple[Rows, list[tuple[str, int]]], tmp_path: Path
) -> None:
    (rows, taken), path, setting = counted, tmp_path / "runs/frontier.jsonl", frontier.Setting()

    def stop(*_: object) -> tuple[float, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frontier.train_missing(path, rows | {"b": rows["b"]._replace(measure=stop)}, range(2), setting)
    assert taken == [("a", 0)]
    with path.open("a") as file:
        file.write('{"row": "b", "seed": 0, "acc')  # a kill within a line
    for _ in range(2):
        frontier.train_missing(path, rows, range(2), setting)
    assert taken == [("a", 0), ("b", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 1)]
    results = frontier.results_of(path, "a", frontier.key_of(rows["a"], setting))
    assert [(result["seed"], result["accuracy"], result["seconds"]) for result in results] == [
        (0, 0.99, 10),
        (1, 0.991, 11),
    ]


def test_results_of_other_code_machines_and_settings_are_left_out(
    counted: tuple[Rows, list[tuple[str, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows, taken), path, setting = counted, tmp_path / "frontier.jsonl", frontier.Setting()
    row = {"a": rows["a"]}

    def measured(row: Rows, setting: frontier.Setting) -> int:
        frontier.train_missing(path, row, [0], setting)
        return len(taken)

    assert [measured(row, setting) for _ in range(2)] == [1, 1]
    assert measured(row, frontier.Setting(steps=3)) == 2
    assert measured({"a": rows["a"]._replace(code=lambda: "other")}, setting) == 3
    with monkeypatch.context() as patch:
        patch.setattr(report, "setup", lambda _: "another machine")
        assert measured(row, setting) == 4
        text, points = frontier.table(path, rows, setting)
        assert len(text.splitlines()) == 3
        assert points == [chart.Point("a", "ours", [10.0], [pytest.approx(1.0)])]
    assert len(report.read_results(path)) == 4


def test_the_readme_gets_the_table_and_the_picture(
    counted: tuple[Rows, list[tuple[str, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- frontier: x -->\nold\n<!-- end of frontier -->\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(frontier, "all_rows", lambda: counted[0])
    monkeypatch.setattr("sys.argv", ["frontier.py", "--seeds", "2", "--only", "a", "b"])
    frontier.main()
    text = readme.read_text()
    assert "| `a` | 2 | 99.050 % ± 0.071 | 98.415 to 99.685 % | 10 s, at most 11 s | `no commit` |" in text
    assert f"On {report.setup()}." in text
    assert [row for row in text.splitlines() if row.startswith("| `c`")] == []
    for name in ("frontier.svg", "frontier_dark.svg"):
        assert f"docs/{name}" in text
        ElementTree.fromstring((tmp_path / "docs" / name).read_text())


def recipes(seed: int) -> list[chart.Point]:
    """Points of recipes near those that we expect."""
    draw = random.Random(seed)

    def point(name: str, kind: str, seconds: float, error: float) -> chart.Point:
        seconds, error = (value * draw.uniform(0.8, 1.25) for value in (seconds, error))
        spread = [draw.uniform(0.9, 1.1) for _ in range(5)]
        return chart.Point(name, kind, [seconds * s for s in spread], [error * s for s in reversed(spread)])

    ours = [("fast.yaml", 14, 0.6), ("medium.yaml", 45, 0.4), ("accurate.yaml", 540, 0.29), ("tutorial.yaml", 62, 2.0)]
    others = [
        ("the tutorial's loop", 75, 320, 2.0),
        ("pytorch/examples", 480, 690, 0.8),
        ("Keras' example", 260, 290, 0.8),
    ]
    points = [point(name, "ours", seconds, error) for name, seconds, error in ours]
    for name, memory, published, error in others:
        points += [point(name, "memory", memory, error), point(name, "published", published, error)]
    return points


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_the_picture_are_inside_and_cover_nothing(seed: int) -> None:
    points = recipes(seed)
    root = ElementTree.fromstring(chart.draw(points, random.Random(seed).choice([*chart.THEMES])))
    texts = [
        (text, chart.text_box(text.text, float(text.get("x")), float(text.get("y")), text.get("text-anchor")))
        for text in root.iter(f"{SVG}text")
    ]
    labels = [(text, box) for text, box in texts if "label" in text.get("class")]
    assert sorted(text.text for text, _ in labels) == sorted({point.name for point in points})
    for _, box in texts:
        assert min(box) >= 0
        assert (box.right <= chart.WIDTH, box.bottom <= chart.HEIGHT) == (True, True)
    for (_, one), (_, other) in itertools.combinations(texts, 2):
        assert one.shared(other) == 0
    circles = [(float(circle.get("cx")), float(circle.get("cy"))) for circle in root.iter(f"{SVG}circle")]
    assert len(circles) == len(points) + len(chart.KINDS)
    for x, y in circles:
        assert (0 < x < chart.WIDTH, 0 < y < chart.HEIGHT) == (True, True)
        assert sum(chart.Box(x - 5, y - 5, x + 5, y + 5).shared(box) for _, box in texts) == 0


def test_the_picture_has_a_title_and_a_description() -> None:
    root = ElementTree.fromstring(chart.draw(recipes(0), "light"))
    parts = {part.get("id"): part.text for part in root if part.get("id")}
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [*parts] == ["title", "description"]
    assert all(point.name in parts["description"] for point in recipes(0))


def test_the_frontier_joins_own_recipes_that_no_quicker_one_beats() -> None:
    found = [
        chart.Point(name, kind, [seconds], [error])
        for name, kind, seconds, error in (
            ("slow", "ours", 90.0, 0.3),
            ("worse", "ours", 60.0, 0.9),
            ("quick", "ours", 10.0, 0.6),
            ("other", "memory", 5.0, 0.1),
        )
    ]
    assert [point.name for point in chart.frontier(found)] == ["quick", "slow"]


@pytest.mark.slow
def test_a_row_of_each_kind_is_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {
        name: frontier.all_rows()[name] for name in ("fast", "tutorial-published", "pytorch-memory", "keras-published")
    }
    path, setting = tmp_path / "frontier.jsonl", frontier.Setting(steps=2)
    frontier.train_missing(path, rows, [0], setting)
    results = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert [result["row"] for result in results] == [*rows]
    assert all(0 < result["accuracy"] < 0.9 and result["seconds"] > 1 for result in results)
