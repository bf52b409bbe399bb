"""What an attacker may do: change an image by at most eps, measured by a norm, on pixels in [0, 1]."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vivace.config import shown_value
from vivace.errors import ConfigError

__all__ = ["NORMS", "Ball", "Threat", "norms_of"]

NORMS = ("linf", "l2")
# of an L2 ball: float32 rounds each of thousands of differences
MARGIN = 1e-5


@dataclass(frozen=True)
class Threat:
    """A norm and a radius, on pixels in [0, 1]."""

    norm: str
    """linf: no value changes by more than eps; l2: the Euclidean length of the change is at most eps."""
    eps: float
    text: str
    """As it was given, such as "linf:8/255"."""

    @classmethod
    def parse(cls, text: str) -> Threat:
        """The threat that a text such as "linf:8/255" or "l2:0.5" names. Raises ConfigError."""
        number = r"[0-9]{1,9}(?:\.[0-9]{0,9})?"
        match = re.fullmatch(rf"(linf|l2):({number})(?:/({number}))?", text) if isinstance(text, str) else None
        divisor = float(match[3]) if match and match[3] else 1.0
        eps = float(match[2]) / divisor if match and divisor else 0.0
        if match is not None and not 0 < eps <= (1 if match[1] == "linf" else 1e4):
            most = "1, for pixels are" if match[1] == "linf" else "10,000, on pixels"
            raise ConfigError(
                f"the attack's radius is out of range: got {shown_value(text)}. Give one above 0 and at most {most} "
                "from 0 to 1: linf:8/255, or l2:0.5."
            )
        if match is None:
            raise ConfigError(
                f"the attack is not understood: got {shown_value(text)}. Give a norm and a radius on pixels from 0 to "
                "1: linf:8/255, or l2:0.5."
            )
        return cls(match[1], eps, text)


@dataclass(frozen=True)
class Ball:
    """The images that an attacker may make of some images: within eps, and in [0, 1]."""

    threat: Threat
    centres: Tensor
    """The images, [B, C, H, W] float32 in [0, 1]."""
    lower: Tensor
    """The least allowed value of each pixel, rounded inwards: of L2 balls, 0."""
    upper: Tensor

    @classmethod
    def around(cls, images_BCHW: Tensor, threat: Threat) -> Ball:
        """The ball of each image."""
        if threat.norm == "l2":
            return cls(threat, images_BCHW, torch.zeros_like(images_BCHW), torch.ones_like(images_BCHW))
        exact = images_BCHW.double()
        upper, lower = (exact + threat.eps).float(), (exact - threat.eps).float()
        # what was rounded outwards is moved to the neighbouring float32
        upper = torch.where(upper.double() > exact + threat.eps, torch.nextafter(upper, images_BCHW), upper)
        lower = torch.where(lower.double() < exact - threat.eps, torch.nextafter(lower, images_BCHW), lower)
        return cls(threat, images_BCHW, lower.clamp_min(0), upper.clamp_max(1))

    def __getitem__(self, rows: Tensor) -> Ball:
        """The balls of some images."""
        return Ball(self.threat, self.centres[rows], self.lower[rows], self.upper[rows])

    def project(self, points: Tensor) -> Tensor:
        """The points moved into the ball: for Linf to the nearest one inside, for L2 into the ball and then [0, 1]."""
        if self.threat.norm == "l2":
            change = points - self.centres
            lengths = change.flatten(1).norm(dim=1).clamp_min(1e-12)
            change = change * (self.threat.eps * (1 - MARGIN) / lengths).clamp_max(1)[:, None, None, None]
            points = self.centres + change
        return points.clamp(self.lower, self.upper)

    def contains(self, points: Tensor) -> Tensor:
        """bool [B]: in [0, 1] and within eps, in float64."""
        inside = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        return inside & (norms_of(points.double() - self.centres.double(), self.threat.norm) <= self.threat.eps)

    def random(self, generator: torch.Generator) -> Tensor:
        """A point for each image: a random direction as far as eps, in [0, 1]."""
        draw = torch.randn if self.threat.norm == "l2" else torch.rand
        change = draw(self.centres.shape, generator=generator, device=self.centres.device)
        change = change if self.threat.norm == "l2" else 2 * change - 1
        return self.project(self.centres + self.threat.eps * self.scaled(change))

    def scaled(self, directions: Tensor) -> Tensor:
        """The directions with a norm of 1; 0 stays 0."""
        return directions / norms_of(directions, self.threat.norm).clamp_min(1e-12)[:, None, None, None]

    def steepest(self, gradients: Tensor) -> Tensor:
        """The change of norm 1 along which a loss with these gradients grows fastest."""
        return gradients.sign() if self.threat.norm == "linf" else self.scaled(gradients)


def norms_of(changes: Tensor, norm: str) -> Tensor:
    """[B]: the norm of each change [B, ...]."""
    flat = changes.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)
