import pytest
import torch
from helpers import DATA
from torch import Tensor

from mnist_lightning import archive
from mnist_lightning.augmentation import Distortion

BLANK = -1.0  # as after normalisation


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def blobs(size: int, height: float = 1.0, width: float = 1.0) -> Tensor:
    """The same smooth spot `size` times, in the middle: float `(size, 1, 28, 28)`; standard deviations in pixels."""
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    spot = torch.exp(-((y / height) ** 2 + (x / width) ** 2) / 2)
    return (spot * 2 + BLANK).expand(size, 1, 28, 28)


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centres `(N, 2)` as (x, y), in pixels from the middle, and covariances `(N, 2, 2)` of what is not blank."""
    mass = (images.squeeze(1) - BLANK).flatten(1)
    mass = mass / mass.sum(1, keepdim=True)
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], dim=1)
    centres = mass @ places
    apart = places - centres[:, None]
    return centres, torch.einsum("np,npi,npj->nij", mass, apart, apart)


def test_nothing_asked_for_changes_nothing() -> None:
    images = archive.read(DATA, "test")[0][:100, None] / 255
    torch.testing.assert_close(Distortion()(images), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "amount", [{"rotation": 10.0}, {"scale": 0.1}, {"shear": 0.1}, {"translation": 1.0}, {"elastic": 0.5}]
)
def test_each_image_gets_its_own_draw_which_follows_from_the_random_state(amount: dict[str, float]) -> None:
    images = archive.read(DATA, "test")[0][:1, None].expand(16, 1, 28, 28) / 255
    torch.manual_seed(0)
    first, second = Distortion(**amount)(images), Distortion(**amount)(images)
    torch.manual_seed(0)
    assert torch.equal(Distortion(**amount)(images), first)
    assert not torch.equal(first, second)
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert len(first.unique(dim=0)) == 16


def test_translation_is_in_pixels_either_way_along_both_axes() -> None:
    centres, _ = moments(Distortion(translation=2.5)(blobs(1_000)))
    for axis in centres.T:
        assert -2.5 <= axis.min() < -2.4
        assert 2.4 < axis.max() <= 2.5
    assert centres.T.corrcoef()[0, 1].abs() < 0.1


def test_rotation_is_in_degrees_either_way() -> None:
    covariances = moments(Distortion(rotation=20)(blobs(1_000, height=1.5, width=5)))[1]
    angles = torch.rad2deg(torch.atan2(2 * covariances[:, 0, 1], covariances[:, 0, 0] - covariances[:, 1, 1]) / 2)
    assert -20.2 <= angles.min() < -19.5
    assert 19.5 < angles.max() <= 20.2


def test_scale_is_a_factor_of_width_and_of_height_either_way() -> None:
    covariances = moments(Distortion(scale=0.25)(blobs(1_000, height=3, width=3)))[1]
    for variances in covariances.diagonal(dim1=1, dim2=2).T:
        sizes = variances.sqrt() / 3
        assert 0.79 < sizes.min() < 0.81
        assert 1.24 < sizes.max() < 1.26
        assert sizes.median() == pytest.approx(1, abs=0.03)
    assert covariances.diagonal(dim1=1, dim2=2).T.corrcoef()[0, 1].abs() < 0.1


def test_shear_is_pixels_to_the_side_from_row_to_row_either_way() -> None:
    covariances = moments(Distortion(shear=0.3)(blobs(1_000, height=4, width=2)))[1]
    slants = covariances[:, 0, 1] / covariances[:, 1, 1]
    assert -0.31 < slants.min() < -0.29
    assert 0.29 < slants.max() < 0.31
    assert covariances[:, 1, 1].tolist() == pytest.approx([16] * 1_000, rel=0.05)


def test_rotation_and_shear_keep_the_area() -> None:
    covariances = moments(Distortion(rotation=40, shear=0.5)(blobs(200, height=3, width=2)))[1]
    assert covariances.det().tolist() == pytest.approx([36] * 200, rel=0.1)


def test_elastic_displacements_are_smooth_with_a_standard_deviation_in_pixels() -> None:
    """On a ramp, a pixel's value says where along x it has been read. The grid's point in the middle is near it."""
    ramp = torch.arange(28.0).expand(2_000, 1, 28, 28)
    displacements = (Distortion(elastic=0.8)(ramp) - ramp)[:, 0, 6:-6, 6:-6]  # away from the border
    assert 0.7 < displacements[:, 8, 8].std() < 0.85
    assert displacements[:, 8, 8].mean().abs() < 0.1
    assert displacements.diff(dim=-1).abs().max() < 1.5


def test_what_comes_in_from_outside_is_blank() -> None:
    images = Distortion(rotation=45, scale=0.5, shear=0.5, translation=8, elastic=1)(blobs(200))
    assert images.min() == BLANK
    corners = images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == BLANK).float().mean() > 0.95


def test_a_generator_decides_the_draw_and_leaves_the_random_state_alone() -> None:
    images = archive.read(DATA, "test")[0][:4, None] / 255
    distortion = Distortion(rotation=10, elastic=0.5)
    before = torch.random.get_rng_state()
    first, again, other = (distortion(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
