"""Who is decayed, and at which rate each parameter learns."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from vivace.optim.config import OptimizerConfig
from vivace.optim.groups import parameter_groups


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


HEAD = ["head.weight", "head.bias"]


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: group for group in groups for name in group["names"]}


def test_every_trained_parameter_stands_in_one_group_and_frozen_ones_in_none() -> None:
    model = Network()
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1), head=HEAD)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    parameters = dict(model.named_parameters())
    for group in groups:
        assert all(parameters[name] is p for name, p in zip(group["names"], group["params"], strict=True))


def test_matrices_come_first_then_the_head_then_the_others() -> None:
    groups = parameter_groups(Network(), OptimizerConfig(weight_decay=0.1), head=HEAD)
    roles = {name: group["role"] for name, group in by_name(groups).items()}
    assert roles == {
        "conv.weight": "matrix",
        "body.weight": "matrix",
        "head.weight": "head",
        "head.bias": "head",
        "conv.bias": "other",
        "norm.weight": "other",
        "norm.bias": "other",
        "embedding.weight": "other",
        "body.bias": "other",
    }
    order = [group["role"] for group in groups]
    assert order == sorted(order, key=["matrix", "head", "other"].index)


def test_norms_and_biases_are_not_decayed_unless_asked_for() -> None:
    plain = by_name(parameter_groups(Network(), OptimizerConfig(weight_decay=0.1)))
    assert {name for name, group in plain.items() if group["weight_decay"] == 0.1} == {
        "conv.weight",
        "embedding.weight",
        "body.weight",
        "head.weight",
    }
    assert all(plain[name]["weight_decay"] == 0 for name in ("conv.bias", "norm.weight", "norm.bias", "head.bias"))
    everything = by_name(parameter_groups(Network(), OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=True)))
    assert all(group["weight_decay"] == 0.1 for group in everything.values())


def test_what_the_network_itself_exempts_is_not_decayed() -> None:
    class Exempt(Network):
        def no_weight_decay(self) -> set[str]:
            return {"embedding.weight", "body.weight"}

    groups = by_name(parameter_groups(Exempt(), OptimizerConfig(weight_decay=0.1)))
    assert groups["embedding.weight"]["weight_decay"] == 0
    # nor does it count as a matrix
    assert (groups["body.weight"]["weight_decay"], groups["body.weight"]["role"]) == (0, "other")
    assert groups["conv.weight"]["role"] == "matrix"


def test_a_network_that_is_one_layer_has_its_names() -> None:
    groups = by_name(parameter_groups(nn.Linear(3, 2), OptimizerConfig()))
    assert {name: group["role"] for name, group in groups.items()} == {"weight": "matrix", "bias": "other"}
    norm = by_name(parameter_groups(nn.LayerNorm(3), OptimizerConfig(lr=0.1, bias_lr_factor=2.0)))
    assert (norm["bias"]["lr"], norm["weight"]["lr"]) == (0.2, 0.1)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True), nn.LayerNorm(4), nn.GroupNorm(2, 4)]
)
def test_every_kind_of_norm_is_known_by_its_bias(norm: nn.Module) -> None:
    groups = by_name(parameter_groups(nn.Sequential(norm), OptimizerConfig(lr=0.1, bias_lr_factor=3.0)))
    assert groups["0.bias"]["lr"] == pytest.approx(0.3)
    assert groups["0.weight"]["lr"] == 0.1


def test_biases_of_norms_learn_faster_and_decay_as_much_per_step() -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.02, bias_lr_factor=64.0, decay_norm_and_bias=True)
    groups = by_name(parameter_groups(Network(), config))
    assert groups["norm.bias"]["lr"] == pytest.approx(6.4)
    # a step shrinks by lr × decay
    assert groups["norm.bias"]["lr"] * groups["norm.bias"]["weight_decay"] == pytest.approx(0.1 * 0.02)
    assert groups["conv.bias"]["lr"] == pytest.approx(0.1)


def test_layers_learn_slower_the_farther_they_are_from_the_head() -> None:
    layers = [
        ["conv.weight", "conv.bias"],
        ["norm.weight", "norm.bias", "embedding.weight"],
        ["body.weight", "body.bias"],
        HEAD,
    ]
    groups = by_name(parameter_groups(Network(), OptimizerConfig(lr=1.0, layer_decay=0.5), layers=layers, head=HEAD))
    found = [groups[names[0]]["lr"] for names in layers]
    assert found == pytest.approx([0.125, 0.25, 0.5, 1.0])
    assert all(group["initial_lr"] == group["lr"] for group in groups.values())
    assert list(groups) == [
        "conv.weight",
        "body.weight",
        *HEAD,
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "embedding.weight",
        "body.bias",
    ]


def test_the_rates_of_layers_and_of_norm_biases_multiply() -> None:
    layers = [["norm.weight", "norm.bias"], ["body.weight", "body.bias"]]
    config = OptimizerConfig(lr=1.0, layer_decay=0.5, bias_lr_factor=8.0)
    groups = by_name(parameter_groups(Network(), config, layers=layers))
    assert (groups["norm.weight"]["lr"], groups["norm.bias"]["lr"]) == (0.5, 4.0)


def test_layer_decay_needs_the_layers() -> None:
    with pytest.raises(ValueError, match="needs the network's layers"):
        parameter_groups(Network(), OptimizerConfig(layer_decay=0.5))
