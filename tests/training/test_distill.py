"""Distillation: the loss against a plain computation, what the teacher sees, and a run that learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vivace.bundle import load_bundle, save_bundle
from vivace.errors import ConfigError
from vivace.models.normalize import Normalize
from vivace.prediction import Predictor
from vivace.runtimes.loading import load_runtime
from vivace.training.recipes.recipe import DistillConfig
from vivace.training.result import TrainResult
from vivace.training.techniques import distill as distill_module
from vivace.training.techniques.distill import Distillation, make_distillation

CPU = torch.device("cpu")
RunTiny = Callable[..., TrainResult]


@pytest.fixture
def teacher(run_tiny: RunTiny) -> Path:
    return run_tiny("teacher", epochs=1).bundle


def distillation(teacher: Path, **fields: object) -> Distillation:
    bundle = load_bundle(teacher)
    config = DistillConfig(teacher=str(teacher), **fields)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill_module, "supported_precisions", lambda _: ("fp32",))
        made = make_distillation(config, classes=bundle.classes, channels=3, device=CPU)
    assert made is not None
    return made


def teacher_logits(teacher: Path, images_BCHW: torch.Tensor) -> torch.Tensor:
    bundle = load_bundle(teacher)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (bundle.preprocess.mean, bundle.preprocess.std))
    with torch.no_grad():
        logits: torch.Tensor = bundle.build_model()((images_BCHW / 255 - mean) / std)
    return logits


def images(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(0)).float()


def test_the_loss_is_the_labels_and_the_softened_divergence(teacher: Path) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = distillation(teacher, weight=0.7, temperature=3.0)(torch.tensor(2.0), logits, images(16))
    p = (teacher_logits(teacher, images(16)) / 3).softmax(1)
    divergence = (p * (p.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss, 0.3 * 2.0 + 0.7 * 9 * divergence, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert logits.grad is not None


def test_an_image_weighs_in_the_divergence_as_it_does_in_the_loss(teacher: Path) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([4.0, 0.1, 0.5, 0.2])
    loss = distillation(teacher, weight=0.7, temperature=3.0)(torch.tensor(2.0), logits, images(16), weights)
    p = (teacher_logits(teacher, images(16)) / 3).softmax(1)
    divergences = (p * (p.log() - (logits / 3).log_softmax(1))).sum(1)
    torch.testing.assert_close(loss, 0.3 * 2.0 + 0.7 * 9 * (weights * divergences).mean(), rtol=1e-4, atol=1e-5)


def test_a_teacher_of_another_size_sees_the_same_view_resized(teacher: Path) -> None:
    seen = distillation(teacher)._log_probs(images(8), 1.0)
    resized = nn.functional.interpolate(images(8), (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, teacher_logits(teacher, resized).log_softmax(1), rtol=1e-4, atol=1e-5)


def test_mirrored_answers_are_the_mean_over_both_ways_round(teacher: Path) -> None:
    seen = distillation(teacher, mirrored=True)._log_probs(images(16), 1.0).exp()
    both = [teacher_logits(teacher, x).softmax(1) for x in (images(16), images(16).flip(-1))]
    torch.testing.assert_close(seen, (both[0] + both[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_form_of_the_teacher_answers_in_its_place(teacher: Path, run_tiny: RunTiny) -> None:
    bundle = load_bundle(teacher)
    classify = load_runtime("eager", bundle, device=CPU, precision="fp32")
    seen = set()

    def answers(images_NHWC: np.ndarray) -> np.ndarray:
        seen.add((images_NHWC.dtype, *images_NHWC.shape))
        return classify(images_NHWC)

    config = DistillConfig(teacher=str(teacher))
    made = make_distillation(config, classes=bundle.classes, channels=3, device=CPU, teacher=answers)
    assert made is not None
    whole = images(16)
    # a softer answer, which logarithms of probabilities give as logits do
    expected = (teacher_logits(teacher, whole) / 2).log_softmax(1)
    torch.testing.assert_close(made._log_probs(whole, 2.0), expected, rtol=1e-3, atol=1e-4)
    # from another size it gets pixels of its own
    made._log_probs(images(8), 1.0)
    assert seen == {(np.dtype(np.uint8), 4, 16, 16, 3)}
    seen.clear()
    run_tiny("distilled", {"distill.teacher": str(teacher)}, epochs=1, teacher=answers)
    assert {shape[2:] for shape in seen} == {(16, 16, 3)}


def test_a_student_for_smaller_images_learns_from_views_of_its_teachers_size(
    teacher: Path, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, normalised = set(), set()
    num_classes = len(load_bundle(teacher).classes)
    plain = Normalize.forward

    def answers(images_NHWC: np.ndarray) -> np.ndarray:
        seen.add(images_NHWC.shape[2])
        return np.full((len(images_NHWC), num_classes), 1 / num_classes, np.float32)

    def watched(self: Normalize, images_BCHW: torch.Tensor) -> torch.Tensor:
        out = plain(self, images_BCHW)
        normalised.add((images_BCHW.shape[-1], out.shape[-1]))
        return out

    monkeypatch.setattr(Normalize, "forward", watched)
    result = run_tiny("small", {"distill.teacher": str(teacher), "model.size": 12}, epochs=1, teacher=answers)
    # whole views for the teacher, and of each what the student sees
    assert seen == {16}
    assert normalised == {(16, 12)}
    small, large = load_bundle(result.bundle), load_bundle(teacher).preprocess
    assert small.preprocess.size == small.info.architecture.size == 12
    assert small.preprocess.store_size == round(large.store_size * 12 / 16)
    photo = images(40)[0].byte().permute(1, 2, 0).numpy()
    assert Predictor(small).probs(small.preprocess.load(photo)[None]).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"model\.size is larger than data\.size: got 32 and 16 px"):
        run_tiny("large", {"model.size": 32})


def test_shrunk_pixels_are_those_of_a_resize_with_antialiasing() -> None:
    pixels = images(16)
    shrunk = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), shrink=0.75)(pixels)
    resized = nn.functional.interpolate(pixels, (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(shrunk, Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(resized))


def test_a_run_with_a_teacher_differs_and_says_so_in_its_recipe(teacher: Path, run_tiny: RunTiny) -> None:
    plain = run_tiny("plain", {"augment.mixup": 0.0}, epochs=1)
    distilled = run_tiny("distilled", {"augment.mixup": 0.0, "distill.teacher": str(teacher)}, epochs=1)
    assert load_bundle(distilled.bundle).info.recipe["distill"]["teacher"] == str(teacher)
    weights = [load_bundle(result.bundle).build_model().state_dict() for result in (plain, distilled)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_teacher_of_other_classes_or_colours_is_refused(teacher: Path, run_tiny: RunTiny) -> None:
    bundle = load_bundle(teacher)
    other = dataclasses.replace(bundle.info, classes=("a", "b", "c"))
    save_bundle(teacher.with_name("other"), bundle.build_model(), other)
    with pytest.raises(ConfigError, match=r"the teacher knows other classes: .*other has 3, a first"):
        run_tiny("refused", {"distill.teacher": str(teacher.with_name("other"))})
    with pytest.raises(ConfigError, match="takes 3 channels, the student 1"):
        run_tiny("grey", {"distill.teacher": str(teacher), "data.channels": 1})


def test_the_weights_own_statistics_can_be_given(run_tiny: RunTiny) -> None:
    given = {"data.mean": (0.1, 0.2, 0.3), "data.std": (0.4, 0.5, 0.6)}
    preprocess = load_bundle(run_tiny("given", given, epochs=1).bundle).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(ConfigError, match="a value for each channel: got 1 for 3"):
        run_tiny("few", {"data.mean": (0.1,), "data.std": (0.4,)})
    with pytest.raises(ConfigError, match="Give both, or neither"):
        run_tiny("half", {"data.mean": (0.1, 0.2, 0.3)})
