"""The head of a frozen network: logistic regression with a strength chosen on images left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vivace.training.finetuning.head import MIN_STEPS, STRENGTHS, _Problem, fit_head


def clusters(count: int, width: int, classes: int, *, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """features_ND around a centre for each class, scaled and shifted from column to column, and labels_N."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    features = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return features * torch.linspace(0.1, 10, width) + torch.linspace(-5, 5, width), labels


@pytest.mark.parametrize(("count", "width"), [(240, 30), (60, 200)])
def test_it_is_the_solution_that_scikit_learn_finds(count: int, width: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(count, width, 4, spread=3.0)
    head = fit_head(features, labels, 4)
    variance = features.var(0, correction=0)
    # the deviation of a feature is not far below that of all
    standardized = (features - features.mean(0)) / (variance + variance.mean()).sqrt()
    # its penalty is ½ |w|² / C on the sum of the losses, ours strength / 2 · |w|² on their mean
    reference = linear_model.LogisticRegression(C=1 / (head.strength * count), tol=1e-8, max_iter=10_000)
    reference.fit(standardized.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(standardized.numpy())).float()
    found = functional.linear(features, head.weight_KD, head.bias_K).softmax(1)
    assert float((found - expected).abs().max()) < 0.01
    assert head.top1 == pytest.approx(float((found.argmax(1) == labels).float().mean()))


def test_a_feature_that_few_images_do_not_have_says_little_of_others() -> None:
    features, labels = clusters(12, 20, 3, spread=0.5)
    # as good as constant in these images, and, by chance, a bit larger in those of one class
    rare = torch.where(labels == 0, 1.01e-3, 1e-3)[:, None]
    head = fit_head(torch.cat([features, rare], 1), labels, 3)
    others, known = clusters(300, 20, 3, spread=0.5, seed=1)
    loud = 5 * torch.rand(300, 1, generator=torch.Generator().manual_seed(2))
    found = functional.linear(torch.cat([others, loud], 1), head.weight_KD, head.bias_K).argmax(1)
    assert float((found == known).float().mean()) > 0.95


def test_many_classes_are_solved_within_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(600, 64, 300, spread=0.1)
    whole = fit_head(features, labels, 300)
    steps: list[int] = []
    logits = _Problem.logits
    monkeypatch.setattr(_Problem, "logits", lambda self, weights: (steps.append(1), logits(self, weights))[1])
    hurried = fit_head(features, labels, 300, seconds=0.0)
    # both problems make the steps that are made in any case, and a last look at the answers
    assert len(steps) <= 2 * (MIN_STEPS + 1)
    assert hurried.top1 > 0.9
    assert whole.loss <= hurried.loss


def test_a_quick_head_takes_a_fifth_of_the_products_and_is_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(400, 60, 4, spread=0.5)
    columns: list[int] = []
    logits = _Problem.logits
    monkeypatch.setattr(
        _Problem, "logits", lambda self, weights: (columns.append(len(weights)), logits(self, weights))[1]
    )
    whole = fit_head(features, labels, 4)
    of_whole = sum(columns)
    quick = fit_head(features, labels, 4, is_quick=True)
    assert sum(columns) - of_whole < of_whole / 5
    others, known = clusters(400, 60, 4, spread=0.5, seed=1)
    right = [functional.linear(others, head.weight_KD, head.bias_K).argmax(1) == known for head in (whole, quick)]
    assert float(right[1].float().mean()) > float(right[0].float().mean()) - 0.02


def test_noise_is_regularized_more_than_what_can_be_told_apart() -> None:
    clear, labels = clusters(200, 40, 4, spread=0.3)
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(1))
    heads = fit_head(clear, labels, 4), fit_head(noise, labels, 4)
    assert heads[0].strength < heads[1].strength == max(STRENGTHS)
    assert heads[0].left_out_top1 > 0.98
    # what it says of images left out is true: noise is at chance, however well the fit knows its own images
    assert heads[1].left_out_top1 < 0.4


def test_views_of_an_image_are_left_out_together() -> None:
    noise = torch.randn(100, 300, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(100) % 2
    views, images = torch.cat([noise, noise + 1e-3]), torch.arange(100).repeat(2)
    apart = fit_head(views, labels.repeat(2), 2)
    together = fit_head(views, labels.repeat(2), 2, images_N=images)
    # with its twin in the fit, as in three folds of four, an image that was left out is known
    assert apart.left_out_top1 > 0.8
    assert together.left_out_top1 < 0.7


def test_class_weights_count_for_a_rare_class() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = (torch.arange(400) % 20 == 0).long()
    features = labels[:, None] * 1.0 + torch.randn(400, 5, generator=generator)
    plain = fit_head(features, labels, 2)
    weighted = fit_head(features, labels, 2, class_weights_K=torch.tensor([0.5, 10.0]))
    rare = labels == 1

    def found(head: object) -> float:
        logits = functional.linear(features[rare], head.weight_KD, head.bias_K)  # type: ignore[attr-defined]
        return float((logits.argmax(1) == 1).float().mean())

    assert found(weighted) > found(plain) + 0.2


def test_constant_features_and_one_image_for_a_class_do_no_harm() -> None:
    features, labels = clusters(41, 8, 2, spread=0.2)
    labels[:] = 0
    labels[20:40] = 1
    labels[40] = 2
    features = torch.cat([features, torch.full((41, 3), 7.0)], 1)
    head = fit_head(features, labels, 3)
    assert head.weight_KD.isfinite().all()
    assert (head.weight_KD[:, -3:] == 0).all()


def test_it_is_the_same_every_time() -> None:
    features, labels = clusters(90, 20, 3, spread=2.0)
    first, second = (fit_head(features, labels, 3, seed=5) for _ in range(2))
    assert torch.equal(first.weight_KD, second.weight_KD)
    assert first.strength == second.strength


def test_many_rows_choose_the_strength_on_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from vivace.training.finetuning import head as module

    features, labels = clusters(600, 20, 3, spread=2.0)
    whole = fit_head(features, labels, 3)
    monkeypatch.setattr(module, "MAX_PRODUCTS", 600 * 21 * 3)
    part = fit_head(features, labels, 3)
    assert part.strength in STRENGTHS
    assert abs(part.top1 - whole.top1) < 0.1
