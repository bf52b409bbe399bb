"""The networks of our own, against what their docstrings say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vivace.errors import ModelError
from vivace.models import whitening
from vivace.models.whitening import Whitening
from vivace.models.zoo import create_model, forward_flops


def coloured_noise(count: int = 64, channels: int = 3, size: int = 32) -> Tensor:
    """Images whose neighbouring pixels and channels are correlated, as those of photos are."""
    noise = torch.randn(count, channels, size + 4, size + 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1) * 3
    return smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.1


def test_simple_cnn_is_the_article_s_network() -> None:
    torch.manual_seed(0)
    model = create_model("simple_cnn", 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [
        (3, 6, (3, 3)),
        (6, 16, (3, 3)),
        (16, 32, (3, 3)),
        (32, 64, (3, 3)),
        (64, 128, (3, 3)),
        (128, 10, (3, 3)),
    ]
    layers = list(model)
    assert [type(m).__name__ for m in layers[:20]] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 5
    assert not any(isinstance(m, nn.ReLU) for m in layers[20:])
    images = coloured_noise(8)
    assert (model(images) < 0).any()


def test_simple_cnn_at_32_px_is_the_plain_flattening() -> None:
    model = create_model("simple_cnn", 10).eval()
    images = coloured_noise(4)
    flattened = nn.Sequential(*[m for m in model if not isinstance(m, nn.AdaptiveAvgPool2d)])
    assert torch.equal(model(images), flattened(images))


def test_simple_cnn_refuses_what_five_halvings_leave_nothing_of() -> None:
    with pytest.raises(ModelError, match=r"^simple_cnn halves its input five times: got 28 px\. Give `size=32` or mo"):
        create_model("simple_cnn", 10, size=28)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_decorrelates_and_scales_to_one(channels: int) -> None:
    images = coloured_noise(channels=channels)
    layer = Whitening(channels, 3, 1, num_directions=27)
    layer.init_from_images(images)
    directions = layer.out_channels // 2
    assert directions == min(27, 9 * channels)
    outputs = layer(images)[:, :directions, 1:-1, 1:-1].transpose(0, 1).flatten(1)
    covariance = torch.cov(outputs)
    # variances are v / (v + 5e-4): one, but for directions that hardly vary
    assert (covariance.diagonal() - 1).abs().max() < 0.15
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.1


def test_whitening_has_each_filter_with_both_signs_and_learns_its_bias_alone() -> None:
    layer = Whitening(3, 3, 1, num_directions=12)
    layer.init_from_images(coloured_noise())
    assert torch.equal(layer.weight[:12], -layer.weight[12:])
    assert not layer.weight.requires_grad
    assert layer.bias is not None
    assert layer.bias.requires_grad
    assert layer.bias.count_nonzero() == 0


def test_a_learnt_first_layer_stays_as_it_is_and_learns() -> None:
    layer = Whitening(3, 3, 1, num_directions=12, learnt=True)
    before = layer.weight.clone()
    layer.init_from_images(coloured_noise())
    assert torch.equal(layer.weight, before)
    assert layer.weight.requires_grad


def test_whitening_keeps_the_directions_of_the_largest_variance() -> None:
    images = coloured_noise()
    whole, few = Whitening(3, 3, 1, num_directions=27), Whitening(3, 3, 1, num_directions=4)
    whole.init_from_images(images)
    few.init_from_images(images)
    torch.testing.assert_close(few.weight[:4], whole.weight[:4])
    # a filter is a unit vector over the root of its direction's variance: the shortest belongs to the largest
    norms = whole.weight[:27].flatten(1).norm(dim=1)
    assert (norms.diff() > -1e-4).all()


def test_whitening_looks_at_a_bounded_number_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = coloured_noise(256)
    exact = whitening._covariance(whitening._patches(images, 3))
    monkeypatch.setattr(whitening, "MAX_PATCHES", 20_000)
    patches = whitening._patches(images, 3)
    assert 5_000 < len(patches) <= 25_000
    assert (whitening._covariance(patches) - exact).abs().max() < 0.05 * exact.abs().max()


def test_whitening_survives_images_of_one_colour() -> None:
    layer = Whitening(3, 3, 1, num_directions=24)
    layer.init_from_images(torch.zeros(8, 3, 16, 16))
    assert layer.weight.isfinite().all()


def test_fast_cnn_starts_as_the_identity_on_its_first_channels() -> None:
    model = create_model("fast_cnn", 5, widths=(64, 128))
    for conv in [m for m in model.groups.modules() if isinstance(m, nn.Conv2d)]:
        x = torch.randn(1, conv.in_channels, 8, 8)
        count = min(conv.in_channels, conv.out_channels)
        torch.testing.assert_close(conv(x)[:, :count], x[:, :count])


@pytest.mark.parametrize("residual", [False, True])
def test_fast_cnn_without_its_identity_or_its_whitening_starts_at_random(residual: bool) -> None:
    plain = create_model("fast_cnn", 5, widths=(16, 16), residual=residual, identity=False)
    for conv in [m for m in plain.groups.modules() if isinstance(m, nn.Conv2d)]:
        # an identity has a one in the middle of each filter
        assert conv.weight[:, :, 1, 1].abs().max() < 0.9
    learnt = create_model("fast_cnn", 5, widths=(16, 16), residual=residual, whitening=False)
    before = learnt.whiten.weight.clone()
    learnt.init_from_images(coloured_noise(8))
    assert torch.equal(learnt.whiten.weight, before)
    learnt(coloured_noise(4)).sum().backward()
    assert learnt.whiten.weight.grad is not None


def test_fast_cnn_freezes_its_whitening_filters_and_the_scales_of_its_norms() -> None:
    model = create_model("fast_cnn", 5)
    scales = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"whiten.weight", *scales}


def test_fast_cnn_takes_a_depth_and_a_downsampling_for_each_group() -> None:
    model = create_model(
        "fast_cnn", 5, widths=[8, 16, 24], depth=[1, 2, 1], downsample=["stride", "none", "pool"], activation="relu"
    )
    shapes = [tuple(m.weight.shape[:2]) for m in model.groups.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(8, 48), (16, 8), (16, 16), (24, 16)]
    x = model.whiten(torch.randn(2, 3, 32, 32))
    sides = []
    for group in model.groups:
        x = group(x)
        sides.append(x.shape[-1])
    assert sides == [16, 16, 8]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_fast_cnn_with_an_even_whitening_kernel_and_stride() -> None:
    model = create_model("fast_cnn", 5, kernel_size=2, stride=2, widths=[8, 16])
    model.init_from_images(coloured_noise(8))
    assert model(coloured_noise(2)).shape == (2, 5)


def test_the_two_ways_to_the_maximum_agree() -> None:
    x = torch.randn(4, 8, 5, 7)
    assert torch.equal(nn.AdaptiveMaxPool2d(1)(x).flatten(1), x.amax((2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        (
            "fast_cnn",
            32,
            {"activation": "rely"},
            r"model\.arguments\.activation is unknown: got 'rely'\. Did you mean 'relu'.* Known: ",
        ),
        ("fast_cnn", 32, {"downsample": "stide"}, r"downsample is unknown: got 'stide'\. Did you mean 'stride'\? Kn"),
        ("fast_cnn", 32, {"depth": [1, 2]}, r"depth must have one value per width: got \[1, 2\] for 3 widths\.$"),
        (
            "fast_cnn",
            16,
            {"widths": [8] * 5},
            r"fast_cnn downsamples 16 px to nothing\. Give a larger `size`, or fewer wid",
        ),
        ("fast_photo", 16, {}, r"fast_photo downsamples 16 px to nothing\. Give a larger `size`, or fewer widths\.$"),
        ("fast_photo", 64, {"activation": "rely"}, r"activation is unknown: got 'rely'"),
        ("fast_photo", 64, {"depths": [1]}, r"depths must have one value per width: got \[1\] for 4 widths\.$"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, size: int, arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name, 5, size=size, **arguments)


def test_the_smallest_size_that_is_taken_works() -> None:
    assert create_model("fast_photo", 5, size=32).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    model = create_model("fast_cnn", 5, size=16, widths=[8] * 4).eval()
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_a_residual_block_starts_as_none() -> None:
    block = create_model("fast_photo", 5, size=64).stages[0][0]
    x = torch.randn(2, 48, 8, 8)
    torch.testing.assert_close(block(x), nn.functional.silu(x))


def test_fast_photo_is_cheap() -> None:
    model = create_model("fast_photo", 5, size=128)
    assert 0.2e9 < forward_flops(model, in_channels=3, size=128) / 2 < 0.4e9


def test_later_convolutions_of_a_residual_group_change_what_the_first_one_gave() -> None:
    model = create_model("fast_cnn", 5, widths=[8], depth=[3], residual=True, activation="relu").eval()
    first, behind = model.groups[0]
    x = first(torch.randn(2, 48, 32, 32))
    torch.testing.assert_close(behind(x), torch.relu(x + behind.body(x)))
    # behind the first convolution two more, without an activation behind the last norm
    kinds = [type(m).__name__ for m in behind.body]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"]


def test_a_residual_group_of_one_convolution_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"no residual branch after a first convolution: got depth 1 with residual. Give 2"
    ):
        create_model("fast_cnn", 5, widths=[8], depth=1, residual=True)
