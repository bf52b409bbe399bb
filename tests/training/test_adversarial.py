"""Images of adversarial training: the step of N-FGSM, the probe by PGD, and what can't be attacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vivace.errors import ConfigError
from vivace.training.loop.step import Stepper
from vivace.training.recipes.attack import AttackConfig
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.techniques.adversarial import Adversary, adversary_of, pgd_right

EPS = 8.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_and_weights(count: int = 40) -> tuple[Tensor, Tensor]:
    """Pixels away from the ends, so that nothing is clipped, and weights_2P of a linear network of two classes."""
    draw = generator()
    images = torch.randint(60, 190, (count, 3, 4, 4), generator=draw).float()
    return images, torch.randn(2, 48, generator=draw) / 255


def test_a_step_is_noise_and_the_sign_of_the_gradient_without_projection() -> None:
    images, weights = images_and_weights()
    labels = torch.zeros(len(images), dtype=torch.int64)
    adversary = Adversary(config=AttackConfig(eps=EPS, noise=2.0, step=1.0))
    starts = adversary.starts(images.to(torch.uint8), generator())
    noise = starts - images
    assert 15 < float(noise.abs().max()) <= 2 * EPS
    assert abs(float(noise.mean())) < 0.5
    points = adversary.attacked(starts, lambda x: functional.cross_entropy(x.flatten(1) @ weights.T, labels))
    # the loss of class 0 grows along the weights of class 1 less those of class 0
    direction = (weights[1] - weights[0]).sign().view(3, 4, 4)
    torch.testing.assert_close(points - starts, EPS * direction.expand_as(starts), atol=1e-4, rtol=0)
    assert float((points - images).abs().max()) > 2 * EPS
    assert not points.requires_grad


def test_attacked_images_are_pixels() -> None:
    adversary = Adversary(config=AttackConfig(eps=EPS))
    images = torch.cat([torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 255.0)])
    points = adversary.attacked(adversary.starts(images, generator()), lambda x: x.sum())
    assert float(points.min()) >= 0
    assert float(points.max()) <= 255


def test_without_noise_the_start_is_the_image_and_no_random_number_is_drawn() -> None:
    draw = generator()
    before = draw.get_state()
    images = torch.full((1, 1, 4, 4), 7, dtype=torch.uint8)
    starts = Adversary(config=AttackConfig(eps=EPS, noise=0.0)).starts(images, draw)
    assert torch.equal(starts, images.float())
    assert torch.equal(before, draw.get_state())


def test_a_roll_back_means_more_noise_and_a_smaller_step() -> None:
    config = AttackConfig(eps=EPS, noise=2.0, step=1.0)
    strengths = [config.strength(number) for number in range(3)]
    assert [strength.noise for strength in strengths] == [2.0, 3.0, 4.5]
    assert [strength.step for strength in strengths] == [1.0, 0.75, 0.5625]
    adversary, images = Adversary(config=config), torch.full((64, 1, 8, 8), 128.0)
    noise = (adversary.starts(images, generator(), num_rollbacks=1) - images).abs().max()
    assert 2 * EPS < float(noise) <= 3 * EPS
    moved = adversary.attacked(images, lambda x: x.sum(), num_rollbacks=1) - images
    assert torch.equal(moved, torch.full_like(images, 0.75 * EPS))


def test_pgd_of_a_linear_network_leaves_those_whose_margin_exceeds_eps() -> None:
    """Closed form: a change within L∞ eps moves the difference of two logits by at most eps times its L1 norm."""
    images, weights = images_and_weights(200)
    logits = images.flatten(1) @ weights.T
    labels = logits.argmax(1)
    # some are wrong as they are
    labels[::10] = 1 - labels[::10]
    gaps = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]
    eps = 3.0
    expected = int((gaps > eps * (weights[0] - weights[1]).abs().sum()).sum())
    assert 40 < expected < 160
    found = pgd_right(
        lambda x: x.flatten(1) @ weights.T,
        [(images[:90].to(torch.uint8), labels[:90]), (images[90:].to(torch.uint8), labels[90:])],
        eps=eps,
        white=255.0,
        steps=10,
        generator=generator(),
    )
    assert found == expected


def test_pgd_stays_in_the_ball_and_among_pixels() -> None:
    seen: list[Tensor] = []

    def answer(images: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return torch.stack([images.flatten(1).sum(1) / 1000, torch.zeros(len(images))], 1)

    images = torch.cat([torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 100.0)])
    pgd_right(answer, [(images, torch.zeros(2, dtype=torch.int64))], eps=4, white=255, steps=9, generator=generator())
    points = torch.stack(seen)
    assert len(points) == 11
    assert float((points - images).abs().max()) <= 4
    assert float(points.min()) >= 0
    # nine steps of eps / 4 downwards end at the border, wherever they start
    assert torch.equal(points[-1, 1], torch.full((1, 4, 4), 96.0))


def test_a_step_trains_on_attacked_images(
    run_tiny: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of the training pass are those of the attack, and weights have no gradient during the attack."""
    seen: list[tuple[Tensor, bool]] = []
    answers = Stepper._answers

    def watched(self: Stepper, images: Tensor) -> Tensor:
        trainable = any(weight.requires_grad for weight in self.state.model.parameters())
        seen.append((images.detach().clone(), trainable))
        return answers(self, images)

    monkeypatch.setattr(Stepper, "_answers", watched)
    result = run_tiny(changes={"attack.eps": EPS, "attack.noise": 0.5, "epochs": 1, "augment.mixup": 0})
    assert [trainable for _, trainable in seen] == [False, True] * 3
    for (starts, _), (points, _) in zip(seen[::2], seen[1::2], strict=True):
        moved = (points - starts).abs()
        assert float(moved.max()) == pytest.approx(EPS, abs=1e-3)
        # all but what is at an end of the scale
        assert float((moved > 0).float().mean()) > 0.8
    assert result.robust is not None
    assert (result.robust.threat, result.robust.num_images, result.robust.steps) == ("linf:8/255", 6, 10)


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 2}, {"precision": "bf16", "channels_last": True}, {"augment.mixup": 0.4}]
)
def test_attacks_go_with_ways_to_compute(run_tiny: Callable[..., TrainResult], changes: dict[str, Any]) -> None:
    result = run_tiny(changes={"attack.eps": EPS, "epochs": 1, **changes})
    assert result.robust is not None
    assert 0 <= result.robust.accuracy <= 1


def test_what_can_not_be_attacked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor=robust needs adversarial training: got attack.eps 0\. Set"):
        Recipe(monitor="robust")
    with pytest.raises(ConfigError, match=r"attack.eps is out of range: got 300"):
        AttackConfig(eps=300)
    with pytest.raises(ConfigError, match=r"attack.eps is of pictures of 8 bits: got 8 and images that are kept"):
        adversary_of(AttackConfig(eps=8), is_raw=True)
    assert adversary_of(AttackConfig(), is_raw=True) is None
    assert np.isclose(Adversary(config=AttackConfig(eps=8), white=1.0).eps, 8 / 255)
