"""Attention weights are read of any transformer without changing its answers, and rolled out as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from planted import SIZE, planted, trained_net
from torch import Tensor, nn
from torch.nn import functional

from factories import make_bundle, pixels
from vivace.heatmaps.attention import AttentionWeights, num_attentions, rollout
from vivace.heatmaps.mapper import HeatMapper

SMALL = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


def by_hand(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Rollout of timm's own weights, which it gives where its attention is not fused; of the class token's row."""
    kept: list[Tensor] = []
    hooks = []
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, output: kept.append(output)))
    with torch.enable_grad():
        logits = model(images.requires_grad_(True))
        gradients = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    for hook, block in zip(hooks, model.blocks, strict=True):
        hook.remove()
        block.attn.fused_attn = True
    relevance = torch.eye(kept[0].shape[-1])
    for weights, gradient in zip(kept, gradients, strict=True):
        relevance = relevance + (weights * gradient).detach().clamp(min=0).mean(1) @ relevance
    return relevance[:, 0, 1:].unflatten(1, (8, 8))


def test_it_is_the_published_rollout_of_the_class_tokens_row() -> None:
    model, (images, classes, _) = trained_net("vit"), planted(5, seed=4)
    expected = by_hand(model, images.clone(), classes)
    torch.testing.assert_close(rollout(model, images, classes, 8), expected, rtol=1e-4, atol=1e-6)
    assert expected.amax() > 0


@pytest.mark.parametrize(
    ("make", "tokens"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", **SMALL), 17),
        (lambda: timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **SMALL), 16),
    ],
    ids=["class token", "averaged"],
)
def test_weights_are_read_without_changing_the_answers(make: object, tokens: int) -> None:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)  # type: ignore[operator]
    images = torch.randn(2, 3, SIZE, SIZE)
    plain = model(images)
    with torch.enable_grad(), AttentionWeights() as kept:
        torch.testing.assert_close(model(images.requires_grad_(True)).detach(), plain, rtol=1e-4, atol=1e-5)
    assert [tuple(one.shape) for one in kept.weights] == [(2, 2, tokens, tokens)] * 2
    for one in kept.weights:
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 2, tokens))
    maps = rollout(model, images.detach(), torch.tensor([0, 1]), 4)
    assert maps.shape == (2, 4, 4)
    assert (maps >= 0).all()
    assert (maps.amax((1, 2)) > 0).all()


def test_attention_that_is_not_among_all_tokens_is_computed_as_ever() -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    square = torch.randn(1, 2, 5, 4)
    mask = torch.rand(5, 5) < 0.7
    mask.fill_diagonal_(True)
    with AttentionWeights() as kept:
        functional.scaled_dot_product_attention(query, key, key)
        functional.scaled_dot_product_attention(square, key, key, is_causal=True)
        assert kept.weights == []
        masked = functional.scaled_dot_product_attention(square, key, key, attn_mask=mask, scale=0.3)
    expected = functional.scaled_dot_product_attention(square, key, key, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(masked, expected)


def test_a_bundle_of_a_transformer_gets_rollout_in_parts_that_fit_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(
        tmp_path / "vit", "timm/vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    mapper = HeatMapper(bundle)
    assert (mapper.method, mapper.layer, mapper.side) == ("attention-gradient rollout", "2 attention layers", 4)
    images, classes = pixels(3), torch.tensor([0, 1, 2]).numpy()
    whole = mapper(images, classes)
    assert whole.max((1, 2)).tolist() == pytest.approx([1, 1, 1])
    assert num_attentions(mapper.model, mapper.normalised(images), 4) == (2, 2 * 2 * 17 * 17)
    monkeypatch.setattr("vivace.heatmaps.mapper.MAX_WEIGHTS", 1)
    assert mapper(images, classes) == pytest.approx(whole, abs=1e-5)
