"""A trained network for other classes: rows are matched by name, everything else is the trained network's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vivace.errors import ModelError
from vivace.models.classes import Classes, fitted_weights, rows_of_classes
from vivace.models.zoo import ZOO, class_rows, create_model

BEFORE = ("daisy", "rose", "tulip")
NETWORKS = [*((name, {}) for name in ZOO), ("fast_cnn", {"widths": [8, 16], "depth": 1})]


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(images)
    return answer


def trained(name: str, num_classes: int, arguments: dict[str, Any]) -> torch.nn.Module:
    """A network whose batch-norm statistics, if it has any, are not those of a new one."""
    torch.manual_seed(num_classes)
    model = create_model(name, num_classes, size=64, **arguments).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))
    return model


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
@pytest.mark.parametrize(
    "now", [("tulip", "daisy", "rose"), ("aster", "rose", "daisy", "lily", "tulip"), ("tulip", "violet")]
)
def test_known_classes_are_answered_as_before_whatever_their_order_and_number(
    name: str, arguments: dict[str, Any], now: tuple[str, ...]
) -> None:
    old = trained(name, 3, arguments)
    new = create_model(name, len(now), size=64, **arguments)
    rows = class_rows(name, len(now), size=64, **arguments)
    new.load_state_dict(fitted_weights(old.state_dict(), new.state_dict(), rows, before=BEFORE, now=now))
    images = torch.randn(4, 3, 64, 64)
    before, after = logits(old, images), logits(new, images)
    for index, label in enumerate(now):
        if label in BEFORE:
            torch.testing.assert_close(after[:, index], before[:, BEFORE.index(label)], rtol=1e-5, atol=1e-5)
        else:
            # the mean of the rows that are kept
            kept = [BEFORE.index(other) for other in now if other in BEFORE]
            assert bool(after[:, index].isfinite().all())
            if name != "simple_cnn":
                # whose head ends with a norm, so that the mean of its rows is no mean of logits
                torch.testing.assert_close(after[:, index], before[:, kept].mean(1), rtol=1e-4, atol=1e-4)


def test_a_head_without_a_known_class_stays_as_it_was_initialised() -> None:
    old, new = trained("fast_cnn", 3, {}), create_model("fast_cnn", 2, size=64)
    rows = class_rows("fast_cnn", 2, size=64)
    fitted = fitted_weights(old.state_dict(), new.state_dict(), rows, before=BEFORE, now=("cat", "dog"))
    for name, tensor in fitted.items():
        torch.testing.assert_close(tensor, (new if name in rows else old).state_dict()[name])


def test_a_layer_that_happens_to_have_as_many_channels_as_classes_is_no_head() -> None:
    rows = class_rows("fast_cnn", 8, size=32, widths=[8, 16], depth=1)
    assert all(name.startswith("head") or "linear" in name or "fc" in name for name in rows), rows


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/vit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224"])
def test_the_head_of_a_network_of_timm_is_found(name: str) -> None:
    pytest.importorskip("timm")
    rows = class_rows(name, 5, size=224)
    assert rows
    assert all(part.startswith(("fc.", "head.", "head_dist.")) for part in rows)


def test_weights_of_another_network_are_refused_with_the_first_difference() -> None:
    new = create_model("fast_cnn", 3, size=64)
    rows = class_rows("fast_cnn", 3, size=64)
    weights = dict(new.state_dict())
    name = next(iter(weights))
    with pytest.raises(ModelError, match=f"do not fit: {name} is nothing"):
        fitted_weights(
            {k: v for k, v in weights.items() if k != name}, new.state_dict(), rows, before=BEFORE, now=BEFORE
        )
    with pytest.raises(ModelError, match="the network lacks extra"):
        fitted_weights({**weights, "extra": weights[name]}, new.state_dict(), rows, before=BEFORE, now=BEFORE)
    with pytest.raises(ModelError, match="NaN or Inf"):
        fitted_weights(
            {**weights, name: weights[name] * float("nan")}, new.state_dict(), rows, before=BEFORE, now=BEFORE
        )


def test_a_network_whose_classes_change_more_than_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="weight has no row for each"):
        rows_of_classes({"weight": torch.zeros(3, 3)}, {"weight": torch.zeros(4, 4)})
    with pytest.raises(ModelError, match="no layer depends on their number"):
        rows_of_classes({"weight": torch.zeros(3)}, {"weight": torch.zeros(3)})


def test_what_becomes_of_the_classes_is_said_in_one_line() -> None:
    assert Classes.of(BEFORE, BEFORE).line() == "3 classes kept"
    found = Classes.of((*BEFORE, "weed"), ("tulip", "aster", "daisy", "lily", "rose"))
    assert found.line() == "3 classes kept, 2 new: aster, lily; 1 left out: weed"
    many = Classes.of(("one",), [f"class {number}" for number in range(9)]).line()
    assert many.startswith("0 classes kept, 9 new: class 0, class 1, class 2, class 3, class 4 and 4 more; 1 left out")
    assert Classes.of(("a",), ("a", "b" * 100)).line() == f"1 class kept, 1 new: {'b' * 39}…"
