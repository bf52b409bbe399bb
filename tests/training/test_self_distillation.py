"""Self-distillation: the loss against a plain computation, what is remembered, and bitwise the same after a resume."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from killing import restored_after_nan, unbroken_and_resumed
from same_weights import assert_same_weights
from torch import Tensor

from vivace.config import override
from vivace.errors import ConfigError
from vivace.training.loop.state import TrainState
from vivace.training.recipes.recipe import LossConfig, Recipe
from vivace.training.result import TrainResult
from vivace.training.techniques.losses import make_loss
from vivace.training.techniques.self_distillation import SelfDistillation

RunTiny = Callable[..., TrainResult]
CPU = torch.device("cpu")
LABELS = np.array([0, 2, 1, 1])
# images are not mixed
CHANGES = {"loss.self_distillation": 0.6, "loss.label_smoothing": 0.2, "augment.mixup": 0.0}


def made(weight: float = 0.6, label_smoothing: float = 0.2) -> SelfDistillation:
    return SelfDistillation(weight, LABELS, 3, label_smoothing=label_smoothing, device=CPU)


def logits(count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_what_was_never_seen_is_learnt_from_its_smoothed_label() -> None:
    logits_BK, indices = logits(4), torch.tensor([3, 1, 0, 2])
    plain = make_loss(LossConfig(label_smoothing=0.2))(logits_BK, torch.from_numpy(LABELS)[indices])
    torch.testing.assert_close(made().blend(plain, logits_BK, indices, progress=0.7), plain)


def test_the_share_of_what_was_answered_grows_with_the_run() -> None:
    own, logits_BK, indices = made(), logits(2), torch.tensor([1, 3])
    said = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    own.record(indices, said)
    entropy = -(said * logits_BK.log_softmax(1)).sum(1).mean()
    for progress, share in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.6)):
        blended = own.blend(torch.tensor(2.0), logits_BK, indices, progress=progress)
        torch.testing.assert_close(blended, (1 - share) * 2.0 + share * entropy)


def test_an_image_weighs_in_its_answers_as_it_does_in_the_loss() -> None:
    own, logits_BK, weights = made(), logits(2), torch.tensor([5.0, 0.5])
    said = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    own.record(torch.tensor([1, 3]), said)
    blended = own.blend(torch.tensor(2.0), logits_BK, torch.tensor([1, 3]), progress=1.0, weights_B=weights)
    entropies = -(said * logits_BK.log_softmax(1)).sum(1)
    torch.testing.assert_close(blended, 0.4 * 2.0 + 0.6 * (5 * entropies[0] + 0.5 * entropies[1]) / 2)


def test_the_target_has_no_gradient_and_the_answers_have() -> None:
    own, logits_BK, indices = made(), logits(2), torch.tensor([0, 1])
    own.record(indices, logits_BK.detach().softmax(1))
    own.blend(torch.tensor(0.0), logits_BK, indices, progress=1.0).backward()
    # an answer that is the target's own is where cross-entropy has its minimum
    assert logits_BK.grad is not None
    torch.testing.assert_close(logits_BK.grad, torch.zeros(2, 3), rtol=0, atol=1e-7)


def test_each_image_has_its_own_answer_in_micro_batches_too(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    record = SelfDistillation.record

    def recording(self: SelfDistillation, indices_B: Tensor, probs_BK: Tensor) -> None:
        record(self, indices_B, probs_BK)
        assert torch.equal(self.probs_NK[indices_B], probs_BK)
        seen.append((indices_B, probs_BK))

    monkeypatch.setattr(SelfDistillation, "record", recording)
    run_tiny(changes={**CHANGES, "micro_batch_size": 4})
    assert len(seen) == 9
    for indices, probs in seen:
        assert probs.shape == (len(indices), 3) == (6, 3)
        torch.testing.assert_close(probs.sum(1), torch.ones(6))


def test_it_changes_what_is_learnt(run_tiny: RunTiny) -> None:
    losses = [
        run_tiny(f"run-{weight}", changes={**CHANGES, "loss.self_distillation": weight}).metrics["val"]["nll"]
        for weight in (0.0, 0.6)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("step", [3, 4, 8])
def test_a_killed_run_is_resumed_bitwise_with_the_same_answers(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    changes = {**CHANGES, "checkpoint_minutes": 1e-9}
    assert_same_weights(*unbroken_and_resumed(run_tiny, monkeypatch, changes, step))


def test_a_roll_back_brings_the_answers_back(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(state: TrainState) -> Tensor:
        assert state.self_distillation is not None
        return state.self_distillation.probs_NK

    restored = restored_after_nan(lambda: run_tiny(changes=CHANGES), monkeypatch, SelfDistillation, answers)
    assert len(restored) == 1
    assert not restored[0].isnan().any()


@pytest.mark.parametrize("other", ["augment.mixup", "augment.cutmix"])
def test_mixed_images_are_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=r"can't go with augment.mixup or augment.cutmix .*: got 0.5. Set it to 0"):
        override(Recipe(), {"loss.self_distillation": 0.5, other: 0.2})


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"loss.self_distillation is out of range"):
        LossConfig(self_distillation=value)
