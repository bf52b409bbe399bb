"""What `vivace evaluate` prints of heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vivace.errors import printable

if TYPE_CHECKING:
    from vivace.evaluation.explained import HeatMaps

__all__ = ["print_heat_maps"]


def print_heat_maps(found: HeatMaps) -> None:
    """Where the pictures are, how they were made, and how far they can be relied on."""
    from vivace.data.text import count_of

    check = found.check
    print(f"\nheat maps: {count_of(found.num_pictures, 'picture')} in {found.folder}")
    if found.num_pictures:
        print("  each: the image, what in it speaks for the predicted class, and what for the true one")
        print("  (of sets of labels: what speaks for the label in question);")
        print("  of an even colour: no place of that layer speaks for the class")
    print(f"  {found.method} of {printable(found.layer)}, {found.side} x {found.side} places, in float32")
    print(
        f"  better than random masks on {100 * check.beat_random:.0f} % of {check.num_images:,} images "
        f"[{100 * check.beat_random_low:.0f}, {100 * check.beat_random_high:.0f}]; deletion AUC "
        f"{check.deletion_auc:.3f}, random {check.random_auc:.3f}"
    )
    told = "near 1 maps tell nothing of what was learnt"
    print(f"  rank correlation with maps of shuffled weights {check.correlation_randomised:.2f} ({told})")
