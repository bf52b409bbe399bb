"""A first layer that is set from the data before training: frozen filters that decorrelate its outputs.

Shapes: images_BCHW float, normalised; patches_PD: P patches of D = C · side² values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Whitening"]

# added to every eigenvalue, so that directions with hardly any variance are not blown up (arXiv:2404.00498)
EPSILON = 5e-4
# enough for a covariance of 27 values to three digits; all patches of 5,000 images would take gigabytes
MAX_PATCHES = 300_000


class Whitening(nn.Conv2d):
    """A frozen first convolution whose outputs are decorrelated, each with its negative (arXiv:2404.00498).

    num_directions: maximum number of directions (a patch of D values has D), two filters each. padding: px on each
    side, None for half the kernel. Until `init_from_images` is called the filters are random. The bias is learnt, and
    starts at zero. learnt: the filters start random and are trained like the others, for comparison.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        stride: int,
        num_directions: int,
        padding: int | None = None,
        *,
        learnt: bool = False,
    ) -> None:
        directions = min(num_directions, in_channels * kernel_size**2)
        padding = (kernel_size - 1) // 2 if padding is None else padding
        super().__init__(in_channels, 2 * directions, kernel_size, stride=stride, padding=padding)
        self.weight.requires_grad_(learnt)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Set the filters to the eigenvectors of the patches' covariance over the roots of their eigenvalues, in place.

        The directions of the largest variance come first; then all their negatives. No effect on learnt filters.
        """
        if self.weight.requires_grad:
            return
        covariance_DD = _covariance(_patches(images_BCHW, self.kernel_size[0]))
        values, vectors = torch.linalg.eigh(covariance_DD)
        filters = (vectors / torch.sqrt(values.clamp(min=0) + EPSILON)).T.flip(0)[: self.out_channels // 2]
        filters = filters.to(self.weight).reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


def _patches(images_BCHW: Tensor, side: int) -> Tensor:
    """At most about MAX_PATCHES patches_PD float32, from all images, evenly spread."""
    num_images, channels, height, width = images_BCHW.shape
    step = max(1, round((num_images * height * width / MAX_PATCHES) ** 0.5))
    # odd: JPEG works in blocks of 8 × 8, and an even step would always sample the same positions in a block
    step += 1 - step % 2
    patches = images_BCHW.float().unfold(2, side, step).unfold(3, side, step)
    return patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * side * side)


def _covariance(patches_PD: Tensor) -> Tensor:
    """The covariance, float64 [D, D]."""
    centred = patches_PD - patches_PD.mean(0)
    # a sum over hundreds of thousands of values; on devices without float64 (mps) the CPU computes it
    centred = centred.double() if centred.device.type != "mps" else centred.cpu().double()
    return centred.T @ centred / len(centred)
