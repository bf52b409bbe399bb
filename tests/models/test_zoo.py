"""What every network of the zoo must do, and how the zoo answers to names and arguments that it does not know."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from vivace.config import from_dict
from vivace.errors import ConfigError, ModelError
from vivace.models.config import NETWORKS, ModelConfig
from vivace.models.parts import scale_head
from vivace.models.zoo import (
    ZOO,
    complete_arguments,
    count_parameters,
    create_model,
    forward_flops,
    head_parameters,
    layer_groups,
    list_models,
    pretrained_stats,
)

# name → two sizes
ROWS = {
    "simple_cnn": (32, 72),
    "fast_cnn": (16, 33),
    "fast_photo": (64, 96),
    "scatter_linear": (16, 33),
    "timm/test_resnet": (32, 64),
}


def blank(channels: int, size: int, count: int = 4) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_every_network_of_the_table_is_held_to_the_contract() -> None:
    assert set(ROWS) >= set(ZOO)
    # the names that are known without torch
    assert tuple(ZOO) == NETWORKS


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ROWS)
def test_forward_and_backward_reach_every_weight(name: str, channels: int) -> None:
    for size in ROWS[name]:
        model = create_model(name, 5, in_channels=channels, size=size)
        logits_BK = model(blank(channels, size))
        assert logits_BK.shape == (4, 5)
        assert logits_BK.dtype == torch.float32
        nn.functional.cross_entropy(logits_BK, torch.arange(4)).backward()
        for parameter_name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ROWS)
def test_bf16_autocast_gives_about_the_same_logits(name: str) -> None:
    size = ROWS[name][0]
    model = create_model(name, 5, size=size).train()
    images = blank(3, size, count=16)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images)
    # 8 bits of mantissa, a dozen layers; batch norm keeps the scale of what lies between
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ROWS)
def test_channels_last_changes_no_logit_beyond_rounding(name: str) -> None:
    size = ROWS[name][1]
    model = create_model(name, 5, size=size).eval()
    images = blank(3, size)
    expected = model(images)
    found = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_the_seed_decides_every_weight(name: str) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return create_model(name, 5, size=ROWS[name][0]).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ROWS)
def test_a_state_dict_carries_all_of_a_network(name: str) -> None:
    size = ROWS[name][0]
    trained, fresh = create_model(name, 5, size=size), create_model(name, 5, size=size)
    if hasattr(trained, "init_from_images"):
        trained.init_from_images(blank(3, size))
    trained(blank(3, size))  # moves the running statistics
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    images = blank(3, size, count=2)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))


@pytest.mark.parametrize("name", ROWS)
def test_layer_groups_name_every_parameter_once_and_end_in_the_head(name: str) -> None:
    model = create_model(name, 5, size=ROWS[name][0])
    groups = layer_groups(model)
    assert sorted(name for group in groups for name in group) == sorted(
        parameter_name for parameter_name, _ in model.named_parameters()
    )
    # of scattering nothing but the head is learnt
    assert len(groups) >= (1 if name == "scatter_linear" else 4)
    assert set(head_parameters(model)) <= set(groups[-1])
    first = next(parameter_name for parameter_name, _ in model.named_parameters())
    assert first in groups[0]


@pytest.mark.parametrize("name", ROWS)
def test_the_head_is_what_depends_on_the_number_of_classes(name: str) -> None:
    five, seven = (dict(create_model(name, k, size=ROWS[name][0]).named_parameters()) for k in (5, 7))
    differing = [key for key in five if five[key].shape != seven[key].shape]
    assert head_parameters(create_model(name, 5, size=ROWS[name][0])) == differing


# a vision transformer, two classifiers side by side, a classifier behind a norm
HEADS = {"timm/test_vit": 64, "timm/deit_tiny_distilled_patch16_224": 32, "timm/test_convnext": 64}


@pytest.mark.parametrize("name", [*ROWS, *HEADS])
def test_a_scaled_head_scales_the_logits_and_nothing_else(name: str) -> None:
    size = HEADS.get(name) or ROWS[name][1]
    model = create_model(name, 5, size=size)
    images = blank(3, size)
    model(images)  # running statistics that are not those of the start
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model.eval()(images).detach()
    scale_head(model, 2.5)
    torch.testing.assert_close(model(images).detach(), 2.5 * expected, rtol=1e-4, atol=1e-5)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= set(head_parameters(model))


def test_layers_of_a_network_from_elsewhere_are_its_children() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(blank(3, 8))
    assert layer_groups(model) == [["0.weight", "0.bias"], ["3.weight", "3.bias"]]
    assert head_parameters(model) == ["3.weight", "3.bias"]


def test_operations_and_weights_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 2))
    assert count_parameters(model) == 8 * 27 + 2 * 128 + 2
    assert forward_flops(model, in_channels=3, size=4) == 2 * (16 * 8 * 27 + 2 * 128)
    assert model.training


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("simple_cn", {}, r"^the network is unknown: got 'simple_cn'\. Did you mean 'simple_cnn'\? Known: simple_cnn,"),
        ("resnet18", {}, r"got 'resnet18'\. Did you mean 'timm/resnet18' or 'timm/"),
        ("timm/resnet81", {}, r"^the network is unknown: got 'timm/resnet81'\. Did you mean 'timm/resnet18'"),
        ("fast_cnn", {"wdths": [8]}, r"^fast_cnn takes no argument 'wdths'\. Did you mean 'widths'.*It takes: act"),
        ("simple_cnn", {"wdths": [8]}, r"^simple_cnn takes no argument 'wdths'\. It takes: none\.$"),
        ("fast_cnn", {"widths": 8}, r"^fast_cnn can't be built: .*Fix model\.arguments or `size`\.$"),
        (
            "fast_cnn",
            {"pretrained": True},
            r"^there are no published weights for fast_cnn\. Leave `model.pretrained` out",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_near(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name, 5, **arguments)


def test_arguments_that_the_images_decide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model\.arguments\.size is not the network's own: got 64\. Set data\.size"):
        from_dict(ModelConfig, {"arguments": {"size": 64}})
    with pytest.raises(ConfigError, match=r"model\.arguments\.num_classes .*Leave it out: the images decide\.$"):
        from_dict(ModelConfig, {"arguments": {"num_classes": 3}})


def test_completed_arguments_hold_every_default_and_build_the_same_network() -> None:
    complete = complete_arguments("fast_cnn", {"widths": [8, 16]})
    assert complete["widths"] == [8, 16]
    assert (complete["depth"], complete["downsample"], complete["head_scale"]) == (2, "pool", 1 / 9)
    shapes = {key: value.shape for key, value in create_model("fast_cnn", 5, widths=[8, 16]).state_dict().items()}
    rebuilt = create_model("fast_cnn", 5, **complete).state_dict()
    assert {key: value.shape for key, value in rebuilt.items()} == shapes
    assert complete_arguments("timm/resnet18", {"drop_rate": 0.1}) == {"drop_rate": 0.1}


def test_models_are_listed_by_pattern() -> None:
    assert list_models("fast*") == ["fast_cnn", "fast_photo"]
    assert "timm/resnet50" in list_models("timm/resnet*")
    assert list_models()[: len(ZOO)] == list(ZOO)


def test_statistics_of_published_weights_are_known() -> None:
    stats = pretrained_stats("timm/resnet18")
    assert stats is not None
    mean, std, size, interpolation = stats
    assert (mean, size, interpolation) == ((0.485, 0.456, 0.406), 224, "bicubic")
    assert all(0.2 < value < 0.25 for value in std)
    assert pretrained_stats("fast_cnn") is None
    assert pretrained_stats("timm/no_such_network") is None


def test_timm_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from vivace.models.zoo import create_model; create_model('fast_cnn', 3); "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
