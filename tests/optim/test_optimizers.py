"""Optimizers by name: ours are torch's, timm's are built or refused, and each of them learns."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers as list_timm
from torch import nn

from vivace.errors import ConfigError
from vivace.optim.config import OptimizerConfig
from vivace.optim.optimizers import OPTIMIZERS, create_optimizer, list_optimizers


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def make_loss(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return nn.functional.cross_entropy(model(images), labels)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = make_loss(model)
        loss.backward()
        optimizer.step()
    return make_loss(model).item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_of_our_table_lowers_the_loss(name: str) -> None:
    model = make_model()
    before = make_loss(model).item()
    optimizer = create_optimizer(model, OptimizerConfig(name=name, lr=0.02), head=["3.weight", "3.bias"])
    assert train(model, optimizer, 30) < 0.8 * before


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            OptimizerConfig(
                name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, decay_norm_and_bias=True
            ),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (OptimizerConfig(name="sgd", lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            OptimizerConfig(name="adam", lr=0.01, options={"betas": [0.8, 0.9]}),
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9)),
        ),
        (
            OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, decay_norm_and_bias=True),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        ),
    ],
    ids=["sgd", "plain-sgd", "adam", "adamw"],
)
def test_ours_are_torchs(config: OptimizerConfig, reference: Any) -> None:
    mine, theirs = make_model(), make_model()
    train(mine, create_optimizer(mine, config), 5)
    train(theirs, reference(theirs.parameters()), 5)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_muon_treats_matrices_of_the_body_and_leaves_the_rest_to_its_auxiliary_rate() -> None:
    config = OptimizerConfig(name="muon", lr=0.2, aux_lr=0.05)
    optimizer = create_optimizer(make_model(), config, head=["3.weight", "3.bias"])
    treated = {name: (group["muon"], group["lr"]) for group in optimizer.param_groups for name in group["names"]}
    assert treated.pop("0.weight") == (True, 0.2)
    assert all(value == (False, pytest.approx(0.05)) for value in treated.values())
    by_default = create_optimizer(make_model(), OptimizerConfig(name="muon", lr=0.2), head=["3.weight"])
    assert by_default.param_groups[-1]["lr"] == pytest.approx(0.02)


@pytest.mark.parametrize("name", sorted(list_timm()))
def test_every_optimizer_of_timm_makes_a_step_or_is_refused_with_the_reason(name: str) -> None:
    model, config = make_model(), OptimizerConfig(name=name, lr=0.01, weight_decay=0.01)
    if name not in list_optimizers():
        with pytest.raises(ConfigError, match=rf"^the optimizer {name} can't be used: it needs [^\n]*$"):
            create_optimizer(model, config)
        return
    with warnings.catch_warnings():
        # some of timm's use calls that torch wants to rename, or recommend a library that makes them faster
        warnings.simplefilter("ignore")
        optimizer = create_optimizer(model, config)
        loss = train(model, optimizer, 2)
    assert loss == loss
    assert all("initial_lr" in group for group in optimizer.param_groups)


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^the optimizer is unknown: got 'adamm'\. Did you mean .*'adam"):
        create_optimizer(make_model(), OptimizerConfig(name="adamm"))
    with pytest.raises(ConfigError, match=r"^optimizer\.options\.beta is not known to adam\. Did you mean 'betas'"):
        create_optimizer(make_model(), OptimizerConfig(name="adam", options={"beta": 0.9}))
    with pytest.raises(
        ConfigError, match=r"^optimizer\.options\.lr is a field of its own: got 0\.9\. Set optimizer\.lr"
    ):
        create_optimizer(make_model(), OptimizerConfig(name="sgd", options={"lr": 0.9}))
    with pytest.raises(ConfigError, match=r"^the optimizer adam can't be made: .*beta.*Mend optimizer\.options"):
        create_optimizer(make_model(), OptimizerConfig(name="adam", options={"betas": [2.0, 0.9]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"optimizer\.lr.*got 0\.0"),
        ({"momentum": 1.0}, r"optimizer\.momentum.*got 1\.0"),
        ({"weight_decay": -1.0}, r"optimizer\.weight_decay.*got -1\.0"),
        ({"layer_decay": 1.5}, r"optimizer\.layer_decay.*got 1\.5"),
        ({"nesterov": True, "momentum": 0.0}, r"optimizer\.nesterov needs a momentum"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**options)
