"""timm's networks at small size: they learn, they start from published weights, and refuse in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from vivace.errors import ModelError
from vivace.models import hub
from vivace.models.zoo import create_model, head_parameters

SIZES = {
    "resnet18": 32,
    "resnet50": 32,
    "mobilenetv3_small_050": 32,
    "convnext_atto": 32,
    "vit_tiny_patch16_224": 32,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_few_steps_lower_the_loss(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = create_model(f"timm/{name}", 3, size=size).train()
    labels = torch.arange(12) % 3
    # three colours with noise
    images = torch.eye(3)[labels][:, :, None, None] + 0.3 * torch.randn(12, 3, size, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_grey_images_of_another_size_are_taken(name: str) -> None:
    model = create_model(f"timm/{name}", 4, in_channels=1, size=64).eval()
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 4)


def test_a_patch_size_is_given_by_the_arguments() -> None:
    model = create_model("timm/vit_tiny_patch16_224", 4, size=32, patch_size=4, depth=1).eval()
    assert model.patch_embed.num_patches == 64
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)


def test_a_network_is_handed_over_in_training_mode() -> None:
    assert create_model("timm/test_resnet", 4, size=32).training


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        (
            "timm/test_vit",
            40,
            {},
            r"into patches of 16 px, and 40 px are no multiple of that\. Give `size=32`, or model\.argumen",
        ),
        (
            "timm/crossvit_tiny_240",
            96,
            {},
            r"^timm/crossvit_tiny_240 can't be built for 96 px: .*Fix model\.arguments",
        ),
        (
            "timm/test_resnet",
            32,
            {"depth": 3},
            r"can't be built for 32 px: .*unexpected keyword argument 'depth'\. Fix",
        ),
        ("timm/test_vit.x_in1k", 32, {}, r"^timm/test_vit has no weights 'x_in1k'\. Did you mean 'r160_in1k'\? It has"),
        ("timm/resnet10t.c3_in1k", 32, {"layers": 1}, r"^timm/resnet10t\.c3_in1k can't be built for 32 px: "),
    ],
)
def test_what_does_not_fit_is_refused_when_the_network_is_made(
    name: str, size: int, arguments: dict, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        create_model(name, 5, size=size, **arguments)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # timm's encoders of this kind are too large for a test
    monkeypatch.setattr(timm, "create_model", lambda *args, **keywords: nn.Conv2d(3, 8, 1))
    with pytest.raises(ModelError, match=r"^timm/test_resnet is no classifier: .*Choose another network\.$"):
        create_model("timm/test_resnet", 5, size=32)


@pytest.mark.timeout(120)
def test_published_weights_without_a_network_fail_soon_and_name_the_fix(offline_hub: Path) -> None:
    with pytest.raises(ModelError) as caught:
        create_model("timm/test_resnet", 5, size=32, pretrained=True)
    assert str(caught.value) == (
        "the published weights test_resnet.r160_in1k of timm/test_resnet can't be had: 127.0.0.1:9 does not answer, "
        "and they are not in its cache. Connect to the network, or give a local file: `weights`."
    )


def test_a_name_server_that_never_answers_is_not_waited_for(offline_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    answered = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: answered.wait(200))
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.1)
    try:
        with hub.offline_if_unreachable() as reachable:
            assert not reachable
        assert not answered.is_set()
    finally:
        answered.set()


def test_the_hub_is_left_as_it_was(offline_hub: Path) -> None:
    from huggingface_hub import constants

    with hub.offline_if_unreachable() as reachable:
        assert not reachable
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_weights_that_were_downloaded_once_need_no_network(publish: Callable[[str, dict], None]) -> None:
    published = timm.create_model("test_resnet", num_classes=1000).state_dict()
    publish("timm/test_resnet.r160_in1k", published)
    model = create_model("timm/test_resnet", 5, in_channels=1, size=32, pretrained=True)
    found = model.state_dict()
    # three channels of weights are summed for the grey one; the head is new
    torch.testing.assert_close(found["conv1.0.weight"], published["conv1.0.weight"].sum(1, keepdim=True))
    head = head_parameters(model)
    assert head == ["fc.weight", "fc.bias"]
    assert found["fc.weight"].shape == (5, published["fc.weight"].shape[1])
    for name in set(published) - {"conv1.0.weight", *head}:
        assert torch.equal(found[name], published[name]), name


def test_weights_are_not_blamed_for_a_wrong_argument(offline_hub: Path) -> None:
    with pytest.raises(ModelError, match=r"can't be built for 32 px: .*'depth'"):
        create_model("timm/test_resnet", 5, size=32, pretrained=True, depth=3)


def test_a_network_without_published_weights_says_so(offline_hub: Path) -> None:
    name = next(
        n
        for n in (
            "resnet10t_none",
            "vit_tiny_patch16_rope_reg1_gap_256",
            "resnet33ts",
            "skresnet50d",
            "densenet264",
            "regnetz_005",
        )
        if timm.is_model(n) and not timm.is_model_pretrained(n)
    )
    with pytest.raises(ModelError, match=rf"^timm publishes no weights for timm/{name}\. Leave `model.pretrained` out"):
        create_model(f"timm/{name}", 5, size=32, pretrained=True)
