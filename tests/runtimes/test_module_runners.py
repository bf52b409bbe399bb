"""Each runtime that runs any module computes what the module does, for the sizes that it says it takes."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import Tensor, nn

from vivace.errors import ExportError
from vivace.libraries.nncf import without_bars
from vivace.runtimes.modules.job import ModuleJob, shapes_of
from vivace.runtimes.table import RUNTIMES, imported

ROWS = [row for row in RUNTIMES.values() if row.module_runner is not None]


class Flat(nn.Module):
    """Two inputs, of which one has a side of any length, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.convolution(images).relu().mean((2, 3))
        return self.head(pooled), (weights.sum(1, keepdim=True) * pooled).argmax(1)


class Varied(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.module(*tensors)


def tensors(batch: int = 4, length: int = 6, side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, side, side, generator=generator), torch.rand(batch, length, generator=generator)


def job(**changes: object) -> ModuleJob:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Flat().eval().requires_grad_(False)
    return dataclasses.replace(
        ModuleJob(
            module=module,
            flat=Varied(module),
            calls=[(tensors(), {})],
            tensors=[tensors()],
            open_sides=[frozenset({0}), frozenset({0, 1})],
            precision="fp32",
            calibration=lambda: [tensors(), tensors(7)],
        ),
        **changes,
    )


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "inductor"], ids=lambda row: row.name)
@pytest.mark.parametrize("sizes", [(4, 6), (1, 6), (9, 3)])
def test_a_runner_computes_what_the_module_does(row: object, sizes: tuple[int, int]) -> None:
    given = job()
    program, inputs = imported(row.module_runner).convert(given), tensors(*sizes)
    assert program.takes(inputs)
    found = program.run(*inputs) if row.takes_network else program.run(inputs)
    expected = given.module(*inputs)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert found[1].tolist() == expected[1].tolist()


@pytest.mark.slow
def test_a_compiled_module_takes_the_shapes_that_it_was_compiled_for() -> None:
    given = job()
    program = imported(RUNTIMES["inductor"].module_runner).convert(given)
    with torch.no_grad():
        assert torch.allclose(program.run(*tensors())[0], given.module(*tensors())[0], atol=1e-5)
    assert program.takes(tensors())
    assert not program.takes(tensors(5))
    # the user's own programs are not frozen by that
    own = torch.compile(given.module)
    with torch.no_grad():
        before = own(*tensors())[0]
        given.module.head.bias.add_(1)
        assert torch.allclose(own(*tensors())[0], before + 1, atol=1e-5)


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_a_graph_refuses_sides_that_are_closed(name: str) -> None:
    program = imported(RUNTIMES[name].module_runner).convert(job())
    assert not program.takes(tensors(side=20))
    assert not program.takes((tensors()[0], tensors()[1][0]))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_int8_is_near_and_shares_its_graph_with_other_precisions(asymmetric: bool) -> None:
    kept: dict[str, object] = {}
    convert = imported(RUNTIMES["openvino"].module_runner).convert
    plain = convert(job(kept=kept))
    given = job(kept=kept, precision="int8", asymmetric=asymmetric)
    graph = kept["openvino"]
    program = convert(given)
    assert plain.takes(tensors(7))
    assert program.takes(tensors(7))
    found, expected = program.run(tensors(7))[0], plain.run(tensors(7))[0]
    assert kept["openvino"] is graph
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.1


def test_many_sizes_share_a_program_that_is_compiled_once() -> None:
    given = job()
    program = imported(RUNTIMES["openvino"].module_runner).convert(given)
    for batch in (*range(1, 14), 3):
        assert program.takes(tensors(batch))
        assert torch.allclose(program.run(tensors(batch))[0], given.module(*tensors(batch))[0], atol=1e-5)
    # in int8 further sizes are not taken
    program = imported(RUNTIMES["openvino"].module_runner).convert(job(precision="int8"))
    assert [program.takes(tensors(batch)) for batch in range(1, 11)] == [True] * 8 + [False] * 2


class OfOneSize(nn.Module):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        # a length that a trace takes for a constant
        return (given[0].reshape(int(given[0].shape[0]), -1).sum(1), given[1])


class OfValues(nn.Module):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return (given[0] if given[0].sum() > 0 else -given[0], given[1])


def test_a_trace_that_would_not_be_true_is_replaced_or_refused() -> None:
    convert = imported(RUNTIMES["openvino"].module_runner).convert
    traced, exported = convert(job(flat=OfOneSize())), convert(job(flat=OfOneSize(), exported=True))
    # torch.export knows that it made a number of it
    assert exported.takes(tensors(4))
    assert not exported.takes(tensors(2))
    # of a trace the search sees it, as it compares another size than the example's
    assert not traced.takes(tensors(2)) or traced.run(tensors(2))[0].shape != (2,)
    kept: dict[str, object] = {}
    for _ in range(2):
        # the second time it is known
        with pytest.raises(ExportError, match="may depend on values that Python reads"):
            convert(job(flat=OfValues(), kept=kept))


def test_channels_last_is_for_convolutions_of_images() -> None:
    convert = imported(RUNTIMES["eager"].module_runner).convert
    given = job(channels_last=True)
    assert torch.allclose(convert(given).run(*tensors())[0], given.module(*tensors())[0], atol=1e-5)
    assert given.module.convolution.weight.is_contiguous()
    with pytest.raises(ExportError, match="no convolutions of images"):
        convert(job(channels_last=True, module=nn.Linear(2, 2)))


def test_shapes_are_those_of_all_tensors() -> None:
    assert shapes_of(tensors(2)) == ((2, 3, 16, 16), (2, 6))


def test_nncf_draws_no_bars_in_notebooks_and_what_others_draw_by_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich").get_console()
    monkeypatch.setattr(console, "is_jupyter", True)
    with without_bars():
        assert (console.is_jupyter, sys.stdout) == (False, None)
    assert console.is_jupyter
    assert sys.stdout is not None
