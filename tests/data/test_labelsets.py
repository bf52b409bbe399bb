"""Sets of labels: how tables say them, how they are numbered, split, audited and cached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data.audit import audit_images
from vivace.data.caching.cache import open_cache
from vivace.data.caching.kept import source_in_cache
from vivace.data.describe import summary
from vivace.data.holdout import hold_out_sets, strata
from vivace.data.labelsets import LabelSet, checked_sets, class_counts, stored_sets, with_columns
from vivace.data.layouts.reading import listed
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import DataError

PREPROCESS = Preprocess(size=8, store_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
# labels of five images, which repeat
SETS: list[list[str]] = [["cat", "dog"], ["cat"], [], ["bird", "dog"], ["bird"]]
NUM_IMAGES = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def table(root: Path, cells: list[str], name: str = "list.csv", header: str = "file_name,labels") -> Path:
    """A table of 40 images whose cells repeat."""
    rows = [f"{index}.png,{cells[index % len(cells)]}" for index in range(NUM_IMAGES)]
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    return root / name


def labels_of(source: DataSource, split: str = "train") -> list[list[str]]:
    assert source.label_sets is not None
    named = dict(zip(source.splits[split].names, source.splits[split].labels.tolist(), strict=True))
    rows = [source.label_sets[named[f"{index}.png"]] for index in range(NUM_IMAGES) if f"{index}.png" in named]
    return [[source.classes[column] for column in np.flatnonzero(row)] for row in rows]


def expected() -> list[list[str]]:
    return [SETS[index % 5] for index in range(NUM_IMAGES)]


@pytest.mark.parametrize("style", ["separated", "bars", "json text", "python text", "columns", "jsonl", "parquet"])
def test_labels_are_read_however_a_table_holds_them(root: Path, style: str) -> None:
    if style in ("separated", "bars"):
        sign = ";" if style == "separated" else "|"
        path = table(root, [f" {sign} ".join(names) or "[]" for names in SETS])
    elif style == "json text":
        path = table(root, ['"' + json.dumps(names).replace('"', '""') + '"' for names in SETS])
    elif style == "python text":
        path = table(root, [f'"{names}"' for names in SETS])
    elif style == "columns":
        cells = [",".join(str(int(name in names)) for name in ("cat", "dog", "bird")) for names in SETS]
        path = table(root, cells, header="file_name,cat,dog,bird")
    else:
        rows = [{"file_name": f"{index}.png", "labels": names} for index, names in enumerate(expected())]
        path = root / f"list.{style}"
        if style == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pyarrow = pytest.importorskip("pyarrow")
            import pyarrow.parquet as parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    source = open_source(path)
    assert source.classes == ("bird", "cat", "dog")
    assert labels_of(source) == [sorted(names) for names in expected()]
    assert source.notes[0].startswith("several labels an image")


def test_class_numbers_in_lists_get_the_names_that_hugging_face_stores(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    names = ["bird", "cat", "dog"]
    rows = [
        {"file_name": f"{index}.png", "labels": [names.index(name) for name in found]}
        for index, found in enumerate(expected())
    ]
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    stored = pyarrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"labels": feature}}})}
    )
    parquet.write_table(stored, root / "list.parquet")
    assert labels_of(open_source(root / "list.parquet")) == [sorted(found) for found in expected()]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        # names that hold the sign
        (["cat; tabby", "dog; puppy", "bird"], ("bird", "cat; tabby", "dog; puppy")),
        # paths, whose last part is in no other cell
        (
            ["animal|dog", "animal|cat", "plant|rose", "plant|oak"],
            ("animal|cat", "animal|dog", "plant|oak", "plant|rose"),
        ),
        (["cat", "dog"], ("cat", "dog")),
    ],
)
def test_a_sign_in_names_of_classes_makes_no_labels(root: Path, cells: list[str], classes: tuple[str, ...]) -> None:
    source = open_source(table(root, cells))
    assert source.label_sets is None
    assert source.classes == classes
    assert ("`data.multi_label=True` reads several labels" in source.notes[0]) == (len(cells) > 2)


def test_a_rare_label_does_not_make_the_others_names(root: Path) -> None:
    rows = table(root, ["cat;dog", "cat", "dog;bird", "bird"]).read_text() + "0.png,zebra;cat\n"
    (root / "list.csv").write_text(rows.replace("0.png,cat;dog\n", "", 1))
    source = open_source(root / "list.csv")
    assert source.classes == ("bird", "cat", "dog")
    assert "left out 1 label with one training image: zebra" in source.notes
    assert labels_of(source)[0] == ["cat"]


def test_the_user_has_the_last_word(root: Path) -> None:
    forced = open_source(Data(table(root, ["cat; tabby", "dog; puppy"]), multi_label=True))
    assert forced.classes == ("cat", "dog", "puppy", "tabby")
    whole = open_source(Data(table(root, ["cat;dog", "cat", "dog"]), multi_label=False))
    assert (whole.classes, whole.label_sets) == (("cat", "cat;dog", "dog"), None)
    with pytest.raises(DataError, match="2 one-hot columns are 1, but an image has one class: got a, b"):
        open_source(Data(table(root, ["1,1", "1,0"], header="id,a,b"), multi_label=False))
    with pytest.raises(DataError, match=r"only a table or an object can give an image several labels: .* for digits"):
        open_source(Data("digits", multi_label=True))


def test_columns_with_exactly_one_1_stay_classes(root: Path) -> None:
    assert open_source(table(root, ["1,0", "0,1"], header="id,a,b")).label_sets is None
    one = open_source(Data(table(root, ["1,0", "0,1"], header="id,a,b"), multi_label=True))
    assert labels_of(one)[:2] == [["a"], ["b"]]


def test_an_empty_cell_says_nothing_and_brackets_say_no_label(root: Path) -> None:
    cells = ["cat;dog", "cat", "dog", "[]", "dog;cat"]
    text = table(root, cells).read_text().replace("0.png,cat;dog\n", "0.png,\n", 1)
    (root / "list.csv").write_text(text)
    source = open_source(root / "list.csv")
    (row,) = source.bad_rows
    assert (row.reason, row.message) == (
        "missing_label",
        "list.csv, line 2: labels is empty; write [] where an image has no label",
    )
    assert labels_of(source)[2] == []


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a", 1], ["a", "1"]),
        ("['a', 'b']", ["a", "b"]),
        ('["a"]', ["a"]),
        ("[]", []),
        ("[a]", None),
        ("a", None),
        ("[1, 2]", ["1", "2"]),
        ("[" * 5000 + "]" * 5000, None),
        ("[__import__('os')]", None),
        (None, None),
    ],
)
def test_lists_of_labels_and_their_texts(value: object, names: list[str] | None) -> None:
    assert listed(value) == names


def test_a_list_of_anything_but_names_is_refused_with_its_line(root: Path) -> None:
    path = root / "list.jsonl"
    rows = [{"file_name": "0.png", "labels": ["a", "b"]}, {"file_name": "1.png", "labels": [["a"]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line 2: labels: a list of labels holds \"\['a'\]\"\. Write names"):
        open_source(path)


def test_two_sets_have_one_text_only_if_they_are_the_same() -> None:
    assert LabelSet(["b", "a", "b"]) == "a; b"
    assert LabelSet([]) == "∅"
    assert len({LabelSet(["a", "b"]), LabelSet(["a; b"]), LabelSet(["∅"]), LabelSet([])}) == 4


def test_a_file_with_two_sets_of_labels_is_a_contradiction(root: Path) -> None:
    path = table(root, ["cat;dog", "cat", "dog;cat"])
    path.write_text(path.read_text() + "0.png,cat\n")
    (row,) = open_source(path).bad_rows
    assert row.reason == "contradiction"
    assert row.message == "list.csv, lines 2 and 42: '0.png' is labelled cat and cat; dog"


def test_the_audit_compares_sets() -> None:
    names, labels = {"train": ["a", "b", "c"]}, {"train": np.array([0, 1, 1])}
    digests = {"train": np.array(["x", "x", "y"])}
    audit = audit_images(names, labels, digests, {}, ["cat", "cat; dog"], multi_label=True)
    assert [finding.message for finding in audit.findings] == [
        "the same image is labelled cat and cat; dog: train:a, train:b"
    ]


def test_labels_of_val_that_train_lacks_are_left_out_and_their_images_stay(root: Path) -> None:
    lines = [f"{index}.png,{'cat;dog' if index % 2 else 'cat'},train" for index in range(20)]
    lines += [f"{index}.png,{'cat;fox' if index == 21 else 'dog;cat'},val" for index in range(20, 40)]
    (root / "list.csv").write_text("\n".join(["file_name,labels,split", *lines]))
    source = open_source(root / "list.csv")
    assert source.classes == ("cat", "dog")
    assert labels_of(source, "val")[:2] == [["cat", "dog"], ["cat"]]
    assert "left out 1 label of val not in train: fox; their images stay, without them" in source.notes


def test_data_are_numbered_by_the_labels_of_a_bundle(root: Path) -> None:
    source = open_source(
        table(root, ["cat;dog", "cat", "fox;dog", "fox"]), classes=("dog", "cat", "cow"), multi_label=True
    )
    assert source.classes == ("dog", "cat", "cow")
    assert source.label_sets is not None
    sets_N = source.label_sets[source.splits["train"].labels].astype(int).tolist()
    order = [int(name.removesuffix(".png")) for name in source.splits["train"].names]
    assert [sets_N[order.index(index)] for index in range(4)] == [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="no label in common"):
        open_source(root / "list.csv", classes=("cow",), multi_label=True)
    # one class an image is a set of one
    one = open_source(table(root, ["cat", "dog"]), classes=("dog", "cat"), multi_label=True)
    assert one.label_sets is not None
    assert one.label_sets[one.splits["train"].labels].sum(1).tolist() == [1] * NUM_IMAGES


def test_the_summary_counts_labels(root: Path) -> None:
    source = open_source(table(root, ["cat;dog", "cat", "dog;cat", "cat"]))
    assert summary(source) == "2 labels (cat … dog), 1.5 an image, 40 train; smallest label dog: 20, largest cat: 40"


def test_the_cache_keeps_the_sets_and_gives_them_back_alone(root: Path) -> None:
    source = open_source(table(root, ["cat;dog", "cat", "dog", "[]"]))
    cache = open_cache(source, PREPROCESS, cache_dir=root / "cache")
    assert cache.label_sets is not None
    assert source.label_sets is not None
    np.testing.assert_array_equal(cache.label_sets, source.label_sets)
    np.testing.assert_array_equal(cache.splits["train"].labels_N, source.splits["train"].labels)
    kept = source_in_cache(cache.fingerprint, PREPROCESS, root / "cache")
    assert kept is not None
    assert kept.label_sets is not None
    np.testing.assert_array_equal(kept.label_sets, source.label_sets)
    # other labels of the same files are other data
    other = open_cache(
        open_source(table(root, ["cat;dog", "cat", "dog;cat", "[]"])), PREPROCESS, cache_dir=root / "cache"
    )
    assert other.fingerprint != cache.fingerprint


@pytest.mark.parametrize("stored", [[[0, 2]], [[1, 0]], [[0], [0]], [[True]], ["0"], 3, [[-1]], [[0, 0]]])
def test_a_forged_cache_gives_no_sets(stored: object) -> None:
    with pytest.raises(ValueError, match="label"):
        checked_sets(stored, 2)


def test_sets_survive_being_stored() -> None:
    sets_MK = np.array([[False, False, False], [True, False, True], [True, True, True]])
    np.testing.assert_array_equal(checked_sets(stored_sets(sets_MK), 3), sets_MK)


def test_columns_are_chosen_and_their_combinations_numbered_anew() -> None:
    sets_MK = np.array([[True, False, True], [True, True, False], [True, False, False]])
    chosen, numbers_M = with_columns(sets_MK, [2, None, 0])
    np.testing.assert_array_equal(chosen[numbers_M], sets_MK[:, [2, 1, 0]] & [True, False, True])
    assert len(chosen) == 2


def test_the_same_columns_leave_combinations_their_numbers() -> None:
    # a number is a part of the fingerprint, by which a run finds its data again
    sets_MK = np.array([[True, False, False], [True, False, True], [False, True, False], [False, False, True]])
    chosen, numbers_M = with_columns(sets_MK, [0, 1, 2])
    np.testing.assert_array_equal(chosen, sets_MK)
    assert numbers_M.tolist() == [0, 1, 2, 3]


def test_images_of_each_label_are_counted() -> None:
    sets_MK = np.array([[True, False], [True, True], [False, False]])
    assert class_counts(np.array([0, 1, 1, 2]), 2, sets_MK).tolist() == [3, 2]
    assert class_counts(np.array([0, 1, 1]), 2, None).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_every_label_is_on_both_sides_and_copies_stay_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # label 0 is rare: three images, two of which are copies
    every_NK = rng.random((300, 8)) < np.linspace(0.03, 0.5, 8)
    every_NK[:, 0] = False
    every_NK[:3, 0] = True
    sets_MK, labels_N = np.unique(every_NK, axis=0, return_inverse=True)
    labels_N = labels_N.reshape(-1)
    groups_N = np.arange(300)
    groups_N[1] = 0
    kept, held = hold_out_sets(labels_N, sets_MK, groups_N, 0.1, seed=seed)
    assert sorted([*kept, *held]) == list(range(300))
    assert 15 <= len(held) <= 60
    for side in (kept, held):
        assert sets_MK[labels_N[side]].any(0).all()
    assert (0 in kept) == (1 in kept) or labels_N[0] != labels_N[1]


def test_common_combinations_are_strata_and_rare_ones_are_pooled_by_their_rarest_label() -> None:
    sets_MK = np.array([[True, False, False], [True, True, False], [True, True, True], [False, False, False]])
    labels_N = np.array([0] * 30 + [1] * 20 + [2] * 2 + [3])
    found = strata(labels_N, sets_MK, 0.1)
    assert len(set(found.tolist())) == 4
    assert len(set(found[50:52].tolist())) == 1
