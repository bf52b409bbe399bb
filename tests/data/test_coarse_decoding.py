"""JPEGs are decoded at the resolution that `Preprocess` states, and what is decoded otherwise says so."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import vivace
from answers import last_answer
from factories import make_bundle
from vivace.batch import run
from vivace.batch.outputs import Outputs
from vivace.batch.run import predict_stream
from vivace.bundle import load_bundle
from vivace.bundleinfo import check_info
from vivace.cli import main
from vivace.config import from_dict, to_dict
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, OutputPathError
from vivace.predictor import Predictor

FINE = Preprocess(size=16, store_size=16)
COARSE = dataclasses.replace(FINE, decode="coarse")


def photo(side: int, *, seed: int = 0) -> bytes:
    """A JPEG with detail in each pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def drafted(data: bytes, least: int) -> np.ndarray:
    """Pillow's own reading of a JPEG at the lowest resolution of at least `least` px, made 16 px by its resize."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, (least, least))
    return np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))


# side of the JPEG, and what its shorter side is decoded to
@pytest.mark.parametrize(
    ("side", "fine", "coarse"), [(31, 31, 31), (32, 32, 16), (63, 63, 32), (64, 32, 16), (127, 64, 32), (256, 32, 32)]
)
def test_a_jpeg_is_decoded_at_the_resolution_that_preprocess_states(side: int, fine: int, coarse: int) -> None:
    data = photo(side)
    for preprocess, decoded, least in ((FINE, fine, 32), (COARSE, coarse, 16)):
        with preprocess.decoding(data) as (_, picture):
            found = picture.pixels
            size = found.size if isinstance(found, Image.Image) else found.shape[1::-1]
        assert size == (decoded, decoded)
        if decoded < side:
            np.testing.assert_array_equal(preprocess.load(data), drafted(data, least))


def test_what_is_decoded_coarsely_are_other_pixels_of_another_preprocess() -> None:
    data = photo(64)
    assert (FINE.load(data) != COARSE.load(data)).any()
    assert FINE.fingerprint() != COARSE.fingerprint()
    # images without a resolution of their own are the same
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(FINE.load(pixels), COARSE.load(pixels))


def test_fine_is_not_written_so_that_older_versions_read_it() -> None:
    assert "decode" not in to_dict(FINE)
    assert to_dict(COARSE)["decode"] == "coarse"
    assert from_dict(Preprocess, to_dict(COARSE)) == COARSE
    assert from_dict(Preprocess, to_dict(FINE)) == FINE


def test_what_can_not_be_decoded_coarsely_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 1 channels of uint16, which are kept as they are"):
        Preprocess(size=16, store_size=16, channels=1, mean=(0,), std=(1,), pixels="uint16", decode="coarse")
    with pytest.raises(ConfigError, match=r"preprocess.decode"):
        Preprocess(size=16, store_size=16, decode="rough")  # type: ignore[arg-type]
    bundle = make_bundle(tmp_path / "bundle", size=16, widths=[8, 8])
    with pytest.raises(ConfigError, match="coarse"):
        check_info(dataclasses.replace(bundle.info, preprocess=COARSE))
    predictor = Predictor(bundle.folder)
    with pytest.raises(ConfigError, match="decode would be ignored: got 'coarse' and a predictor"):
        vivace.predict_to(predictor, tmp_path, tmp_path / "out.csv", decode="coarse")


def test_every_output_says_that_its_images_were_decoded_coarsely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(make_bundle(tmp_path / "bundle", size=16, widths=[8, 8]).folder)
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        (images / f"{index}.jpg").write_bytes(photo(64, seed=index))
    (images / "6.jpg").write_bytes(b"no image")
    for name in ("fine.csv", "coarse.csv", "coarse.jsonl", "coarse.parquet"):
        decode = [] if name.startswith("fine") else ["--decode", "coarse"]
        assert main(["predict", bundle, str(images), "--quiet", *decode, "--out", str(tmp_path / name)]) == 0
        assert ("JPEGs are decoded coarsely" in capsys.readouterr().err) == bool(decode)
    read = [list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("fine", "coarse")]
    assert "decode" not in read[0][0]
    assert [row["decode"] for row in read[1]] == ["coarse"] * 7
    assert any(fine["probability_1"] != coarse["probability_1"] for fine, coarse in zip(*read, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "coarse.jsonl").read_text().splitlines()]
    assert {row["decode"] for row in lines} == {"coarse"}
    assert set(pyarrow.parquet.read_table(tmp_path / "coarse.parquet")["decode"].to_pylist()) == {"coarse"}
    for decode in ("fine", "coarse"):
        assert main(["predict", bundle, str(images), "--quiet", "--json", "--decode", decode]) == 0
        assert last_answer(capsys.readouterr().out)["decode"] == decode


def test_a_run_is_not_resumed_with_another_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle", size=16, widths=[8, 8]).folder
    (tmp_path / "images").mkdir()
    for index in range(4):
        (tmp_path / "images" / f"{index}.jpg").write_bytes(photo(40, seed=index))
    monkeypatch.setattr(run, "COMMIT_SECONDS", 0.0)
    out, taken = tmp_path / "out.csv", 0

    def stopped(outcome: object) -> None:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_stream(Predictor(bundle, batch_size=1), [tmp_path / "images"], outputs=Outputs(out), each=stopped)
    coarse = Predictor(bundle, batch_size=1, decode="coarse")
    with pytest.raises(OutputPathError, match='decode changed: null before, "coarse" now'):
        predict_stream(coarse, [tmp_path / "images"], outputs=Outputs(out), resume=True)


def test_the_bundle_itself_stays_as_it_was(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", size=16, widths=[8, 8]).folder
    predictor = Predictor(folder, decode="coarse")
    assert predictor.bundle.preprocess.decode == predictor.options["decode"] == "coarse"
    assert load_bundle(folder).preprocess.decode == "fine"
