"""Heat maps of transformers: how attention carries what patches hold to the answer, layer by layer.

Shape suffixes: B images, H heads, T tokens, D features of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["AttentionWeights", "num_attentions", "rollout"]


class AttentionWeights(TorchFunctionMode):
    """While it is entered, `scaled_dot_product_attention` keeps its weights, for which it has no place else.

    Every transformer that calls it itself is covered: timm's, and those of one's own. What this does not know, such as
    causal attention and what torch.nn.MultiheadAttention computes, is computed as ever and not kept. It is entered for
    one thread alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        """[B, H, T, T] of each call, rows sum to 1."""
        self.outputs: list[Tensor] = []
        """[B, H, T, D], the weighted sums."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            found = _explicit(*args, **kwargs)
            if found is not None:
                self.weights.append(found[0])
                self.outputs.append(found[1])
                return found[1]
        return func(*args, **kwargs)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """(weights, output) of square attention in four dimensions; None of any other."""
    if query.dim() != 4 or query.shape[2] != key.shape[2] or is_causal or enable_gqa or dropout_p:
        return None
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return weights, weights @ value


def num_attentions(model: nn.Module, images_BCHW: Tensor, side: int) -> tuple[int, int]:
    """(number of attentions among the patches, values of their weights for one image); 0 where there are none.

    side: patches on a side; beside them there may be class and register tokens.
    """
    with torch.no_grad(), AttentionWeights() as kept:
        model(images_BCHW)
    fitting = [one for one in kept.weights if _fits(one, len(images_BCHW), side)]
    return len(fitting), sum(one[0].numel() for one in fitting)


def _fits(weights_BHTT: Tensor, num_images: int, side: int) -> bool:
    num_tokens = weights_BHTT.shape[-1]
    return len(weights_BHTT) == num_images and 0 <= num_tokens - side**2 < 2 * side + 1


def rollout(model: nn.Module, images_BCHW: Tensor, classes_B: Tensor, side: int) -> Tensor:
    """[B, side, side] >= 0: how much of each patch reaches the class's logit.

    Through each attention R becomes R + A · R, where A is the mean over heads of weights times their gradients, without
    negative values; R begins as the identity. Read are the rows of the tokens that the head takes, by the size of the
    gradient of what the last attention gave them: that of the class token, or all where patches are averaged.
    Source: Chefer, Gur & Wolf 2021, arXiv:2103.15679.
    """
    with torch.enable_grad(), AttentionWeights() as kept:
        logits_BK = model(images_BCHW.detach().requires_grad_(True))
        asked = logits_BK.gather(1, classes_B[:, None]).sum()
    places = [index for index, one in enumerate(kept.weights) if _fits(one, len(images_BCHW), side)]
    weights, last = [kept.weights[index] for index in places], kept.outputs[places[-1]]
    *gradients, last_BHTD = torch.autograd.grad(asked, [*weights, last])
    relevance_BTT = _carried([one.detach() for one in weights], gradients)
    rows_BT = last_BHTD.float().square().sum((1, 3)).sqrt()
    rows_BT = rows_BT / rows_BT.sum(1, keepdim=True).clamp(min=1e-30)
    tokens_BT = (rows_BT[:, None] @ relevance_BTT)[:, 0]
    patches: Tensor = tokens_BT[:, tokens_BT.shape[1] - side**2 :]
    return patches.unflatten(1, (side, side))


def _carried(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """R [B, T, T] after all attentions, float32."""
    num_images, _, num_tokens, _ = weights[0].shape
    relevance_BTT = torch.eye(num_tokens, device=weights[0].device).expand(num_images, -1, -1)
    for weights_BHTT, gradient_BHTT in zip(weights, gradients, strict=True):
        cams_BTT = (weights_BHTT * gradient_BHTT).float().clamp(min=0).mean(1)
        relevance_BTT = relevance_BTT + cams_BTT @ relevance_BTT
    return relevance_BTT
