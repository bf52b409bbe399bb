"""The report shows what corruptions and attacks left, of this bundle alone, and calls an upper bound one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from factories import make_bundle
from reports import HOSTILE, make_kept, make_sources, scored
from vivace.bundle import load_bundle
from vivace.cli import main
from vivace.errors import VivaceError
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.kept import MAX_RECORDS, keep, kept_beside, kept_of, records_of
from vivace.files import write_json
from vivace.notices import collected_warnings
from vivace.reporting.page.about import page_of
from vivace.reporting.page.card import card_of
from vivace.reporting.page.render import render, sections_of

CLASSES = ("cat", "dog")


def html_of(kept: dict[str, Any], lang: str = "en") -> str:
    return render(page_of(make_sources(CLASSES, robustness=kept)), lang=lang).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("lang", "texts"),
    [
        (
            "en",
            (
                "Under corruptions and attacks",
                "41.0 % of the images are still right",
                "36.8 % to 45.4 %",
                "gaussian noise",
                "frost",
            ),
        ),
        ("zh", ("图像损坏与攻击", "仍有 41.0 % 的图像正确", "36.8 % 至 45.4 %", "高斯噪声", "霜")),
    ],
)
def test_it_says_what_was_measured(lang: str, texts: tuple[str, ...]) -> None:
    html = html_of(make_kept(), lang)
    for text in (*texts, "CIFAR-10-C", "linf:8/255", "65.0 %"):
        assert text in html
    assert "upper bound, not the robustness" not in html
    assert "--corruptions" not in html


def test_an_incomplete_suite_is_called_an_upper_bound() -> None:
    html = html_of(make_kept(is_standard=False, warnings=["gradients may be masked: <b>"], deployed=scored(0.55)))
    assert "At most 41.0 % of the images are still right. This is an upper bound, not the robustness" in html
    assert "gradients may be masked: &lt;b&gt;" in html
    assert "55.0 %" in html
    steps = [{"name": "pgd", "robust_so_far": 0.47}, {"name": "square", "robust_so_far": 0.47, "is_complete": False}]
    html = html_of(make_kept(is_standard=False, attacks=steps))
    assert ">pgd<" in html
    assert ">square<" not in html


def test_what_was_not_measured_is_named_with_its_command() -> None:
    page = page_of(make_sources(CLASSES))
    assert "robustness" not in sections_of(page)
    missing = dict(page.not_measured)
    assert missing["corruptions"].endswith("DATA --corruptions")
    assert missing["attack"].endswith("DATA --attack linf:8/255")


def test_more_right_answers_under_attack_than_without_one_make_no_sense() -> None:
    kept = make_kept()
    kept["attack"]["robust"] = {**kept["attack"]["clean"], "accuracy": 1.0}
    assert kept["attack"]["clean"]["accuracy"] < 1
    assert page_of(make_sources(CLASSES, robustness=kept)).attacked == ()


@pytest.mark.parametrize("junk", [*HOSTILE[:4], None, -1, 1e99, [], {}, {"accuracy": "1"}, [["x"]]])
def test_what_makes_no_sense_is_left_out(junk: Any) -> None:
    for part in ("corruptions", "attack"):
        for key in make_kept()[part]:
            kept = make_kept()
            kept[part][key] = junk
            assert "<script>document" not in html_of(kept)
    assert "robustness" not in sections_of(
        page_of(make_sources(CLASSES, robustness={"corruptions": junk, "attack": junk}))
    )


def test_results_are_kept_beside_the_bundle_and_belong_to_it_alone(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    options = ["--device", "cpu", "--quiet"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    assert kept_of(bundle) == {}
    assert (
        main(["evaluate", str(bundle.folder), str(folder), *options, "--corruptions", "--corruption-images", "3"]) == 0
    )
    assert str(tmp_path / "net-robustness.json") in capsys.readouterr().out
    # an attack is added to what is there
    attacked = evaluate(bundle, folder, device="cpu", attack="linf:1/255", attack_methods=["fgsm"])
    assert keep(bundle, attacked) == kept_beside(bundle)
    kept = kept_of(bundle)
    assert [row["num_images"] for row in records_of(kept, "corruptions")] == [3]
    assert [row["threat"] for row in records_of(kept, "attack")] == ["linf:1/255"]
    # another network of that name has none of it
    other = make_bundle(tmp_path / "net", "simple_cnn")
    capsys.readouterr()
    assert kept_of(load_bundle(other.folder)) == {}
    told = f"those in {kept_beside(bundle)} are of another bundle than {other.folder}"
    assert f"are not used: {told}" in capsys.readouterr().err
    assert keep(load_bundle(other.folder), attacked) == kept_beside(bundle)
    assert f"are replaced: {told}" in capsys.readouterr().err
    assert kept_of(load_bundle(other.folder))["corruptions"] == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"[1]", b" " * 2**21])
def test_kept_results_that_are_of_no_use_are_said_to_be(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "net").folder)
    kept_beside(bundle).write_bytes(content)
    assert kept_of(bundle) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: kept results of corruptions and attacks are not used: ")
    assert str(kept_beside(bundle)) in line


def test_of_each_kind_of_attack_the_newest_result_is_kept(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)

    def attack(eps: int, method: str, seed: int = 0) -> str:
        options = ["--attack", f"linf:{eps}/255", "--attack-methods", method, "--seed", str(seed)]
        assert main(["evaluate", str(bundle.folder), str(folder), "--device", "cpu", "--quiet", *options]) == 0
        return capsys.readouterr().err

    assert "replaced" not in attack(1, "fgsm") + attack(2, "fgsm") + attack(1, "pgd")
    said = attack(1, "fgsm", seed=7)
    assert "the kept result of linf:1/255 by fgsm on colours (all, 6 images), which left" in said
    assert "was replaced by this newer one" in said
    kept = records_of(kept_of(bundle), "attack")
    told = [(row["threat"], row["attacks"][0]["name"], row["seed"]) for row in kept]
    assert told == [("linf:2/255", "fgsm", 0), ("linf:1/255", "pgd", 0), ("linf:1/255", "fgsm", 7)]
    page = page_of(make_sources(CLASSES, robustness=kept_of(bundle)))
    html, card = render(page), card_of(page)
    for threat, method, _ in told:
        assert f"{threat} · <bdi>colours</bdi>" in html
        assert method in html
        assert f"| {threat} " in card.replace("\\", "")


def test_of_two_that_keep_at_once_neither_loses_what_the_other_kept(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    found = [
        evaluate(bundle, folder, device="cpu", attack=f"linf:{eps}/255", attack_methods=["fgsm"]) for eps in range(1, 7)
    ]
    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(lambda one: keep(bundle, one), found))
    kept = records_of(kept_of(bundle), "attack")
    assert sorted(row["threat"] for row in kept) == [f"linf:{eps}/255" for eps in range(1, 7)]


@pytest.mark.parametrize(("split", "count", "told"), [("test", 3, True), ("all", 0, False), ("all", None, True)])
def test_whether_images_were_trained_on_is_told_as_it_was_counted(split: str, count: int | None, told: bool) -> None:
    kept = make_kept()
    for name in ("corruptions", "attack"):
        kept[name] |= {"split": split} | ({} if count is None else {"num_images_trained_on": count})
    page = page_of(make_sources(CLASSES, robustness=kept))
    assert ("The network was trained on these" in render(page)) == told
    assert ("some were trained on" in card_of(page)) == told


def test_figures_that_can_not_be_drawn_take_no_result_away(
    tmp_path: Path,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise VivaceError("it can't be written: there is no space left. Free some space.")

    monkeypatch.setattr("vivace.cli.evaluate._draw", full)
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    command = ["evaluate", str(bundle.folder), str(folder), "--device", "cpu", "--attack", "linf:1/255"]
    assert main([*command, "--attack-methods", "fgsm", "--figures", str(tmp_path / "figures")]) == 1
    shown = capsys.readouterr()
    assert "under attack: linf:1/255" in shown.out
    assert "no space left" in shown.err
    assert len(records_of(kept_of(bundle), "attack")) == 1
    assert main([*command, "--attack-methods", "fgsm", "--figures", str(tmp_path / "figures"), "--json"]) == 1
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["attack"]["threat"] == "linf:1/255"
    assert [text for text in answer["warnings"] if "no space left" in text]
    # what was said after the evaluation is in the answer too
    assert [text for text in answer["warnings"] if "was replaced by this newer one" in text]


def test_attacks_that_were_cut_off_do_not_replace_those_that_ran_to_their_end(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    options: dict[str, Any] = {"attack": "linf:1/255", "attack_methods": ["pgd"], "device": "cpu"}
    for within, expected in ((0.001, [False]), (0.001, [False]), (None, [True]), (0.001, [True]), (None, [True])):
        keep(bundle, evaluate(bundle, folder, within=within, **options))
        assert [row["is_complete"] for row in records_of(kept_of(bundle), "attack")] == expected


def test_where_results_can_not_be_kept_nothing_is_said_to_be_replaced(
    tmp_path: Path,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    found = evaluate(bundle, folder, device="cpu", attack="linf:1/255", attack_methods=["fgsm"])
    before = keep(bundle, found).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vivace.evaluation.kept.write_sealed", full)
    capsys.readouterr()
    with pytest.raises(VivaceError, match="No space left"):
        keep(bundle, found)
    assert "replaced" not in capsys.readouterr().err
    assert kept_beside(bundle).read_bytes() == before


def test_the_oldest_of_too_many_results_goes_and_that_is_said(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    found = evaluate(bundle, folder, device="cpu", attack="linf:1/255", attack_methods=["fgsm"])
    assert found.attack is not None
    with collected_warnings() as said:
        for eps in range(MAX_RECORDS + 1):
            attack = dataclasses.replace(found.attack, eps=eps / 255, threat=f"linf:{eps}/255")
            keep(bundle, dataclasses.replace(found, attack=attack))
    kept = records_of(kept_of(bundle), "attack")
    assert [row["eps"] for row in kept] == [eps / 255 for eps in range(1, MAX_RECORDS + 1)]
    assert len(said) == 1
    assert "the oldest is left out: linf:0/255 by fgsm" in said[0]


def test_a_file_of_an_earlier_version_is_read_and_added_to() -> None:
    before = make_kept()
    assert [row["threat"] for row in records_of(before, "attack")] == ["linf:8/255"]
    page = page_of(make_sources(CLASSES, robustness=before))
    assert [one.threat for one in page.attacked] == ["linf:8/255"]
    assert page.attacked[0].methods == ("apgd-ce", "apgd-t", "fab-t", "square")


def test_a_weaker_suite_stands_behind_the_standard_one() -> None:
    standard = make_kept()["attack"]
    weaker = make_kept(is_standard=False, robust=scored(0.6), attacks=[{"name": "pgd", "robust_so_far": 0.6}])["attack"]
    page = page_of(make_sources(CLASSES, robustness={**make_kept(), "attack": [standard, weaker]}))
    assert [one.methods[0] for one in page.attacked] == ["apgd-ce", "pgd"]


def test_a_file_of_somebody_else_stays_and_the_results_are_printed(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), make_bundle(tmp_path / "net")
    write_json(tmp_path / "net-robustness.json", {"mine": 1})
    before = (tmp_path / "net-robustness.json").read_bytes()
    options = ["--device", "cpu", "--quiet", "--attack", "linf:1/255", "--attack-methods", "fgsm"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    captured = capsys.readouterr()
    assert "robust, at most" in captured.out
    assert "the results are not kept for the report" in captured.err
    assert (tmp_path / "net-robustness.json").read_bytes() == before
