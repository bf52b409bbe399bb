"""Adversarial training: the fields of a recipe that say how images are attacked while training (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from vivace.config import check_range

__all__ = ["AttackConfig", "Strength"]

# what each roll-back changes: more noise and a smaller step make single-step training harder to deceive
# (arXiv:2202.01181, section 5)
NOISE_FACTOR, STEP_FACTOR = 1.5, 0.75


@dataclass(frozen=True)
class Strength:
    """How a single-step attack is made, in multiples of eps."""

    noise: float
    step: float


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Single-step adversarial training within an L∞ ball, and what watches over it.

    Each image is trained on as a step along the sign of the gradient leaves it, from a noisy start and without a
    projection back into the ball: N-FGSM (arXiv:2202.01181). Training of one step may break down from one epoch to the
    next ("catastrophic overfitting", arXiv:2001.03994): the network learns to answer that one step and loses all other
    robustness. A probe by PGD on held-out images shows it.
    """

    eps: float = 0.0
    """Largest change of a pixel value, in 255ths, [0, 128]; 8 is usual. 0: images are not attacked."""
    noise: float = 2.0
    """Largest uniform noise that the attack starts from, in multiples of eps, [0, 8]; 0: FGSM (arXiv:1412.6572), which
    overfits."""
    step: float = 1.0
    """The step along the sign of the gradient, in multiples of eps, (0, 4]."""
    probe_images: int = 512
    """Held-out images that PGD attacks at each validation, >= 1; at most all there are."""
    probe_steps: int = 10
    """Steps of that PGD, >= 1."""
    max_rollbacks: int = 3
    """How often the run goes back to its last good state when it overfits catastrophically, each time with 1.5 times
    the noise and 0.75 times the step; then it ends with the best weights that it had. 0: it is not watched."""

    def __post_init__(self) -> None:
        check_range("attack.eps", self.eps, 0.0, 128.0)
        check_range("attack.noise", self.noise, 0.0, 8.0)
        check_range("attack.step", self.step, 0.0, 4.0, open_low=True)
        check_range("attack.probe_images", self.probe_images, 1, 1_000_000)
        check_range("attack.probe_steps", self.probe_steps, 1, 1000)
        check_range("attack.max_rollbacks", self.max_rollbacks, 0, 20)

    def strength(self, num_rollbacks: int) -> Strength:
        """Noise and step after so many roll-backs."""
        return Strength(self.noise * NOISE_FACTOR**num_rollbacks, self.step * STEP_FACTOR**num_rollbacks)
