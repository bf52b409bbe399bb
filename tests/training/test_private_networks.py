"""Networks of the user's own in private runs: none may keep an image, mix a batch, or have seen the images before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import vivace
from colours import coloured_arrays as images
from vivace.bundle import load_bundle
from vivace.errors import ConfigError, TrainingError
from vivace.training.private.apart import Untrained, check_apart

QUICK = {"privacy.delta": 1e-3, "privacy.epochs": 1, "privacy.epsilon": 8, "finetune.runtime": "torch"}


class Plain(nn.Module):
    """A small network that keeps the images of a batch apart."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(self.conv(images))).mean((2, 3)))


class Hoard(Plain):
    """Keeps the first image of each batch; noise protects gradients alone."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(3, 16, 16))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.copy_(images[0])
        return super().forward(images)


class Mix(Plain):
    """Batch norm that no search for a module finds."""

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.batch_norm(self.conv(images), None, None, training=True)
        return self.head(functional.relu(maps).mean((2, 3)))


class Unknown(nn.Module):
    """A layer with weights of its own, whose gradient of each image Opacus does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(8, 1, 1)), nn.Buffer(torch.zeros(8, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.scale * maps + self.shift


class WithUnknown(Plain):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.norm = Unknown()


class Unused(Plain):
    """With a weight that it does not use."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.idle = nn.Linear(2, 2)


def train(root: Path, model: Any, trains: str, recipe: str = "private", **options: Any) -> Any:
    changes = {**QUICK, "privacy.trains": trains} if recipe == "private" else {}
    changes |= options.pop("overrides", {})
    return vivace.train(
        images(), recipe, model=model, size=16, cache_dir=root / "cache", quiet=True, overrides=changes, **options
    )


@pytest.mark.parametrize("trains", ["head", "whole"])
@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Hoard, "seen changes with the images that it sees, and would be in the bundle without noise"),
        (Mix, "its answer to an image depends on the others of the batch"),
    ],
)
def test_a_network_that_keeps_or_mixes_images_is_refused(
    trains: str, network: type[nn.Module], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, network, trains, run=tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists()


def test_layers_that_opacus_does_not_know_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be trained with differential privacy.*privacy.trains=head"):
        train(tmp_path, WithUnknown, "whole", run=tmp_path / "run")


def test_a_weight_that_is_not_used_gets_noise_and_no_gradient(tmp_path: Path) -> None:
    assert train(tmp_path, Unused, "whole", run=tmp_path / "run").epsilon <= 8


def test_looking_leaves_a_network_as_it_was() -> None:
    model = Hoard().train()
    model.seen.fill_(0.5)
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ConfigError, match="seen changes"):
        check_apart(model, "hoard", channels=3, size=16, device=torch.device("cpu"), training=False)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_no_mixture() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    check_apart(model, "dropout", channels=3, size=8, device=torch.device("cpu"), training=True)


def test_what_changes_only_with_real_images_is_found_at_the_end() -> None:
    model = Plain()
    untrained = Untrained(model, {"head.weight", "head.bias"})
    with torch.no_grad():
        model.head.weight += 1
    untrained.check(model)
    with torch.no_grad():
        model.conv.bias[0] += 1e-3
    with pytest.raises(TrainingError, match=r"conv.bias has changed in private training, and no noise was added"):
        untrained.check(model)


def test_weights_of_a_bundle_that_has_seen_the_images_are_refused(tmp_path: Path) -> None:
    seen = train(tmp_path, Plain, "", "fast", run=tmp_path / "seen", overrides={"epochs": 1})
    with pytest.raises(ConfigError, match=r"was trained on 5\d of these images, and tells of them without noise"):
        train(tmp_path, Plain, "head", run=tmp_path / "a", weights=seen.bundle)
    with pytest.raises(ConfigError, match=r"was trained on 5\d of these images"):
        train(tmp_path, Plain, "head", run=tmp_path / "a", weights=seen.bundle / "model.safetensors")
    private = train(tmp_path, Plain, "head", run=tmp_path / "private")
    with pytest.raises(ConfigError, match="has no record of the images that it saw"):
        train(tmp_path, Plain, "head", run=tmp_path / "b", weights=private.bundle)


def test_weights_of_a_bundle_of_other_images_are_taken(tmp_path: Path) -> None:
    other = np.random.default_rng(1).integers(0, 255, (30, 16, 16, 3)).astype(np.uint8), np.arange(30) % 3
    public = vivace.train(
        other, "fast", model=Plain, size=16, epochs=1, run=tmp_path / "public", cache_dir=tmp_path, quiet=True
    )
    assert train(tmp_path, Plain, "head", run=tmp_path / "run", weights=public.bundle).epsilon <= 8


def test_files_that_turn_out_to_be_grey_are_trained_on(tmp_path: Path) -> None:
    pixels, labels = images()
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / "grey" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("L").save(path)
    result = vivace.train(
        tmp_path / "grey", "private", run=tmp_path / "run", cache_dir=tmp_path, quiet=True, overrides=QUICK
    )
    preprocess = load_bundle(result.bundle).preprocess
    assert (preprocess.mean, preprocess.channels) == ((0.5,), 1)


def test_copies_of_an_image_are_named(tmp_path: Path) -> None:
    pixels, labels = images()
    pixels[labels == 0] = pixels[0]
    result = vivace.train(
        {"train": (pixels, labels), "val": (255 - pixels[:30], labels[:30])},
        "private",
        size=16,
        run=tmp_path / "run",
        cache_dir=tmp_path,
        quiet=True,
        overrides=QUICK,
    )
    assert [line for line in result.warnings if "an image comes 20 times among the training images" in line]


def test_a_full_disk_gives_no_advice_that_a_private_run_can_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vivace.training.finish.save_bundle", full)
    with pytest.raises(TrainingError, match=r"go on with a new run \(a private one can't be resumed"):
        train(tmp_path, Plain, "head", run=tmp_path / "run")
