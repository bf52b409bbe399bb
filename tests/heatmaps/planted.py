"""Images whose class is the colour of a square somewhere in them, and small networks that have learnt them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from vivace.heatmaps.layers import Layer, find_layer, replaced_output
from vivace.models.zoo import create_model

__all__ = ["SIDE", "SIZE", "gradients_of", "planted", "trained_net"]

SIZE, SIDE = 32, 8


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images_BCHW of noise with a square, classes_B in [0, 3), row and column of the square's corner [B, 2])."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    classes = torch.arange(count) % 3
    places = torch.randint(0, SIZE - SIDE + 1, (count, 2), generator=generator)
    for image, colour, (row, column) in zip(images, classes.tolist(), places.tolist(), strict=True):
        square = image[:, row : row + SIDE, column : column + SIDE]
        square -= 1.0
        square[colour] += 3.0
    return images, classes, places


@functools.cache
def trained_net(kind: str) -> nn.Module:
    """A convnet ("convnet") or a vision transformer with a class token ("vit"), trained for a second."""
    import timm

    torch.manual_seed(0)
    shape = {"img_size": SIZE, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = (
        create_model("fast_cnn", 3, size=SIZE, widths=[8, 16, 16], depth=1)
        if kind == "convnet"
        else timm.create_model("vit_tiny_patch16_224", num_classes=3, **shape)
    )
    images, classes, _ = planted(600, seed=1)
    # without a square any class is as likely as another: what is removed from an image does not speak for one of them
    nothing = torch.rand(120, 1, 1, 1) * 0.5 * torch.randn(120, 3, SIZE, SIZE)
    images, classes = torch.cat([images, nothing]), torch.cat([classes, torch.arange(120) % 3])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(60):
        some = torch.randint(0, len(images), (48,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[some]), classes[some]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def gradients_of(model: nn.Module, images_BCHW: Tensor, classes_B: Tensor) -> tuple[Layer, Tensor, Tensor]:
    """(the layer, its values and their gradients, both [B, C, H, W])."""
    layer = find_layer(model, images_BCHW[:2])
    with replaced_output(model, layer) as kept, torch.enable_grad():
        logits_BK = model(images_BCHW)
        (gradients,) = torch.autograd.grad(logits_BK.gather(1, classes_B[:, None]).sum(), kept)
    return layer, layer.grid(kept[0].detach()), layer.grid(gradients)
