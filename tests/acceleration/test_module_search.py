"""vivace.accelerate for any module: a proven drop-in with its answers, or the module itself with the reason.

Timings are made up: what is faster does not depend on the machine.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import platform
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from small_modules import (
    FLOAT_LAYERS,
    Net,
    accelerate,
    close,
    exact,
    fake_rounds,
    images,
    labelled,
    made,
    tell_speeds,
)
from torch import Tensor, nn

import vivace
from vivace.acceleration.modules import search as search_module
from vivace.acceleration.modules import timing as timing_module
from vivace.acceleration.modules import trials as trials_module
from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.proof import Scored, loss_of, num_affordable, samples_needed, unproven
from vivace.errors import ConfigError, DataError, ModelError, VivaceError
from vivace.hardware import cpu_features
from vivace.runtimes.modules import openvino as openvino_module


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_speeds(monkeypatch)


@dataclasses.dataclass
class Output:
    logits: Tensor
    parts: dict[str, Any]
    loss: Tensor | None = None


class Rich(Net):
    def forward(self, images: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Any:
        logits = self.body(images) * scale
        if shift is not None:
            logits = logits + shift
        return Output(logits, {"probs": logits.softmax(1), "classes": logits.argmax(1), "count": 4})


def test_the_drop_in_answers_like_the_original_for_all_batch_sizes() -> None:
    module = made(Net)
    data = labelled(module, images())
    result = accelerate(module, data, metric=lambda outputs, targets: outputs.argmax(1) == targets)
    assert (result.accelerated, result.status) == (True, "accelerated")
    assert isinstance(result.module, AcceleratedModule)
    assert (result.runtime, result.precision) == ("openvino", "int8")
    assert result.drop <= result.drop_bound <= 5
    assert (result.num_certify_samples, result.metric) == (224, "<lambda>")
    assert 3.5 < result.speedup_low < result.speedup < 4.5
    precise = accelerate(module, [batch for batch, _ in data], metric=exact)
    assert (precise.runtime, precise.precision, precise.drop) == ("openvino", "fp32", 0)
    for batch in (*images(8, 8), *images(1, 1), *images(50, 50), torch.randn(3, 3, 20, 20)):
        assert close(precise.module(batch), module(batch))
    # its attributes and weights are the original's
    assert precise.module.body[0].weight.shape == (8, 3, 3, 3)
    assert {name.removeprefix("original.") for name in precise.module.state_dict()} == set(module.state_dict())


def test_the_budget_is_enforced_by_the_metric_that_is_given() -> None:
    module, data = made(Net), images()
    result = accelerate(module, data, metric=exact)
    assert (result.precision, result.drop_bound < 5) == ("fp32", True)
    outcomes = {candidate.name: candidate for candidate in result.candidates}
    assert "points on the samples to choose on" in outcomes["openvino int8"].reason
    assert outcomes["openvino int8"].drop > 5
    assert outcomes["openvino fp32"].reason == "accelerated"
    # too few samples to prove half a point
    result = accelerate(module, data, metric=exact, max_drop=0.5)
    assert (result.accelerated, result.status, result.module) == (False, "nothing_faster", module)
    assert "openvino fp32: not proven: it may lose 1.33 points, 0.5 are allowed (224 samples" in result.reason


@pytest.mark.skipif(
    platform.machine() in ("x86_64", "AMD64") and not {"avx512_vnni", "amx_int8"} & set(cpu_features()),
    reason="without VNNI sums of int8 products saturate at 16 bits, and the other layers lose too much too",
)
def test_int8_that_loses_too_much_gets_layers_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module.Trials, "with_float_layers", FLOAT_LAYERS)
    module = made(Net)
    with torch.no_grad():
        # one channel a thousand times as large as the others: with one scale for all, int8 rounds these to nothing
        large = torch.ones(8).index_fill(0, torch.tensor([0]), 1000.0)
        module.body[1].weight *= large
        module.body[1].bias *= large
        module.body[3].weight /= large[None, :, None, None]
    result = accelerate(module, images(), metric=lambda outputs, original: (outputs - original).norm(dim=1) < 0.05)
    outcomes = {candidate.name: candidate.reason for candidate in result.candidates}
    assert "points on the samples to choose on" in outcomes["openvino int8"]
    assert outcomes["openvino int8, 1 layer in float"] == "accelerated"
    assert (result.precision, result.drop_bound < 5) == ("int8", True)
    assert not torch.equal(result.module(images()[0]), module(images()[0]))


@pytest.mark.usefixtures("without_int8")
def test_structures_of_inputs_and_outputs_are_kept() -> None:
    module = made(Rich)
    data = [({"images": batch, "shift": torch.randn(4)}, None) for batch in images()]
    metric = lambda outputs, original: exact(outputs.logits, original.logits)  # noqa: E731
    result = accelerate(module, data, metric=metric)
    assert (result.accelerated, result.precision) == (True, "fp32")
    batch, shift = images()[0], torch.randn(4)
    for args, kwargs in [
        ((batch,), {"shift": shift}),
        ((), {"shift": shift, "images": batch, "scale": 1.0}),
        # other calls than those that were seen
        ((batch,), {}),
        ((batch, 2.0), {"shift": shift}),
    ]:
        found, expected = result.module(*args, **kwargs), module(*args, **kwargs)
        assert type(found) is Output
        assert (found.loss, list(found.parts), found.parts["count"]) == (None, ["probs", "classes", "count"], 4)
        assert close(found.logits, expected.logits)
        assert found.parts["classes"].dtype == torch.int64
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        result.module(batch, size=3)


@pytest.mark.usefixtures("without_int8")
def test_the_module_and_the_process_stay_as_they_were() -> None:
    module = made(Net)
    module.train()
    module.body[1].eval()
    module.body[0].weight.requires_grad_(False)
    hook = module.body[3].register_forward_hook(lambda *_: None)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    result = accelerate(module, images(), metric=exact)
    assert result.accelerated
    assert [part.training for part in module.body] == [True, False, *[True] * 6]
    assert [weight.requires_grad for weight in module.parameters()] == [False, *[True] * 7]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert list(module.body[3]._forward_hooks) == [hook.id]
    now = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(now[0], generators[0])
    assert now[1:] == generators[1:]
    assert any("hooks" in warning for warning in result.warnings)


@pytest.mark.usefixtures("without_int8")
def test_a_drop_in_is_for_inference() -> None:
    module = made(Net)
    faster = accelerate(module, images(), metric=exact).module
    batch = images()[0].requires_grad_()
    # the original's, as its program has none
    faster(batch).sum().backward()
    assert batch.grad is not None
    outer = nn.Sequential(faster, nn.Linear(4, 2)).train()
    assert (outer[0].training, outer[0].original.training, outer[1].training) == (False, False, True)
    assert not list(filter(lambda weight: weight.requires_grad, faster.parameters()))
    with pytest.raises(TypeError, match="can't be pickled: it holds a program compiled for this machine"):
        pickle.dumps(faster)
    found = []
    threads = [threading.Thread(target=lambda: found.append(faster(images()[1]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(one, module(images()[1])) for one in found)


class Random(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + torch.rand(1)


class InPlace(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.mul_(2))


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.body(images)


class Branching(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) if images.mean() > 0 else -self.body(images)


class Boxed(Net):
    def forward(self, images: Tensor) -> Any:
        return {"box": Box(self.body(images))}


class Box:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        (Random, "unsupported", "its outputs are random: two calls with the same inputs differ"),
        (InPlace, "unsupported", "its forward changes its inputs in place"),
        (Counting, "unsupported", "its forward changes 'calls'"),
        (Branching, "nothing_faster", "openvino fp32: failed: ExportError: "),
        (Boxed, "nothing_faster", "it returns an object of type Box, which a graph does not make"),
    ],
)
def test_a_module_that_cannot_be_replaced_comes_back_with_the_reason(
    kind: type[nn.Module], status: str, reason: str
) -> None:
    module = made(kind)
    metric = None if kind is not Boxed else lambda outputs, original: exact(outputs["box"].value, original["box"].value)
    data = images(64)
    kept = [batch.clone() for batch in data]
    result = accelerate(module, data, metric=metric)
    assert (result.module, result.accelerated, result.status) == (module, False, status)
    assert reason in result.reason
    assert (result.runtime, result.precision, result.speedup) == ("eager", "fp32", 1.0)
    assert all(torch.equal(one, other) for one, other in zip(data, kept, strict=True))


class OfOneSize(Net):
    def forward(self, images: Tensor) -> Tensor:
        # a length that a trace takes for a constant
        return self.body(images).reshape(int(images.shape[0]), -1)


class OnlyFour(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.view(4, 3, 12, 12))


@pytest.mark.usefixtures("without_int8")
def test_sizes_that_a_trace_gets_wrong_are_exported_and_a_module_of_one_size_stays_one() -> None:
    module = made(OfOneSize)
    # in all batches as many: only another size shows it
    result = accelerate(module, images(batch=16), metric=exact)
    assert (result.runtime, result.precision) == ("openvino", "fp32")
    for batch in (*images(2, 2), *images(16, 16)):
        assert close(result.module(batch), module(batch))
    module = made(OnlyFour)
    result = accelerate(module, images(batch=4), metric=exact)
    assert result.accelerated
    assert close(result.module(images(batch=4)[0]), module(images(batch=4)[0]))
    with pytest.raises(RuntimeError, match="is invalid for input"):
        result.module(images(batch=3)[0])


class Failing(Net):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("no\nway")


class NotFinite(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) * torch.nan


@pytest.mark.parametrize(
    ("module", "data", "options", "error", "message"),
    [
        (Failing(), images(32), {}, ModelError, r"failed on a batch of 32: ValueError: no\. .* \(images: float32 \[32"),
        (NotFinite(), images(32), {}, ModelError, "outputs are NaN on a batch of 32"),
        (nn.LazyLinear(4), images(32), {}, ModelError, "the weight 'weight' has no shape yet"),
        (nn.Module(), images(32), {}, ModelError, "the module has no forward: got Module"),
        (Net(), [], {}, DataError, "the data hold no batch"),
        (Net(), "photos", {}, DataError, "got 'photos'"),
        (Net(), images(32), {"metric": "top1"}, DataError, "needs targets, and the data have none"),
        (Net(), images(32), {"metric": "f1"}, ConfigError, "`metric` is unknown: got 'f1'"),
        (Net(), images(32), {"out": "folder"}, ConfigError, "`out` is for bundles"),
        (Net(), images(32), {"objective": "size"}, ConfigError, "`objective` is for bundles"),
        (Net(), images(32), {"train": "on"}, ConfigError, "`train` is no iterable of batches: got 'on'"),
        (Net(), images(32), {"max_dorp": 1}, ConfigError, r"'max_dorp'\. Did you mean 'max_drop'"),
        (Net(), images(32), {"max_drop": -1}, ConfigError, "max_drop is out of range: got -1"),
        (Net(), images(32), {"within": "soon"}, ConfigError, "no duration: got 'soon'"),
        (Net(), images(32), {"calibration": 3}, ConfigError, "no iterable of batches: got 3"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    module: nn.Module, data: Any, options: dict[str, Any], error: type[VivaceError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        accelerate(module, data, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("without_int8")
def test_a_module_that_cannot_be_copied_is_used_itself() -> None:
    module = made(Net).train()
    module.lock = threading.Lock()
    result = accelerate(module, images(), metric=exact)
    assert result.accelerated
    assert module.training
    assert any("can't be copied (TypeError: cannot pickle" in warning for warning in result.warnings)
    expected = made(Net)(images()[0])
    assert close(result.module(images()[0]), expected)
    # a call that goes to the original: in evaluation mode, and afterwards in its own
    other = torch.randn(2, 3, 30, 30)
    assert close(result.module(other), made(Net)(other))
    assert module.training
    assert module.body.training


@pytest.mark.usefixtures("without_int8")
def test_what_is_guessed_or_left_out_is_said() -> None:
    module = made(Net)
    result = accelerate(module, (batch for batch in [*images(), images()[0]]))
    assert result.metric == "agreement"
    for said in (
        "no targets: what is kept is agreement",
        "an iterator, which was read once",
        "32 samples were there before",
    ):
        assert any(said in warning for warning in result.warnings), said
    assert any("torch.compile was not timed" in warning for warning in result.warnings)


def test_a_time_budget_that_is_too_short_is_said() -> None:
    module = made(Net)
    result = accelerate(module, images(), within=0.05)
    assert (result.status, result.module) == ("undecided", module)
    assert "not tried: out of time" in result.reason
    assert any("within=" in warning for warning in result.warnings)


def test_calibration_and_example_are_what_is_given() -> None:
    module, calls = made(Net), []

    def batches() -> Any:
        for batch in images(64):
            calls.append(len(batch))
            yield batch

    one = torch.randn(1, 3, 12, 12)
    metric = lambda outputs, original: outputs.argmax(1) == original.argmax(1)  # noqa: E731
    result = accelerate(module, images(), metric=metric, calibration=batches(), example=one)
    assert (result.precision, calls) == ("int8", [32, 32])
    assert close(result.module(one), result.module(torch.cat([one, one]))[:1])


def disturbed_rounds(times: int, speed: float) -> Callable[..., np.ndarray]:
    """As `fake_rounds`, but in the first `times` last timings the baseline's second time is half or twice its first."""
    done = []

    def measure(functions: Sequence[Callable[[], object]], *rest: Any, num_rounds: int, **options: Any) -> np.ndarray:
        found = fake_rounds(functions, *rest, num_rounds=num_rounds, **options)
        if num_rounds > timing_module.FIRST_ROUNDS and len(done) < times:
            done.append(num_rounds)
            found[:, 1] = found[:, 0] / speed
            found[::2, 2] *= 2
            found[1::2, 2] /= 2
        return found

    return measure


@pytest.mark.parametrize(
    ("times", "speed", "status", "warned"),
    [
        # once more, and now it is quiet
        (1, 1.5, "accelerated", False),
        # twice disturbed: twice as fast is not more than the baseline differs from itself, ten times is
        (2, 1.5, "noisy", False),
        (2, 10.0, "accelerated", True),
    ],
)
@pytest.mark.usefixtures("without_int8")
def test_a_disturbed_timing_is_repeated_and_decides_only_what_is_beyond_doubt(
    times: int, speed: float, status: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_module, "rounds", disturbed_rounds(times, speed))
    result = accelerate(made(Net), images(), metric=exact)
    assert result.status == status
    assert any("the machine was busy during the timing" in warning for warning in result.warnings) == warned


@pytest.mark.usefixtures("without_int8")
def test_rounds_that_were_cut_short_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(functions: Sequence[Callable[[], object]], *rest: Any, num_rounds: int, **options: Any) -> np.ndarray:
        found = fake_rounds(functions, *rest, num_rounds=num_rounds, **options)
        if num_rounds == timing_module.FIRST_ROUNDS:
            return found
        # two rounds, of which no interval is of use
        return found[:2] * np.array([[1, 1.5, 1], [1, 0.9, 1]])

    monkeypatch.setattr(timing_module, "rounds", cut)
    result = accelerate(made(Net), images(), metric=exact)
    assert (result.status, result.accelerated) == ("undecided", False)
    assert "not faster for sure after 2 of 11 rounds, which were all that fitted" in result.reason


def test_as_many_finalists_are_judged_as_can_be_proven_in_the_time() -> None:
    # an original of 2 ms a sample, 100 samples: 0.3, 0.5 and 0.8 s for one, two and three finalists
    counts = [num_affordable([1, 2, 3], 2, samples=100, seconds=seconds) for seconds in (0.1, 0.3, 0.6, 0.8, math.inf)]
    assert counts == [1, 1, 2, 3, 3]
    assert num_affordable([], 2, samples=100, seconds=0.1) == 0
    # half as many again as where no score changes
    assert [samples_needed(max_drop) for max_drop in (0.05, 0.01, 0.005)] == [88, 448, 897]


def test_finalists_for_which_the_time_is_too_short_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module.proof, "num_affordable", lambda finalists, *_, **__: 1)
    module = made(Net)
    result = accelerate(
        module, labelled(module, images()), metric=lambda outputs, targets: outputs.argmax(1) == targets
    )
    outcomes = {candidate.name: candidate.reason for candidate in result.candidates}
    assert "not judged: out of time for more than 1" in outcomes.values()
    assert sorted(outcomes.values())[0] == "accelerated"


def test_what_can_hardly_be_faster_is_left_untried_in_one_line() -> None:
    module = made(Net)
    data = labelled(module, images())
    said: list[str] = []
    result = vivace.accelerate(module, data, max_drop=5.0, on_message=said.append)
    reasons = {candidate.name: candidate.reason for candidate in result.candidates}
    why = "openvino int8 is 4.0 times as fast as the module"
    assert reasons["eager bf16"] == f"not tried: {why}"
    more = "and they are hardly ever faster by more than 10 %. `thorough=True` tries them"
    assert [line for line in said if "hardly" in line] == [f"not tried: eager bf16: {why}, {more}"]
    assert (result.precision, result.num_certify_samples) == ("int8", 224)
    thorough = accelerate(module, data, thorough=True)
    reasons = {candidate.name: candidate.reason for candidate in thorough.candidates}
    assert (thorough.precision, reasons["eager bf16"][:11]) == ("int8", "not faster:")
    # int8 loses too much, and float32 may be slower than what the compiler makes
    result = accelerate(module, images(), metric=exact)
    assert {one.name: one.reason[:11] for one in result.candidates}["eager bf16"] == "not faster:"


def test_an_early_end_that_proved_nothing_in_less_than_float32_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(search_module.Building, "compiled", lambda *_: asked.append("compiled") or [])
    module = made(Net)
    accelerate(module, labelled(module, images()))
    assert not asked
    monkeypatch.setattr(search_module.proof, "certified_in_order", lambda losses, max_drop: 1)
    result = accelerate(module, labelled(module, images()))
    assert (result.precision, result.accelerated) == ("fp32", True)
    assert any("what was not tried may be faster. Give `thorough=True`" in warning for warning in result.warnings)
    # its speed-up is over the compiled module, if that can be built in time
    assert asked == ["compiled"]


class Reused(Net):
    def forward(self, images: Tensor) -> Tensor:
        # its own memory, which the next call writes to
        if not hasattr(self, "answers"):
            self.answers = torch.empty(0)
        self.answers.resize_(len(images), 4).copy_(self.body(images))
        return self.answers


def test_outputs_that_the_next_call_overwrites_are_compared_with_their_own_batch() -> None:
    result = accelerate(made(Reused), images(), metric=exact, thorough=True)
    reasons = {candidate.name: candidate for candidate in result.candidates}
    assert (result.precision, result.drop, reasons["openvino fp32"].drop) == ("fp32", 0, 0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(steps)[0])[0][:, -1])


@pytest.mark.usefixtures("without_int8")
def test_recurrent_layers_are_traced_as_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*_: Any) -> Any:
        raise AssertionError("exported: an operator for each step")

    monkeypatch.setattr(openvino_module, "_exported", exported)
    module = made(Recurrent)
    generator = torch.Generator().manual_seed(0)
    steps = list(torch.randn(320, 7, 6, generator=generator).split(32))
    result = accelerate(module, steps, metric=exact)
    assert (result.runtime, result.precision) == ("openvino", "fp32")
    for batch in (steps[0], steps[0][:5], steps[0][:1]):
        assert result.module.try_fast((batch,), {}) is not None
        assert close(result.module(batch), module(batch))


def test_a_proof_of_too_few_samples_says_how_many_are_needed() -> None:
    right = np.ones(42, dtype=np.float32)
    few = loss_of(Scored(before=[right], after=[right]))
    assert unproven(few, 0.01).endswith("1 are allowed (42 samples, 0.00 points lost; about 448 are needed)")
    # enough samples, but too much is lost: more of them would not help
    right = np.ones(1000, dtype=np.float32)
    wrong = np.concatenate([np.zeros(100, dtype=np.float32), right[100:]])
    assert unproven(loss_of(Scored(before=[right], after=[wrong])), 0.01).endswith("(1,000 samples, 10.00 points lost)")
