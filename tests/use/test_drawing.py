"""Pictures for a notebook."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mnist_lightning.use.drawing import COLOURS, curves, grid


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 1, 28, 28)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_grid_shows_images_before_and_after_the_transform(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.zeros(shape, dtype=dtype)
    images[3] = 200
    drawn = grid(images, columns=4)
    assert drawn.size == (4 * (3 * 28 + 4) + 4, 2 * (3 * 28 + 4) + 4)
    centres = [drawn.getpixel((46 + 88 * (number % 4), 46 + 88 * (number // 4))) for number in range(5)]
    assert centres == [0, 0, 0, 255, 0]


def test_a_grid_has_captions_of_any_type_and_no_empty_columns() -> None:
    bare, captioned = grid(torch.eye(3).expand(2, 3, 3)), grid(torch.eye(3).expand(2, 3, 3), [7, "two\nlines"][:1] * 2)
    assert bare.width == captioned.width == 2 * (9 + 4) + 4
    assert captioned.height == bare.height + 20
    assert grid(torch.nn.Conv2d(1, 6, 3).weight).size == (6 * 13 + 4, 13 + 4)  # filters, with gradients


def colours(picture: Image.Image, column: int) -> list[int]:
    """The rows of a column that have the colour of the first curve."""
    return [row for row in range(30, picture.height - 44) if picture.getpixel((column, row)) == COLOURS[0]]


def test_a_curve_rises_from_left_to_right() -> None:
    picture = curves({"val/acc": [0.5, 0.6, 0.7]}, x=[10, 20, 30], label="step")
    rows = [colours(picture, column) for column in (60, 200, 336, 500, 615)]
    assert all(rows)
    assert [min(found) for found in rows] == sorted((min(found) for found in rows), reverse=True)


def test_a_flat_curve_can_be_drawn(tmp_path: Path) -> None:
    assert colours(curves({"loss": [2.3, 2.3]}, x=[1, 2], label="epoch"), 300) == []  # at the upper edge


def test_positions_must_fit_the_values() -> None:
    with pytest.raises(ValueError, match="zip"):
        curves({"loss": [1.0, 2.0, 3.0]}, x=[1, 2], label="epoch")
