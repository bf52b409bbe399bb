"""Optimizers by name: ours are torch's, timm's are built or refused, and each of them learns."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from timm.optim import Lars
from timm.optim import list_optimizers as list_timm
from torch import nn

from vivace.errors import ConfigError
from vivace.optim import config as optim_config
from vivace.optim.config import OptimizerConfig
from vivace.optim.optimizers import OPTIMIZERS, create_optimizer, list_optimizers


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def make_loss(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return nn.functional.cross_entropy(model(images), labels)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_lamb_is_the_papers_with_decoupled_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    config = OptimizerConfig(name="lamb", lr=0.05, weight_decay=0.1, options={"betas": [0.8, 0.9]})
    optimizer = create_optimizer(model, config)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step in range(1, 4):
        gradients = {name: random(*p.shape, seed=step) for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()
        # the gradient as a whole has a norm of at most 1
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm().clamp(min=1.0)
        for name, weight in weights.items():
            gradient = gradients[name] / norm
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            ratio = first[name] / (1 - 0.8**step) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            trust = torch.tensor(1.0)
            if name.endswith("weight"):
                weight = weight * (1 - 0.05 * 0.1)
                trust = weight.norm() / ratio.norm()
            weights[name] = weight - 0.05 * trust * ratio
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], atol=1e-5, rtol=1e-4)


def test_muon_treats_matrices_of_the_body_and_leaves_the_rest_to_its_auxiliary_rate() -> None:
    config = OptimizerConfig(name="muon", lr=0.2, aux_lr=0.05)
    optimizer = create_optimizer(make_model(), config, head=["3.weight", "3.bias"])
    treated = {name: (group["muon"], group["lr"]) for group in optimizer.param_groups for name in group["names"]}
    assert treated.pop("0.weight") == (True, 0.2)
    assert all(value == (False, pytest.approx(0.05)) for value in treated.values())
    by_default = create_optimizer(make_model(), OptimizerConfig(name="muon", lr=0.2), head=["3.weight"])
    assert by_default.param_groups[-1]["lr"] == pytest.approx(0.02)


def test_muon_keeps_the_factors_of_the_others_and_takes_the_options() -> None:
    config = OptimizerConfig(
        name="muon", lr=0.2, aux_lr=0.05, momentum=0.7, nesterov=True, bias_lr_factor=4.0, options={"ns_steps": 5}
    )
    optimizer = create_optimizer(make_model(), config)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert (rates["1.bias"], rates["1.weight"]) == pytest.approx((0.2, 0.05))
    for group in optimizer.param_groups:
        assert group["initial_lr"] == group["lr"]
        assert (group["momentum"], group["nesterov"], group["ns_steps"]) == (0.7, True, 5)


def test_layers_and_head_reach_the_groups() -> None:
    layers = [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["3.weight", "3.bias"]]
    config = OptimizerConfig(name="adamw", lr=1.0, layer_decay=0.5)
    optimizer = create_optimizer(make_model(), config, layers=layers, head=layers[2])
    found = {name: (group["role"], group["lr"]) for group in optimizer.param_groups for name in group["names"]}
    assert (found["0.weight"], found["3.bias"]) == (("matrix", 0.25), ("head", 1.0))
    with pytest.raises(ValueError, match="needs the network's layers"):
        create_optimizer(make_model(), config)


@pytest.mark.parametrize("name", sorted(list_timm()))
def test_every_optimizer_of_timm_steps_and_resumes_or_is_refused_with_the_reason(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.01)
    if name not in list_optimizers():
        with pytest.raises(ConfigError, match=rf"^the optimizer {name} can't be used: it needs [^\n]*$"):
            create_optimizer(make_model(), config)
        return
    # kron compiles its products, which takes half a minute
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # some of timm's use calls that torch wants to rename, or recommend a library that makes them faster
        warnings.simplefilter("ignore")
        model = make_model()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = create_optimizer(model, config)
        assert all(group["initial_lr"] == group["lr"] > 0 for group in optimizer.param_groups)
        assert math.isfinite(train(model, optimizer, 2))
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        # a fresh one that takes over the state goes on as this one does
        other = copy.deepcopy(model)
        resumed = create_optimizer(other, config)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for network, its_optimizer in ((model, optimizer), (other, resumed)):
            # some draw from the global generator, which a checkpoint holds too
            torch.manual_seed(7)
            train(network, its_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_those_of_timm_get_the_momentum_and_the_options() -> None:
    config = OptimizerConfig(name="lars", lr=0.1, momentum=0.5, weight_decay=0.02, options={"trust_coeff": 0.01})
    model, other = make_model(), make_model()
    optimizer = create_optimizer(model, config)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    matrices = [p for p in other.parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    train(model, optimizer, 3)
    train(other, Lars(groups, lr=0.1, momentum=0.5, trust_coeff=0.01), 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_list_has_ours_first_each_once_and_nothing_that_is_refused() -> None:
    names = list_optimizers()
    assert names[: len(OPTIMIZERS)] == list(OPTIMIZERS)
    # the names that are known without torch
    assert tuple(OPTIMIZERS) == optim_config.OPTIMIZERS
    assert len(names) == len(set(names))
    assert set(names) <= {*OPTIMIZERS, *list_timm()}
    assert "lion" in names
    assert "adahessian" not in names


def test_second_derivatives_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"adahessian can't be used: it needs second derivatives, which training does"
    ):
        create_optimizer(make_model(), OptimizerConfig(name="adahessian"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "adamm"},
            r"the optimizer is unknown: got 'adamm'\. Did you mean .*'adamw?'.*\? Known: sgd, adam, .* \d+ of timm's\.",
        ),
        (
            {"name": "adam", "options": {"beta": 0.9}},
            r"optimizer\.options\.beta is not known to adam\. Did you mean 'betas'\? It takes: betas, eps, .*\.",
        ),
        (
            {"name": "lion", "options": {"cautious": True}},
            r"optimizer\.options\.cautious is not known to lion\. Did you mean 'caution'\? It takes: betas, .*\.",
        ),
        ({"name": "muon", "options": {"ns_step": 3}}, r"optimizer\.options\.ns_step is not known to muon\. .*"),
        ({"name": "lamb", "options": {"beta": 3}}, r"optimizer\.options\.beta is not known to lamb\. .*"),
        ({"name": "sgd", "options": {"self": 3}}, r"optimizer\.options\.self is not known to sgd\. .*"),
        (
            {"name": "sgd", "options": {"lr": 0.9}},
            r"optimizer\.options\.lr is a field of its own: got 0\.9\. Set optimizer\.lr\.",
        ),
        ({"name": "muon", "options": {"nesterov": True}}, r"optimizer\.options\.nesterov is a field of its own: .*"),
        ({"name": "sgd", "options": {"nesterov": True}}, r"optimizer\.options\.nesterov is a field of its own: .*"),
        (
            {"name": "lars", "options": {"weight_decay": 0.1}},
            r"optimizer\.options\.weight_decay is a field of its own: got 0\.1\. Set optimizer\.weight_decay\.",
        ),
        (
            {"name": "adam", "options": {"betas": [2.0, 0.9]}},
            r"the optimizer adam can't be made: Invalid beta .*\. It got momentum 0\.9 and options "
            r"\{'betas': \[2\.0, 0\.9\]\}\. Fix optimizer\.momentum or optimizer\.options\.",
        ),
        ({"name": "sgdw", "momentum": 0.0}, r"the optimizer sgdw can't be made: .* It got momentum 0 and options .*"),
        (
            {"name": "lamb", "options": {"betas": [0.9]}},
            r"optimizer\.options\.betas has the wrong type: got \[0\.9\]\. Give a list of 2 numbers\.",
        ),
        (
            {"name": "adan", "options": {"betas": [0.9, 0.99]}},
            r".*\.betas has the wrong type: .* a list of 3 numbers\.",
        ),
        ({"name": "lamb", "options": {"betas": 0.9}}, r".*\.betas has the wrong type: got 0\.9\. .*"),
        ({"name": "lamb", "options": {"betas": ["a", 0.9]}}, r".*\.betas has the wrong type: got \['a', 0\.9\]\. .*"),
        (
            {"name": "adam", "options": {"amsgrad": "off"}},
            r"optimizer\.options\.amsgrad has the wrong type: got 'off'\. Give true or false\.",
        ),
        (
            {"name": "muon", "options": {"eps": "small"}},
            r"optimizer\.options\.eps has the wrong type: got 'small'\. Give a number\.",
        ),
        ({"name": "adam", "options": {"eps": True}}, r".*\.eps has the wrong type: got True\. Give a number\."),
    ],
)
def test_unknown_names_and_options_are_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        create_optimizer(make_model(), OptimizerConfig(**config))


def test_options_reach_the_optimizer_with_lists_as_tuples_and_none_as_it_is() -> None:
    options = {"max_grad_norm": None, "eps": 1, "betas": [0.8, 0.9]}
    defaults = create_optimizer(make_model(), OptimizerConfig(name="lamb", options=options)).defaults
    assert (defaults["max_grad_norm"], defaults["eps"], defaults["betas"]) == (None, 1, (0.8, 0.9))


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^the network has nothing to train: got 0 parameters .*\. Unfreeze some\.$"):
        create_optimizer(make_model().requires_grad_(False), OptimizerConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"optimizer\.lr is out of range: got 0\.0\. Give a value in \(0, 1e\+12\]\."),
        ({"momentum": 1.0}, r"optimizer\.momentum is out of range: got 1\.0\. Give a value in \[0, 1\)\."),
        ({"momentum": -0.1}, r"optimizer\.momentum is out of range: got -0\.1\. .*"),
        ({"weight_decay": -1.0}, r"optimizer\.weight_decay is out of range: got -1\.0\. .*"),
        ({"bias_lr_factor": 0.0}, r"optimizer\.bias_lr_factor is out of range: got 0\.0\. .*"),
        ({"aux_lr": 0.0}, r"optimizer\.aux_lr is out of range: got 0\.0\. .*"),
        ({"layer_decay": 1.5}, r"optimizer\.layer_decay is out of range: got 1\.5\. Give a value in \(0, 1\]\."),
        ({"layer_decay": 0.0}, r"optimizer\.layer_decay is out of range: got 0\.0\. .*"),
        (
            {"nesterov": True, "momentum": 0.0},
            r"optimizer\.nesterov needs a momentum: got nesterov true and momentum 0\. Set optimizer\.momentum, .*",
        ),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        OptimizerConfig(**options)
