"""Attacks find what there is to find, and nothing that they give is believed unchecked."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from small_nets import convnet, linear, margins, some_images
from torch import Tensor
from torch.nn import functional

from vivace.errors import ConfigError
from vivace.robustness.attacks import suite
from vivace.robustness.attacks.fab import onto_boundary
from vivace.robustness.attacks.losses import log_odds, targeted_ratio
from vivace.robustness.attacks.running import Turn
from vivace.robustness.attacks.suite import METHODS, STANDARD, run_attacks
from vivace.robustness.attacks.threat import Ball, Threat, norms_of

NORMS = ("linf", "l2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def at(norm: str, eps: float) -> Threat:
    return Threat(norm, eps, f"{norm}:{eps}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "square"])
def test_on_a_linear_network_the_robust_images_are_those_whose_margin_exceeds_eps(norm: str, method: str) -> None:
    """Two classes: the nearest point of the other one is known in closed form."""
    network, weights = linear(2, 6)
    images = some_images(60, 6)
    distances = margins(network, weights, images, norm)
    eps = float(distances.median())
    found = run_attacks(network, images, network(images).argmax(1), at(norm, eps), methods=(method,))
    assert not found.is_robust_N[distances > 1.00001 * eps].logical_not().any()
    # PGD's steps do not shrink, and FAB goes beyond the boundary by a twentieth
    nearly = 0.95 if method in ("pgd", "fab-t") else 0.998
    assert not found.is_robust_N[distances < nearly * eps].any()
    assert ((distances < nearly * eps) | (distances > eps)).sum() >= 54


@pytest.mark.parametrize("norm", NORMS)
def test_of_several_classes_the_suite_finds_every_image_within_reach(norm: str) -> None:
    network, weights = linear(5, 6)
    images = some_images(60, 6)
    distances = margins(network, weights, images, norm)
    eps = float(distances.median())
    found = run_attacks(network, images, network(images).argmax(1), at(norm, eps), methods=("apgd-t", "fab-t"))
    decided = (distances - eps).abs() > 0.002 * eps
    assert (found.is_robust_N == (distances > eps))[decided].all()


def test_square_needs_no_gradient_and_never_finds_what_is_not_there() -> None:
    linear_network, weights = linear(3, 6)
    images = some_images(30, 6)
    distances = margins(linear_network, weights, images, "linf")
    eps = float(distances.median())

    def network(images_BCHW: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return linear_network(images_BCHW)

    found = run_attacks(network, images, linear_network(images).argmax(1), at("linf", eps), methods=("square",))
    assert found.is_robust_N[distances > eps].all()
    assert found.is_robust_N[distances < 0.9 * eps].float().mean() < 0.1
    within_l2 = float(margins(linear_network, weights, images, "l2").median())
    found = run_attacks(
        network, images[:6], linear_network(images[:6]).argmax(1), at("l2", 6 * within_l2), methods=("square",)
    )
    assert found.runs[0].num_fooled >= 4
    assert found.runs[0].num_refused == 0


# of 40 images: those that the reference left (pyautoattack 0.2.0, the code of AutoAttack's authors; seed 0)
REFERENCE = {
    ("linf", 0.006): {"apgd-ce": 11, "apgd-t": 7, "fab-t": 7},
    ("l2", 0.08): {"apgd-ce": 14, "apgd-t": 10, "fab-t": 11},
}


@pytest.mark.parametrize(("norm", "eps"), REFERENCE)
def test_on_a_convnet_each_attack_leaves_what_the_reference_leaves(norm: str, eps: float) -> None:
    network, images = convnet(), some_images(40, 12)
    labels = network(images).argmax(1)
    for method, left in REFERENCE[norm, eps].items():
        found = run_attacks(network, images, labels, at(norm, eps), methods=(method,))
        # starting points are random
        assert abs(int(found.is_robust_N.sum()) - left) <= 1, method


@pytest.mark.parametrize("norm", NORMS)
def test_adversarial_points_lie_in_the_ball_to_the_last_bit_and_fool_the_network(norm: str) -> None:
    network, images = convnet(), some_images(40, 12)
    # pixels at the ends, where clamping matters
    images[:, :, :4] = images[:, :, :4].round()
    labels = network(images).argmax(1)
    threat = at(norm, 8 / 255 if norm == "linf" else 0.2)
    found = run_attacks(network, images, labels, threat, methods=("pgd", "apgd-t"))
    fell = ~found.is_robust_N
    assert fell.sum() > 5
    points, centres = found.adversarial_NCHW[fell], images[fell]
    assert (network(points).argmax(1) != labels[fell]).all()
    assert points.min() >= 0
    assert points.max() <= 1
    assert norms_of(points.double() - centres.double(), norm).max() <= threat.eps
    assert torch.equal(found.adversarial_NCHW[~fell], images[~fell])


def test_what_an_attack_claims_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = convnet(), some_images(12, 12)
    labels = network(images).argmax(1)

    def lies(network: object, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
        points = ball.centres.clone()
        points[:4] = 1 - points[:4]  # far outside
        points[4:8] += 1e-6  # inside, and of the same class
        points[8] = torch.nan
        return points

    monkeypatch.setitem(suite.ATTACKS, "square", lies)
    found = run_attacks(network, images, labels, at("linf", 0.001), methods=("square",))
    assert found.is_robust_N.all()
    assert (found.runs[0].num_fooled, found.runs[0].num_refused) == (0, 9)


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_found_with_a_less_exact_copy_counts_only_if_it_fools_the_network(norm: str) -> None:
    network, images = convnet(), some_images(40, 12)
    labels = network(images).argmax(1)
    threat = at(norm, 0.008 if norm == "linf" else 0.1)

    def rounded(points: Tensor) -> Tensor:
        return network(points.bfloat16().float()).bfloat16().float()

    exact = run_attacks(network, images, labels, threat, methods=suite.STANDARD)
    coarse = run_attacks(network, images, labels, threat, methods=suite.STANDARD, searched=rounded)
    fell = ~coarse.is_robust_N
    assert 5 < fell.sum() < 40
    assert (network(coarse.adversarial_NCHW[fell]).argmax(1) != labels[fell]).all()
    assert sum(run.num_refused for run in coarse.runs) == 0
    assert abs(int(coarse.is_robust_N.sum()) - int(exact.is_robust_N.sum())) <= 1


@pytest.mark.parametrize("method", ["pgd", "apgd-ce", "apgd-t", "square"])
def test_a_copy_that_is_never_fooled_has_its_last_points_judged(method: str) -> None:
    network, images = convnet(), some_images(200, 12)
    labels = network(images).argmax(1)
    # of one class, so that a copy can know the true one
    (common,) = labels.mode().values[None].tolist()
    images, labels = images[labels == common], labels[labels == common]

    def stubborn(points: Tensor) -> Tensor:
        sure = torch.zeros(6)
        sure[common] = 1e3
        return network(points) + sure

    exact = run_attacks(network, images, labels, at("linf", 0.01), methods=(method,))
    judged = run_attacks(network, images, labels, at("linf", 0.01), methods=(method,), searched=stubborn)
    assert int(exact.fooled_by[method].sum()) > 10
    assert int(judged.fooled_by[method].sum()) > 0.8 * int(exact.fooled_by[method].sum())


@pytest.mark.parametrize("method", suite.STANDARD)
def test_a_copy_that_is_always_fooled_gains_nothing(method: str) -> None:
    network, images = convnet(), some_images(40, 12)
    labels = network(images).argmax(1)
    threat = at("linf", 1e-5)
    found = run_attacks(network, images, labels, threat, methods=(method,), searched=lambda points: -network(points))
    assert found.is_robust_N.all()
    assert found.runs[0].num_refused == 0


def test_images_that_are_wrong_as_they_are_are_not_attacked() -> None:
    network, images = convnet(), some_images(20, 12)
    labels = network(images).argmax(1)
    labels[:8] = (labels[:8] + 1) % 6
    found = run_attacks(network, images, labels, at("linf", 1e-6), methods=("fgsm", "apgd-ce"))
    assert found.is_correct_N.tolist() == [False] * 8 + [True] * 12
    assert torch.equal(found.is_robust_N, found.is_correct_N)
    assert [run.num_attacked for run in found.runs] == [12, 12]


def test_each_image_is_decided_alone_and_the_seed_decides_the_rest() -> None:
    network, images = convnet(), some_images(20, 12)
    labels = network(images).argmax(1)
    runs = [run_attacks(network, images, labels, at("linf", 0.006), methods=("pgd",), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].adversarial_NCHW, runs[1].adversarial_NCHW)
    assert not torch.equal(runs[0].adversarial_NCHW, runs[2].adversarial_NCHW)
    small = run_attacks(network, images, labels, at("linf", 0.006), methods=("apgd-ce",), batch_size=3)
    large = run_attacks(network, images, labels, at("linf", 0.006), methods=("apgd-ce",))
    assert abs(int(small.is_robust_N.sum()) - int(large.is_robust_N.sum())) <= 1


def test_a_deadline_stops_attacks_and_their_images_count_as_robust() -> None:
    network, images = convnet(), some_images(20, 12)
    labels = network(images).argmax(1)
    ticks = itertools.count()
    found = run_attacks(
        network, images, labels, at("linf", 0.5), methods=STANDARD, deadline=1, clock=lambda: float(next(ticks))
    )
    assert [run.is_complete for run in found.runs] == [False] * 4
    assert found.is_robust_N.any()


def test_certainty_does_not_pass_for_robustness() -> None:
    """Logits so large that the gradient of cross-entropy is 0 in float32."""
    plain, weights = linear(3, 6)
    images = some_images(20, 6)
    labels = plain(images).argmax(1)

    def certain(images_BCHW: Tensor) -> Tensor:
        return 1e4 * plain(images_BCHW)

    points = images.clone().requires_grad_()
    (vanished,) = torch.autograd.grad(functional.cross_entropy(certain(points), labels, reduction="sum"), points)
    assert (vanished.flatten(1).abs().sum(1) == 0).float().mean() > 0.5
    threat = at("linf", float(margins(plain, weights, images, "linf").median()))
    robust = [run_attacks(net, images, labels, threat, methods=("apgd-ce",)).is_robust_N for net in (plain, certain)]
    assert torch.equal(*robust)


def test_log_odds_have_the_direction_of_cross_entropy() -> None:
    logits, labels = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 5
    gradients = []
    for loss in (
        lambda z: log_odds(z, labels).sum(),
        lambda z: functional.cross_entropy(z, labels, reduction="sum"),
    ):
        points = logits.clone().requires_grad_()
        gradients.append(functional.normalize(torch.autograd.grad(loss(points), points)[0], dim=1))
    torch.testing.assert_close(*gradients)
    odds = log_odds(logits, labels)
    torch.testing.assert_close(functional.cross_entropy(logits, labels, reduction="none"), odds.exp().log1p())


def test_the_targeted_ratio_does_not_change_with_the_scale_of_logits() -> None:
    for classes in (3, 4, 10):
        logits = torch.randn(6, classes, dtype=torch.float64)
        labels, targets = torch.zeros(6, dtype=torch.long), torch.full((6,), classes - 1)
        torch.testing.assert_close(targeted_ratio(logits, labels, targets), targeted_ratio(7 * logits, labels, targets))
    # with the values of the definition, of one image
    logits = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    ratio = targeted_ratio(logits, torch.tensor([0]), torch.tensor([2]))
    assert ratio.item() == pytest.approx((3 - 4) / (4 - (2 + 1) / 2))


def _smallest_change(point: np.ndarray, normal: np.ndarray, offset: float, norm: str) -> np.ndarray:
    """By scipy: the change of least norm onto the hyperplane within [0, 1]."""
    size = len(point)
    if norm == "linf":
        bounds = [*zip(-point, 1 - point, strict=True), (0, None)]
        limits = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        found = linprog(
            np.r_[np.zeros(size), 1],
            A_ub=limits,
            b_ub=np.zeros(2 * size),
            A_eq=np.r_[normal, 0][None],
            b_eq=[-offset - normal @ point],
            bounds=bounds,
        )
        assert found.success
        return np.asarray(found.x[:-1])
    found = minimize(
        lambda change: change @ change,
        np.zeros(size),
        jac=lambda change: 2 * change,
        bounds=list(zip(-point, 1 - point, strict=True)),
        constraints={"type": "eq", "fun": lambda change: normal @ (point + change) + offset},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return np.asarray(found.x)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_onto_a_boundary_are_the_smallest_changes(norm: str) -> None:
    draw = np.random.default_rng(0)
    points, normals = draw.uniform(size=(12, 8)), draw.normal(size=(12, 8))
    normals[:, 0] = 0
    # hyperplanes through other points of the cube: each can be reached
    offsets = -(normals * draw.uniform(size=(12, 8))).sum(1)
    ours = onto_boundary(*(torch.from_numpy(part) for part in (points, normals, offsets)), norm).numpy()
    moved = points + ours
    assert moved.min() >= 0
    assert moved.max() <= 1
    np.testing.assert_allclose((normals * moved).sum(1) + offsets, 0, atol=1e-5)
    for change, point, normal, offset in zip(ours, points, normals, offsets, strict=True):
        least = _smallest_change(point, normal, offset, norm)
        length: Callable[[np.ndarray], float] = (
            (lambda part: float(np.abs(part).max())) if norm == "linf" else (lambda part: float(np.linalg.norm(part)))
        )
        assert length(change) == pytest.approx(length(least), rel=1e-4, abs=1e-6)


def test_an_unreachable_boundary_gives_what_comes_nearest() -> None:
    points, normals = torch.full((1, 3), 0.5), torch.tensor([[1.0, -2.0, 0.0]])
    for norm in NORMS:
        change = onto_boundary(points, normals, torch.tensor([9.0]), norm)
        torch.testing.assert_close(points + change, torch.tensor([[0.0, 1.0, 0.5]]))


def test_a_threat_is_a_norm_and_a_radius() -> None:
    assert Threat.parse("linf:8/255") == Threat("linf", 8 / 255, "linf:8/255")
    assert Threat.parse("l2:0.5").eps == 0.5
    for text in (
        "8/255",
        "linf:",
        "linf:0",
        "linf:1/0",
        "linf:2",
        "l1:3",
        "l2:-1",
        "l2:1e3",
        "L2:0.5",
        "linf:" + "9" * 99,
    ):
        with pytest.raises(ConfigError, match=r"the attack('s radius)? is (not understood|out of range): got"):
            Threat.parse(text)


def test_a_ball_holds_no_point_beyond_eps_whatever_rounding_does() -> None:
    images = (torch.arange(256).float() / 255).reshape(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    ball = Ball.around(images, at("linf", 8 / 255))
    for end in (ball.lower, ball.upper):
        assert ((end.double() - images.double()).abs() <= 8 / 255).all()
        assert ball.contains(end).all()
    # without the rounding some would not be
    assert ((images + 8 / 255).double() - images.double() > 8 / 255).any()
    far = Ball.around(images, at("l2", 0.5)).project(images + 1)
    assert norms_of(far.double() - images.double(), "l2").max() <= 0.5
