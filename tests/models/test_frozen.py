"""A frozen network: its answers by a library are torch's, and its graph is kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vivace.models import frozen
from vivace.models.frozen import Frozen
from vivace.models.normalize import Normalize


def filled(computed: Frozen, *blocks: np.ndarray) -> torch.Tensor:
    """The first answer of the network to images in blocks."""
    out = torch.empty(sum(map(len, blocks)), *computed.shapes[0])
    computed.fill(iter(blocks), [out])
    return out


class TestFrozen:
    @pytest.fixture
    def parts(self) -> tuple[torch.nn.Module, Normalize, np.ndarray]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        images = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3)).astype(np.uint8)
        return network, Normalize((0.5,) * 3, (0.25,) * 3), images

    @pytest.mark.parametrize("library", [True, False])
    def test_its_answers_are_torchs(
        self,
        parts: tuple[torch.nn.Module, Normalize, np.ndarray],
        library: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        network, normalize, images = parts
        if not library:
            monkeypatch.setattr(Frozen, "_is_in_library", lambda *_, **__: False)
        computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.runtime == ("openvino" if library else "torch: ")
        # blocks that are no whole number of batches
        found = filled(computed, images[:13], images[13:])
        expected = network(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
        # bf16 has 8 bits
        assert torch.allclose(found, expected, atol=0.03, rtol=0.02)
        exact = torch.empty_like(found)
        computed.fill(iter([images]), [exact], precision="fp32")
        assert torch.allclose(exact, expected, atol=1e-5, rtol=1e-5)

    def test_a_graph_is_kept_and_one_that_was_changed_is_made_again(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network, normalize, images = parts
        made: list[int] = []
        convert = frozen._converted

        def counted(*arguments: Any) -> Any:
            made.append(1)
            return convert(*arguments)

        monkeypatch.setattr(frozen, "_converted", counted)

        def answers() -> torch.Tensor:
            computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
            return filled(computed, images)

        first = answers()
        assert torch.equal(answers(), first)
        assert len(made) == 1
        (weights,) = (tmp_path / "graphs").rglob("*.bin")
        weights.write_bytes(bytes(len(weights.read_bytes())))
        assert torch.equal(answers(), first)
        assert len(made) == 2

    def test_a_library_that_answers_otherwise_is_not_used(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network, normalize, images = parts
        other = torch.nn.Sequential(*network[:-2], torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten())
        convert = frozen._converted
        monkeypatch.setattr(
            frozen,
            "_converted",
            lambda library, module, sample: convert(library, frozen._OnPixels(other, normalize), sample),
        )
        computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.runtime == "torch: OpenVINO's answers are others"

    def test_answers_that_are_not_wanted_are_left_out(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path
    ) -> None:
        network, normalize, images = parts

        class Two(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                maps = self.network[0](images_BCHW)
                return self.network[1:](maps), maps

        computed = Frozen(Two(), normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.shapes == ((8,), (8, 16, 16))
        maps = torch.empty(len(images), 16, 16, 8, dtype=torch.bfloat16).permute(0, 3, 1, 2)
        computed.fill(iter([images]), [None, maps])
        expected = network[0](normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
        assert torch.allclose(maps.float(), expected, atol=0.03, rtol=0.02)
        both = torch.empty(len(images), 8)
        computed.fill(iter([images]), [both, None])
        assert torch.allclose(both, expected.relu().mean((2, 3)), atol=0.03, rtol=0.02)

    def test_a_file_of_the_users_in_a_graphs_folder_stays(
        self,
        parts: tuple[torch.nn.Module, Normalize, np.ndarray],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        network, normalize, images = parts
        options = {"sample": images, "device": torch.device("cpu"), "cache_dir": tmp_path}
        Frozen(network, normalize, **options)
        (weights,) = (tmp_path / "graphs").rglob("*.bin")
        (weights.parent / "notes.txt").write_text("mine")
        weights.write_bytes(bytes(8))
        assert Frozen(network, normalize, **options).runtime == "openvino"
        assert (weights.parent / "notes.txt").read_text() == "mine"
        assert "graph is not kept in the cache" in capsys.readouterr().err

    def test_a_graph_that_can_not_be_written_is_used_all_the_same(
        self,
        parts: tuple[torch.nn.Module, Normalize, np.ndarray],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def full(*_: object, **__: object) -> None:
            # the library's own error
            raise RuntimeError("No space left on device")

        network, normalize, images = parts
        monkeypatch.setattr(frozen.library(), "save_model", full)
        computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.runtime == "openvino"
        assert "is not kept in the cache" in capsys.readouterr().err
        assert "No space left" not in str(list((tmp_path / "graphs").rglob("*")))

    def test_torch_computes_it_where_that_is_asked_for(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path
    ) -> None:
        network, normalize, images = parts
        options = {"sample": images, "device": torch.device("cpu"), "cache_dir": tmp_path}
        assert Frozen(network, normalize, runtime="torch", **options).runtime.startswith("torch")
        assert not (tmp_path / "graphs").exists()
