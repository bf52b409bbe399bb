"""What a person is told of robustness: never more than was measured."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import linear, some_images

from answers import last_answer
from factories import make_bundle, pixels
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.cli.hardened import print_attack
from vivace.errors import ConfigError
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.kept import kept_of
from vivace.hardware import supported_precisions
from vivace.prediction import Predictor
from vivace.robustness import under_attack
from vivace.robustness.attacks import square, suite
from vivace.robustness.attacks.apgd import apgd_ce
from vivace.robustness.attacks.losses import Network
from vivace.robustness.attacks.running import Turn
from vivace.robustness.attacks.threat import Ball, Threat
from vivace.robustness.networks import answers_of, eight_bit, float_network
from vivace.robustness.under_attack import measure_attack

LINF = Threat.parse("linf:8/255")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_the_network_that_is_attacked_is_the_one_in_the_bundle(bundle: Bundle) -> None:
    images = pixels(8)
    predictor = Predictor(bundle, device="cpu", precision="fp32")
    points = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    logits = float_network(bundle, torch.device("cpu"))(points)
    np.testing.assert_allclose(logits.softmax(1).numpy(), predictor.probs(images), atol=1e-5)
    np.testing.assert_allclose(answers_of(predictor)(points).exp().numpy(), predictor.probs(images), atol=1e-6)


def test_in_bf16_is_looked_where_the_device_has_it_and_nothing_else_is_believed(bundle: Bundle) -> None:
    images, labels = pixels(8), np.zeros(8, np.int64)
    predictor = Predictor(bundle, device="cpu")
    expected = "bf16" if "bf16" in supported_precisions(torch.device("cpu")) else "fp32"
    assert measure_attack(predictor, images, labels, LINF, methods=("pgd",)).search == expected
    exact = measure_attack(predictor, images, labels, LINF, methods=("pgd",), precision="fp32")
    assert (exact.search, exact.network) == ("fp32", "float32")
    points = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    rounded = float_network(bundle, torch.device("cpu"), "bf16")(points)
    logits = float_network(bundle, torch.device("cpu"))(points)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, logits)
    np.testing.assert_allclose(rounded.numpy(), logits.numpy(), atol=0.1)


def test_a_network_that_bf16_changes_is_attacked_in_float32_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = float_network(bundle, torch.device("cpu"))

    def other(bundle: Bundle, device: torch.device, precision: str = "fp32") -> Any:
        return exact if precision == "fp32" else lambda images_BCHW: 2 * exact(images_BCHW)

    monkeypatch.setattr(under_attack, "float_network", other)
    monkeypatch.setattr(under_attack, "supported_precisions", lambda device: ("fp32", "bf16"))
    predictor, images, labels = Predictor(bundle, device="cpu"), pixels(8), np.zeros(8, np.int64)
    assert measure_attack(predictor, images, labels, LINF, methods=("pgd",)).search == "fp32"
    with pytest.raises(ConfigError, match="the network answers otherwise in bf16"):
        measure_attack(predictor, images, labels, LINF, methods=("pgd",), precision="bf16")


def test_in_8_bits_no_change_grows() -> None:
    images = pixels(4, 8)
    points = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    changed = (points + (torch.rand(points.shape) - 0.5) * 16 / 255).clamp(0, 1)
    levels = eight_bit(changed, images).astype(int)
    exact = changed.permute(0, 2, 3, 1).numpy() * 255
    assert (np.abs(levels - images) <= np.abs(exact - images) + 0.01).all()
    assert np.abs(levels - exact).max() < 1
    whole = eight_bit((points + 8 / 255).clamp(0, 1), images)
    np.testing.assert_array_equal(whole, np.minimum(images.astype(int) + 8, 255))


@pytest.mark.skipif(
    "bf16" not in supported_precisions(torch.device("cpu")), reason="this processor has no bf16 instructions"
)
def test_what_fools_the_network_is_shown_to_the_bundle_as_it_runs(bundle: Bundle) -> None:
    images = pixels(20)
    labels = Predictor(bundle, device="cpu", precision="fp32").probs(images).argmax(1)
    methods = ("fgsm", "apgd-ce")
    as_bf16 = measure_attack(Predictor(bundle, device="cpu"), images, labels, LINF, methods=methods)
    assert as_bf16.deployed is not None
    assert as_bf16.deployed_as == "eager bf16"
    assert as_bf16.deployed.accuracy < as_bf16.clean.accuracy == 1
    as_fp32 = measure_attack(Predictor(bundle, device="cpu", precision="fp32"), images, labels, LINF, methods=methods)
    assert as_fp32.deployed is None
    assert as_fp32.robust == as_bf16.robust


def test_an_incomplete_suite_is_never_called_robustness(
    bundle: Bundle, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(per_class=3)
    options = ["--device", "cpu", "--quiet", "--attack", "linf:1/255", "--attack-images", "6"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options, "--attack-methods", "pgd", "apgd-ce"]) == 0
    text = capsys.readouterr().out
    assert "under attack: linf:1/255, 6 images" in text
    assert "robust, at most" in text
    assert (
        "an upper bound, not the robustness: apgd-t, fab-t, square of AutoAttack's standard suite did not run" in text
    )
    assert main(["evaluate", str(bundle.folder), str(folder), *options, "--within", "9m", "--json"]) == 0
    found = last_answer(capsys.readouterr().out)["attack"]
    assert (found["threat"], found["num_images"], found["network"]) == ("linf:1/255", 6, "float32")


def test_attacks_that_ran_out_of_time_say_so(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    images = pixels(12)
    predictor = Predictor(bundle, device="cpu", precision="fp32")
    found = measure_attack(predictor, images, predictor.probs(images).argmax(1), LINF, seconds=1e-9)
    assert (found.is_standard, found.is_complete) == (False, False)
    assert found.robust == found.clean
    print_attack(found)
    text = capsys.readouterr().out
    assert text.count("not begun: --within") == 6
    assert {step.num_attacked for step in found.attacks} == {0}
    assert "an upper bound, not the robustness: apgd-ce, apgd-t, fab-t, square" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_attacks_that_a_signal_ended_are_shown_and_kept(
    bundle: Bundle,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def interrupted(network: Network, ball: Ball, labels_B: torch.Tensor, turn: Turn) -> torch.Tensor:
        os.kill(os.getpid(), number)
        return apgd_ce(network, ball, labels_B, turn)

    monkeypatch.setitem(suite.ATTACKS, "apgd-ce", interrupted)
    folder = str(make_folder(per_class=4))
    before = signal.getsignal(number)
    # so near that nothing fools the network, and fgsm leaves something
    command = ["evaluate", str(bundle.folder), folder, "--device", "cpu", "--attack", "linf:0.00001"]
    command += ["--attack-methods", "fgsm", "apgd-ce", "square"]
    assert main(command) == 128 + number
    assert signal.getsignal(number) == before
    shown = capsys.readouterr()
    assert shown.out.count(f"cut off by {number.name}") == 1
    assert shown.out.count(f"not begun: {number.name}") == 1
    # of what never began a log says nothing
    assert "square: " not in shown.err
    # in a log, a line as each begins
    assert "apgd-ce: attack 2 of 3, " in shown.err
    (record,) = kept_of(load_bundle(bundle.folder))["attack"]
    assert [step["name"] for step in record["attacks"] if step["is_complete"]] == ["fgsm"]
    assert record["cut_off_by"] == number.name
    assert main([*command, "--json", "--quiet"]) == 128 + number
    shown = capsys.readouterr()
    assert last_answer(shown.out)["attack"]["cut_off_by"] == number.name
    assert "attack 2 of 3" not in shown.err


def test_a_signal_before_the_attacks_ends_the_verb(
    bundle: Bundle,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "vivace.evaluation.evaluate.scored_answers", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
    )
    assert main(["evaluate", str(bundle.folder), str(make_folder(per_class=2)), "--attack", "linf:1/255"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_the_whole_suite_is_the_worst_case_over_its_attacks(bundle: Bundle) -> None:
    images = pixels(12)
    labels = Predictor(bundle, device="cpu", precision="fp32").probs(images).argmax(1)
    seen: list[tuple[int, int]] = []
    found = measure_attack(
        Predictor(bundle, device="cpu", precision="fp32"),
        images,
        labels,
        LINF,
        progress=lambda *done: seen.append(done),
    )
    assert [step.name for step in found.attacks] == ["fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.is_standard
    left = [step.robust_so_far for step in found.attacks]
    assert left == sorted(left, reverse=True)
    assert found.robust.accuracy == left[-1]
    assert found.robust.low <= found.robust.accuracy <= found.robust.high
    assert seen[0] == (12, 12)


def test_that_views_are_not_averaged_under_attack_is_said(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    options: dict[str, Any] = {"attack": "linf:1/255", "attack_methods": ["fgsm"], "device": "cpu"}
    found = evaluate(bundle, make_folder(per_class=2), tta="mirror", **options)
    assert "corruptions and attacks are measured without test-time augmentation (mirror)" in found.warnings


def _measured(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, network: Any, **options: Any) -> tuple[str, ...]:
    """The warnings of an attack on a network that stands in for the bundle's."""
    images = some_images(40, 32)
    monkeypatch.setattr(under_attack, "float_network", lambda bundle, device, precision="fp32": network)
    pixels_NHWC = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    with torch.no_grad():
        labels = network(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    return measure_attack(Predictor(bundle, device="cpu"), pixels_NHWC, labels, **options).warnings


def test_masked_gradients_are_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that are rounded have no gradient, and protect against nothing."""
    plain, _ = linear(3, 32)

    def masked(images_BCHW: torch.Tensor) -> torch.Tensor:
        # a gradient of zero, where there is none at all
        return plain((images_BCHW * 32).round() / 32 + 0 * images_BCHW)

    methods = ("fgsm", "apgd-ce", "square")
    warnings = _measured(monkeypatch, bundle, masked, threat=LINF, methods=methods)
    assert [line.split(": ")[1][:13] for line in warnings] == ["random search", "the gradient "]
    assert _measured(monkeypatch, bundle, plain, threat=LINF, methods=methods) == ()


def test_random_answers_are_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = linear(3, 32)

    def noisy(images_BCHW: torch.Tensor) -> torch.Tensor:
        logits = plain(images_BCHW)
        return logits + torch.randn_like(logits)

    warnings = _measured(monkeypatch, bundle, noisy, threat=LINF, methods=("fgsm",))
    assert "the network answers the same images differently" in warnings[-1]


def test_what_would_be_ignored_or_is_unknown_is_refused(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=2)
    for options, message in (
        ({"within": "5m"}, "within would be ignored: it is for attacks"),
        ({"attack_methods": ["pgd"]}, "attack_methods would be ignored"),
        ({"attack_precision": "fp32"}, "attack_precision would be ignored"),
        ({"attack_images": 5}, "attack_images would be ignored"),
        ({"attack": "linf:8/255", "corruption_images": 5}, "corruption_images would be ignored"),
        ({"attack": "linf:300/255"}, "the attack's radius is out of range: got 'linf:300/255'"),
        ({"attack": "linf:8/255", "attack_precision": "fp8"}, "attack_precision is unknown: got 'fp8'"),
        ({"attack": "linf8"}, "the attack is not understood: got 'linf8'"),
        ({"attack": "linf:8/255", "attack_methods": ["apdg"]}, "attack_methods is unknown: got 'apdg'"),
        ({"attack": "linf:8/255", "attack_images": 0}, "attack_images is out of range: got 0"),
        ({"attack": "linf:8/255", "within": "soon"}, "`within` is no duration: got 'soon'"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(bundle, folder, device="cpu", **options)


def test_a_bundle_without_code_is_asked_for_its_answers_by_square_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(bundle, device="cpu", precision="fp32")
    images = pixels(6)
    labels = predictor.probs(images).argmax(1)
    monkeypatch.setattr(Bundle, "has_code", property(lambda bundle: False))
    monkeypatch.setattr(square, "QUERIES", 40)
    found = measure_attack(predictor, images, labels, Threat.parse("linf:32/255"))
    assert [step.name for step in found.attacks] == ["square"]
    assert found.network == "answers alone"
    assert not found.is_standard
    assert found.deployed is not None
    # what it was asked in 8 bits fools it in 8 bits
    assert found.deployed.accuracy == found.robust.accuracy < 1
    for threat, methods in ((Threat.parse("l2:0.5"), ()), (LINF, ("pgd",))):
        with pytest.raises(ConfigError, match="it can be asked by Square within Linf alone"):
            measure_attack(predictor, images, labels, threat, methods=methods)
