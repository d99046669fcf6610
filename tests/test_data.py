from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import DATA
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule, archive
from mnist_lightning.augmentation import Distortion
from mnist_lightning.data import split
from mnist_lightning.errors import SettingError
from mnist_lightning.loader import TensorLoader


def ready(stage: str = "fit", root: str = DATA, **arguments: float) -> MNISTDataModule:
    data = MNISTDataModule(root, **arguments)
    data.prepare_data()
    data.setup(stage)
    return data


@pytest.mark.parametrize("val_size", [1, 5_000, 12_345, 59_999])
def test_split_is_disjoint_complete_and_stratified(val_size: int) -> None:
    labels = archive.read(DATA, "train")[1]
    train, val = split(labels, val_size)
    assert (len(train), len(val)) == (60_000 - val_size, val_size)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(60_000))
    share = labels.bincount(minlength=10) * val_size / 60_000
    assert (labels[val].bincount(minlength=10) - share).abs().max() < 1


def test_split_is_the_same_whatever_the_seed_and_leaves_the_random_state_alone() -> None:
    labels = archive.read(DATA, "train")[1]
    seed_everything(1)
    before = torch.random.get_rng_state()
    first = split(labels, 5_000)
    assert torch.equal(torch.random.get_rng_state(), before)
    seed_everything(2)
    second = split(labels, 5_000)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_split_of_nothing_keeps_all() -> None:
    train, val = split(torch.arange(10), 0)
    assert torch.equal(train, torch.arange(10))
    assert val.shape == (0,)


def test_loaders_have_the_sizes_of_the_splits() -> None:
    data = ready()
    assert len(data.train_dataloader()) == 430
    assert isinstance(data.val_dataloader(), TensorLoader)
    assert len(data.val_dataloader()) == 40
    assert len(ready("test").test_dataloader()) == 79


def test_without_validation_all_60000_images_train_in_469_batches() -> None:
    data = ready(val_size=0)
    assert len(data.train_dataloader()) == 469
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 60_000
    assert data.val_dataloader() == []


def test_batches_travel_as_uint8() -> None:
    images, labels = next(iter(ready().train_dataloader()))
    assert (images.shape, images.dtype) == ((128, 28, 28), torch.uint8)
    assert (labels.shape, labels.dtype) == ((128,), torch.int64)


def test_test_batches_are_the_official_images_in_order() -> None:
    images, labels = archive.read(DATA, "test")
    batches = list(ready("test", batch_size=3_000).test_dataloader())
    assert [len(batch[1]) for batch in batches] == [3_000, 3_000, 3_000, 1_000]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), images)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)


def test_images_and_labels_of_a_shuffled_batch_belong_together() -> None:
    images, labels = archive.read(DATA, "train")
    loader = ready(val_size=0).train_dataloader()
    indices = next(iter(loader.sampler))
    batch = next(iter(loader))
    assert torch.equal(batch[0], images[indices])
    assert torch.equal(batch[1], labels[indices])


class CountingTensor(torch.Tensor):
    selections = 0

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        type(self).selections += 1
        return super().index_select(dim, index)


def test_each_batch_is_one_index_operation() -> None:
    loader = ready().train_dataloader()
    loader.images = loader.images.as_subclass(CountingTensor)
    assert sum(1 for _ in loader) == CountingTensor.selections == 430


def test_the_order_follows_the_seed_and_the_epoch() -> None:
    def labels(seed: int, epoch: int) -> torch.Tensor:
        seed_everything(seed)
        loader = ready().train_dataloader()
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))[1]

    assert torch.equal(labels(42, 0), labels(42, 0))
    assert not torch.equal(labels(42, 0), labels(42, 1))
    assert not torch.equal(labels(42, 0), labels(43, 0))


def test_device_transform_is_torchvisions_to_tensor_and_normalize_to_the_bit() -> None:
    images, labels = next(iter(ready("test").test_dataloader()))
    pixels, same_labels = MNISTDataModule().on_after_batch_transfer((images, labels), 0)
    expected = transforms.Compose([to_pil_image, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    assert torch.equal(pixels, torch.stack([expected(image) for image in images]))
    assert (pixels.shape, pixels.dtype) == ((128, 1, 28, 28), torch.float32)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(labels, same_labels)


def test_device_transform_uses_mean_and_std() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1)
    pixels, _ = MNISTDataModule(mean=0.1, std=0.2).on_after_batch_transfer((images, images), 0)
    torch.testing.assert_close(pixels.flatten(), torch.tensor([-0.5, 4.5]))


def on(accelerator: str, resident: bool, root: str) -> tuple[DigitClassifier, MNISTDataModule]:
    """Train and test five steps on a device. Return the classifier and its data."""
    seed_everything(1)
    model, data = DigitClassifier(LeNet()), MNISTDataModule(root, val_size=100, resident=resident)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator=accelerator, devices=1, max_epochs=1, **options)
    trainer.fit(model, data)
    trainer.test(model, data)
    return model, data


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_resident_images_give_the_same_batches_and_the_same_network(accelerator: str, small_data: str) -> None:
    if accelerator == "gpu" and not torch.accelerator.is_available():
        pytest.skip("has no accelerator")
    (model, data), (resident, resident_data) = (on(accelerator, choice, small_data) for choice in (False, True))
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches, others = (getattr(module, loader)() for module in (data, resident_data))
        for batch, other in zip(batches, others, strict=True):
            assert {part.device.type for part in other} == {resident_data.trainer.strategy.root_device.type}
            assert all(torch.equal(one, another.cpu()) for one, another in zip(batch, other, strict=True))
    if accelerator == "cpu":  # sums on a GPU can have another order in each run
        for name, weights in model.state_dict().items():
            assert torch.equal(weights, resident.state_dict()[name])


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_resident_images_move_to_the_device_of_the_run(stage: str) -> None:
    """torch's device `meta` stores no values. But torch still knows on which device each tensor lies."""
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    for resident, device in ((False, "cpu"), (True, "meta")):
        data = MNISTDataModule(DATA, resident=resident)
        data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
        data.setup(stage)
        for loader in [data.train_dataloader(), data.val_dataloader()] if stage == "fit" else [data.test_dataloader()]:
            assert {loader.images.device.type, loader.labels.device.type} == {device}
            # The order of the images moves once an epoch, not with each batch.
            assert next(iter(loader.sampler)).device.type == device


class Recording(DigitClassifier):
    """Keeps the images of each epoch's first batch, float32 `(B, 1, 28, 28)`, as the network sees them."""

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.trained_on = [*getattr(self, "trained_on", []), batch[0].clone()]
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.validated_on = batch[0].clone()
        super().validation_step(batch, batch_idx)


@pytest.fixture
def fit(small_data: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recording]:
    """Trains two epochs of four steps, of however many are planned. All images are the same: order does not matter."""
    images, labels = archive.read(small_data, "train")
    same = images[:1].expand_as(images)
    monkeypatch.setattr(archive, "read", lambda root, part: (same, labels))

    def end(trainer: Trainer, _: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 1

    def fit(max_epochs: int = 2, max_steps: int = -1, **arguments: Any) -> Recording:
        seed_everything(1)
        model = Recording(LeNet())
        trainer = Trainer(
            max_epochs=max_epochs,
            max_steps=max_steps,
            callbacks=LambdaCallback(on_train_epoch_end=end),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(model, MNISTDataModule(small_data, val_size=128, **arguments))
        assert trainer.global_step == 8
        return model

    return fit


def test_only_what_is_trained_on_is_distorted_and_anew_in_each_epoch(fit: Callable[..., Recording]) -> None:
    plain, moved, again = (
        fit(),
        fit(distortion=Distortion(translation=2.0)),
        fit(distortion=Distortion(translation=2.0)),
    )
    assert torch.equal(plain.trained_on[0], plain.trained_on[1])
    assert len(moved.trained_on[0].unique(dim=0)) == 128
    assert not torch.equal(moved.trained_on[0], moved.trained_on[1])
    assert torch.equal(moved.validated_on, plain.trained_on[0])
    assert torch.equal(moved.trained_on[0], again.trained_on[0])
    assert torch.equal(moved.trained_on[1], again.trained_on[1])


@pytest.mark.parametrize(
    ("planned", "fade", "left"),
    [
        ({"max_epochs": 2}, 1.0, 0.5),  # half of the steps are done where the second epoch begins
        ({"max_epochs": 4}, 0.5, 0.875),
        ({"max_epochs": -1, "max_steps": 16}, 0.8, 0.8),
        ({"max_epochs": -1}, 1.0, 1.0),  # without an end
    ],
)
def test_distortions_fade_by_the_share_of_planned_steps_that_are_done(
    planned: dict[str, int], fade: float, left: float, fit: Callable[..., Recording]
) -> None:
    strong, weak = Distortion(translation=2.0), Distortion(translation=2.0 * left)
    faded = fit(**planned, distortion=strong, fade=fade)
    assert torch.equal(faded.trained_on[0], fit(distortion=strong).trained_on[0])
    torch.testing.assert_close(faded.trained_on[1], fit(distortion=weak).trained_on[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"val_size": -1}, r"val_size is -1; expected 0\.\.59999"),
        ({"val_size": 60_000}, r"val_size is 60000; expected 0\.\.59999"),
        ({"std": 0.0}, "std is 0.0; expected more than 0"),
        ({"fade": 1.5}, r"fade is 1.5; expected 0\.\.1"),
        ({"distortion": {"rotation": -1.0}}, "rotation is -1.0; expected 0 or more, and finite"),
        ({"distortion": {"elastic": float("nan")}}, "elastic is nan; expected 0 or more, and finite"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MNISTDataModule(**{k: Distortion(**v) if k == "distortion" else v for k, v in arguments.items()})
