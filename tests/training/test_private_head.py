"""DP-SGD on a linear head: its accountant against dp-accounting, its clipped gradients against Opacus's."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.private.accounting import epsilon_of, noise_for
from vivace.training.private.head import (
    Features,
    clipped_sums,
    fit_private_head,
    private_mean,
    secret_generator,
)

# (releases, delta) → epsilon of Google's dp-accounting 0.6.0: PLDAccountant(value_discretization_interval=1e-4), each a
# PoissonSampledDpEvent of a GaussianDpEvent, composed with itself as often as the last number says
REFERENCE = [
    (((5.0, 0.1, 400),), 1e-5, 1.5985982884411565),
    (((5.0, 0.1, 400), (20.0, 1.0, 1)), 1e-5, 1.6115334548312978),
    (((30.0, 1.0, 60),), 1e-5, 0.9597245329504966),
    (((1.0, 0.01, 1000),), 1e-5, 1.8282436455855091),
]


@pytest.mark.parametrize(("releases", "delta", "expected"), REFERENCE)
def test_the_accountant_is_within_one_percent_of_googles_and_above_it(
    releases: tuple, delta: float, expected: float
) -> None:
    found = epsilon_of(releases, delta, error=0.002 * expected)
    assert expected <= found <= 1.01 * expected


@pytest.mark.parametrize("center", [0.0, 0.05])
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_noise_spends_what_was_asked_for_and_no_more(epsilon: float, center: float) -> None:
    noise, mean_noise = noise_for(epsilon, 1e-5, sample_rate=0.2, steps=100, center=center)
    assert (mean_noise is None) == (center == 0)
    before = [] if mean_noise is None else [(mean_noise, 1.0, 1)]
    spent = epsilon_of([*before, (noise, 0.2, 100)], 1e-5, error=0.002 * epsilon)
    assert 0.99 * epsilon < spent <= epsilon


def problem(count: int = 24, width: int = 5, views: int = 2) -> tuple[Features, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(count, width, generator=generator) for _ in range(views)]
    return Features(views=given, mean_D=torch.randn(width, generator=generator), scale=1.7), torch.arange(count) % 3


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("clip_norm", [0.1, 100.0])
def test_clipped_gradients_are_those_that_opacus_takes_image_by_image(views: int, clip_norm: float) -> None:
    features, labels_N = problem(views=views)
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(5, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 5, generator=generator))
    rows_B = torch.tensor([3, 4, 9, 20])
    found = clipped_sums(features, labels_N, rows_B, layer.weight.detach(), layer.bias.detach(), clip_norm)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        module = GradSampleModule(layer)
        private = DPOptimizer(
            torch.optim.SGD(module.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=clip_norm,
            expected_batch_size=1,
            loss_reduction="sum",
        )
        z_BVD = features.rows(rows_B)
        functional.cross_entropy(module(z_BVD.flatten(0, 1)), labels_N[rows_B].repeat_interleave(views)).backward()
        for parameter in module.parameters():
            # Opacus multiplies by the size of the batch; the mean over the views of an image
            parameter.grad_sample = parameter.grad_sample.unflatten(0, (len(rows_B), views)).mean(1)
        private.clip_and_accumulate()
    for mine, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.summed_grad, rtol=1e-4, atol=1e-6)


def test_no_image_adds_more_than_the_norm() -> None:
    features, labels_N = problem()
    features = Features(views=[1000 * view for view in features.views], mean_D=features.mean_D, scale=1.0)
    weight_KD, bias_K = torch.randn(3, 5), torch.zeros(3)
    for row in range(len(features)):
        sums = clipped_sums(features, labels_N, torch.tensor([row]), weight_KD, bias_K, 0.5)
        assert math.hypot(*(float(total.norm()) for total in sums)) <= 0.5


def fitted(noise_multiplier: float, *, generator: torch.Generator | None = None, rate: float = 1.0) -> tuple:
    features, labels_N = problem(count=300)
    # classes that features tell apart
    views = [view + 3 * functional.one_hot(labels_N, 5) for view in features.views]
    features = Features(views=views, mean_D=features.mean_D, scale=1.7)
    head = fit_private_head(
        features,
        labels_N,
        3,
        optimizer=OptimizerConfig(name="sgd", lr=2.0, momentum=0.9),
        schedule=ScheduleConfig(),
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        sample_rate=rate,
        steps=40,
        generator=generator,
    )
    top1 = float(((views[0] @ head.weight_KD.t() + head.bias_K).argmax(1) == labels_N).float().mean())
    return head, top1


def test_a_head_without_noise_learns_and_noise_harms_it() -> None:
    assert fitted(0.0)[1] > 0.9
    assert fitted(1e5)[1] < 0.9


def test_a_batch_may_be_empty() -> None:
    assert fitted(0.0, rate=1e-6)[0].weight_KD.isfinite().all()


def test_no_seed_tells_the_noise() -> None:
    torch.manual_seed(0)
    first = fitted(1.0)[0]
    torch.manual_seed(0)
    assert not torch.equal(first.weight_KD, fitted(1.0)[0].weight_KD)
    same = [fitted(1.0, generator=torch.Generator().manual_seed(5))[0].weight_KD for _ in range(2)]
    assert torch.equal(*same)


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    features, labels_N = problem(count=6, width=4000)
    head = fit_private_head(
        Features(views=features.views, mean_D=torch.zeros(4000), scale=1.0),
        labels_N,
        3,
        optimizer=OptimizerConfig(name="sgd", lr=1.0, momentum=0.0),
        schedule=ScheduleConfig(),
        clip_norm=0.01,
        noise_multiplier=5000.0,
        sample_rate=1.0,
        steps=1,
        averaged=1.0,
        generator=secret_generator(),
    )
    # one step of rate 1: the noise alone, over the number of images
    assert float(head.weight_KD.std()) == pytest.approx(5000 * 0.01 / 6, rel=0.05)


def test_the_mean_is_that_of_the_clipped_features_with_its_noise() -> None:
    features, _ = problem(count=4000)
    plain = torch.stack(list(features.views)).mean((0, 1))
    torch.testing.assert_close(private_mean(features.views, 1e3, 0.0, secret_generator()), plain, atol=1e-5, rtol=1e-4)
    assert float(private_mean(features.views, 1e-3, 0.0, secret_generator()).norm()) <= 1e-3
    assert not private_mean(features.views, 1.0, None, secret_generator()).any()
    noisy = torch.stack([private_mean(features.views, 1e-9, 2e12, secret_generator()) for _ in range(200)])
    assert float(noisy.std()) == pytest.approx(2e12 * 1e-9 / 4000, rel=0.1)
