"""What TensorBoard shows beside the curves, read back from a run's files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from helpers import FIRST, SECOND, differences, events, load
from PIL import Image
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from mnist_lightning import LeNet, archive
from mnist_lightning.runs.figures import matrix, tiles


def steps(run: Path) -> dict[str, list[int]]:
    accumulator = events(run)
    return {name: [image.step for image in accumulator.Images(name)] for name in accumulator.Tags()["images"]}


def figure(run: Path, name: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(events(run).Images(name)[-1].encoded_image_string)))


def test_a_run_shows_its_figures_at_the_steps_of_its_curves(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.1")
    assert steps(FIRST) == {
        "first_batch": [0],
        "val/confusion": [4, 9],
        "val/worst_mistakes": [4, 9],
        "first_layer": [9],
    }
    run("test")
    step = load(FIRST / "checkpoints/best.ckpt")["global_step"] - 1
    assert steps(FIRST)["test/confusion"] == steps(FIRST)["test/worst_mistakes"] == [step]
    assert [point.step for point in events(FIRST).Scalars("test_acc_of_digit/3")] == [step]


def test_the_graph_names_the_networks_layers(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1")
    nodes = GraphDef.FromString(events(FIRST).Graph().SerializeToString()).node
    assert any("conv1" in node.name for node in nodes)
    assert any("fc3" in node.name for node in nodes)


def test_the_accuracies_of_the_digits_are_those_of_the_whole(run: Run, small_data: str) -> None:
    run("fit", "--model.optimizer.lr=0.1", "--trainer.max_epochs=4")
    run("test", "--ckpt_path=last")
    accumulator = events(FIRST)
    labels = archive.read(small_data, "test")[1]
    counts = torch.bincount(labels, minlength=10)
    shares = [accumulator.Scalars(f"test_acc_of_digit/{digit}")[0].value for digit in range(10)]
    right = sum(share * count for share, count in zip(shares, counts.tolist(), strict=True))
    assert 0.3 < accumulator.Scalars("test/acc")[0].value == pytest.approx(right / 200, abs=1e-6)


def test_the_first_batch_is_what_the_network_receives(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1")
    run("fit", "--trainer.max_epochs=1", "--data.distortion.rotation=40", "--data.distortion.translation=3")
    plain, distorted = (figure(path, "first_batch") for path in (FIRST, SECOND))
    assert plain.shape == distorted.shape
    # The same images, as the order is the seed's, but not the same pixels.
    assert (plain != distorted).mean() > 0.05


def test_one_flag_turns_them_off_and_changes_nothing_else(run: Run) -> None:
    arguments = ["--model.network=ConvNet", "--model.optimizer.lr=0.1", "--data.distortion.rotation=10"]
    run("fit", *arguments)
    run("fit", *arguments, "--figures=false")
    assert steps(SECOND) == {}
    assert not events(SECOND).Tags()["graph"]
    for name in ("best", "last"):
        checkpoints = [load(path / f"checkpoints/{name}.ckpt") for path in (FIRST, SECOND)]
        assert differences(*checkpoints) == []
    assert (
        differences(
            *(
                {
                    name: [(p.step, p.value) for p in events(path).Scalars(name)]
                    for name in ("train/loss", "val/acc", "epoch")
                }
                for path in (FIRST, SECOND)
            )
        )
        == []
    )


def test_a_run_that_goes_on_shows_each_figure_once(run: Run) -> None:
    run("fit", "--trainer.max_epochs=3")
    run("fit", "--ckpt_path=best", "--trainer.max_epochs=4")
    shown = steps(FIRST)
    assert shown["val/confusion"] == shown["val/worst_mistakes"] == [4, 9, 14, 19]
    assert shown["first_batch"] == [0]


@pytest.mark.filterwarnings("ignore:TensorBoard will not show the graph of the network")
def test_a_network_that_cant_be_drawn_is_trained_all_the_same(run: Run) -> None:
    run("fit", "--model.network=helpers.Untraceable")
    assert sorted(steps(FIRST)) == ["first_batch", "val/confusion", "val/worst_mistakes"]
    assert load(FIRST / "checkpoints/last.ckpt")["global_step"] == 10


def test_where_nothing_is_mistaken_there_are_no_mistakes_to_show(
    run: Run, small_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = archive.read(small_data, "test")[1]

    def knows_all(self: Any, images: Tensor) -> Tensor:
        knows_all.seen, start = knows_all.seen + len(images), knows_all.seen  # type: ignore[attr-defined]
        return 9.0 * nn.functional.one_hot(labels[start : start + len(images)], 10)

    knows_all.seen = 0  # type: ignore[attr-defined]
    run("fit")
    monkeypatch.setattr(LeNet, "forward", knows_all)
    run("test")
    assert "test/confusion" in steps(FIRST)
    assert "test/worst_mistakes" not in steps(FIRST)


def test_tiles_hold_the_images_enlarged_and_a_caption_below_each() -> None:
    images = torch.zeros(5, 28, 28)
    images[:, 10:20, 10:20] = torch.arange(1.0, 6)[:, None, None]
    drawn = tiles(images, ["4, read as 9\n98% sure"] * 5, columns=3)
    assert drawn.dtype == torch.uint8
    height, width = 3 * 28 + 36, 3 * 28
    assert drawn.shape == (1, 2 * (height + 4) + 4, 3 * (width + 4) + 4)
    assert drawn[0, 4 : 4 + 84, 4 : 4 + 84].max() == 51  # the first has a fifth of the range
    assert drawn[0, 4 + height + 4 + 45, 4 + width + 4 + 45] == 255  # the middle of the last
    below = drawn[0, 4 + 84 : 4 + height, 4 : 4 + width]
    assert below.min() == 0  # text


def test_a_matrix_shades_what_is_right_and_what_is_not() -> None:
    counts = 100 * torch.eye(10, dtype=torch.int64)
    counts[4, 4], counts[4, 9] = 90, 10
    drawn = matrix(counts)
    assert (drawn.dtype, drawn.shape[0]) == (torch.uint8, 3)

    def colour(label: int, answer: int) -> list[int]:
        return drawn[:, 56 + 40 * label + 2, 56 + 40 * answer + 2].tolist()

    red, _, blue = colour(4, 4)
    assert blue > red
    red, _, blue = colour(4, 9)
    assert red > blue
    assert colour(9, 4) == [245, 245, 245]  # nothing
