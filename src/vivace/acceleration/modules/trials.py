"""Builds the candidates of a module, checks what they compute against the original, and times them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vivace.acceleration.budget import Budget
from vivace.acceleration.modules.batches import Batch, open_sides, shapes_of_call
from vivace.acceleration.modules.candidates import Care, ModuleCandidate, Workshop, difference, leaf_count
from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.reading import CALIBRATION_SAMPLES
from vivace.acceleration.modules.result import CandidateResult
from vivace.acceleration.modules.reverting import float_sets
from vivace.acceleration.modules.signature import Call, Structure, flatten
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.timing import Timer, per_call_ms
from vivace.errors import DataError, first_line, one_line
from vivace.measure import TimeUp
from vivace.runtimes.table import RUNTIMES, is_quantized
from vivace.statistics.bounded import ScoreLoss
from vivace.statistics.intervals import Ratio

__all__ = ["BUILD_SHARE", "Entry", "Trials"]

# fraction of the time budget for building
BUILD_SHARE = 0.6
# seconds that the first of a kind takes: others are estimated by it
FIRST_SECONDS = {"plain": 0.1, "graph": 1.0, "int8": 4.0, "compiler": 8.0}
# and for each module without parts
LAYER_SECONDS = {"plain": 0.0, "graph": 0.01, "int8": 0.05, "compiler": 0.15}


@dataclass(kw_only=True)
class Entry:
    """A candidate in the search, and what was measured of it."""

    candidate: ModuleCandidate
    module: AcceleratedModule
    ms: float
    """Of a call in the newest timing."""
    times_faster: float
    """Than the module as it is."""
    selected: ScoreLoss | None = None
    """On the samples to choose on."""
    failure: str | None = None
    """Why it could not be scored there."""
    certified: ScoreLoss | None = None
    ratio: Ratio | None = None
    """To the baseline, in the last timing."""

    @property
    def name(self) -> str:
        return self.candidate.name


class Trials:
    """Builds, checks and times candidates of one module. What became of each candidate is in `outcomes`."""

    def __init__(
        self,
        subject: Subject,
        example: Batch,
        expected: tuple[Structure, Sequence[Tensor]],
        select: Sequence[Batch],
        certify: Batch,
        options: ModuleOptions,
        budget: Budget,
        tell: Callable[[str], None],
        *,
        share: float = BUILD_SHARE,
    ) -> None:
        """example: its call is timed, and returns `expected`. certify: the first batch to prove on.

        share: fraction of the time budget that has passed when building ends.
        """
        self._share = share
        self._subject, self._example, self._expected = subject, example, expected
        self._select, self._options, self._budget, self._tell = select, options, budget, tell
        half = self._of_another_size()
        self._others = [batch for batch in (half, select[0], certify) if batch is not None]
        calls = [example.call]
        if shapes_of_call(certify) != shapes_of_call(example):
            calls.append(certify.call)
        # a module that takes one size alone must not be replaced for others
        sides = open_sides([example, *select, certify], any_size=half is not None)
        self._calls, self._sides = calls, sides
        self._workshop = Workshop(subject, calls, expected, sides, self._calibration)
        self.plain = self._plain()
        self.timer = Timer(subject.device, budget, tell)
        self.outcomes: dict[str, CandidateResult] = {}
        self.out_of_time = False
        self.plain_ms = float("nan")
        self._wrong: set[str] = set()

    @property
    def takes_any_size(self) -> bool:
        """Whether the module takes other batch sizes than the example's."""
        return 0 in self._sides[0]

    def of_replacement(self, subject: Subject, *, share: float) -> Trials:
        """Trials of another module that is called like this one: compared with itself, timed beside this one.

        What became of its candidates is in `outcomes` of both. share: as for this one. Raises ModelError and
        Unsupported for a module that fails, or can't be replaced itself.
        """
        other = copy.copy(self)
        other._subject, other._share, other._wrong = subject, share, set()
        structure, tensors = subject.check(self._example)
        other._expected = structure, tensors
        other._workshop = Workshop(
            subject, self._calls, other._expected, self._sides, self._calibration, replaced=self._subject
        )
        return other

    def try_all(self, candidates: Sequence[ModuleCandidate]) -> list[Entry]:
        """Those that can be built in time and compute what the module does, timed together."""
        built = [(candidate, self._built(candidate, self._workshop.build)) for candidate in candidates]
        return self._entries([(candidate, module) for candidate, module in built if module is not None])

    def try_one(self, candidate: ModuleCandidate) -> Entry | None:
        """One of them; None if it can't, or does not."""
        return next(iter(self.try_all([candidate])), None)

    def with_float_layers(self, entry: Entry) -> Iterator[Entry]:
        """An int8 entry with more and more of its layers in float, those first that bring most per millisecond."""
        name, candidate = f"{entry.name}, some layers in float", entry.candidate
        if RUNTIMES[candidate.runtime].layers is None or not self._fits("layers", 2 * FIRST_SECONDS["int8"]):
            return
        self._tell(f"ranking the layers of {entry.name}")
        try:
            with self._budget.measured("layers"):
                graph = self._workshop.int8_layers(candidate)
                sets = float_sets(
                    graph.layers(),
                    lambda layers: self._workshop.build(candidate, graph=graph.with_float_layers(layers)),
                    lambda module: self.call_of(module)(),
                    self._expected[1],
                    stop=lambda: not self._fits("layers", 0.0),
                )
        except Exception as error:
            self.rule_out(name, f"failed: {type(error).__name__}: {first_line(error)}")
            return
        for layers in sets:

            def build(candidate: ModuleCandidate) -> AcceleratedModule:
                return self._workshop.build(candidate, graph=graph.with_float_layers(candidate.float_layers))

            reverted = dataclasses.replace(candidate, float_layers=layers)
            module = self._built(reverted, build)
            yield from self._entries([] if module is None else [(reverted, module)])

    def _fits(self, kind: str, seconds: float) -> bool:
        """Whether work of a kind ends before the time for building does; seconds: what the first of it may take."""
        until = self._budget.started + self._share * (self._budget.seconds or float("inf"))
        return self._budget.fits(kind, seconds=seconds, until=until)

    def _built(
        self, candidate: ModuleCandidate, build: Callable[[ModuleCandidate], AcceleratedModule]
    ) -> AcceleratedModule | None:
        name, kind = candidate.name, candidate.kind
        seconds = FIRST_SECONDS[kind] + LAYER_SECONDS[kind] * leaf_count(self._subject.module)
        if is_quantized(candidate.precision) and candidate.runtime in self._wrong:
            self.rule_out(name, "not tried: its graph computes something else in float already")
            return None
        if not self._fits(f"{candidate.runtime} {kind}", seconds):
            self.out_of_time = True
            self.rule_out(name, "not tried: out of time")
            return None
        self._tell(f"building {name}")
        try:
            with self._budget.measured(f"{candidate.runtime} {kind}"):
                module = build(candidate)
                problem = self._problem(module, candidate)
                while problem is not None and self._takes_more_care(candidate):
                    module = build(candidate)
                    problem = self._problem(module, candidate)
            if problem is not None:
                self._wrong.add(candidate.runtime)
                self.rule_out(name, f"failed: {problem}")
                return None
        except Exception as error:
            # what a library raises rules out this candidate, not the search
            self.rule_out(name, f"failed: {type(error).__name__}: {first_line(error)}")
            return None
        return module

    def _entries(self, built: Sequence[tuple[ModuleCandidate, AcceleratedModule]]) -> list[Entry]:
        """Programs timed in the same rounds: what disturbs them disturbs all."""
        if not built:
            return []
        try:
            times = self.timer.first([self.plain, *(self.call_of(module) for _, module in built)])
        except TimeUp:
            self.out_of_time = True
            for candidate, _ in built:
                self.rule_out(candidate.name, "not timed: out of time")
            return []
        except Exception as error:
            if len(built) > 1:
                # it must not take the others along
                return [entry for one in built for entry in self._entries([one])]
            self.rule_out(built[0][0].name, f"failed: {type(error).__name__}: {first_line(error)}")
            return []
        self.plain_ms = per_call_ms(times, 0)
        return [
            Entry(
                candidate=candidate,
                module=module,
                ms=per_call_ms(times, place),
                times_faster=float(np.median(times[:, 0] / times[:, place])),
            )
            for place, (candidate, module) in enumerate(built, 1)
        ]

    def _takes_more_care(self, candidate: ModuleCandidate) -> bool:
        """Whether there is another way to make the candidate's graph, which is taken from now on."""
        care = self._workshop.care
        now = care.get(candidate.runtime, Care.USUAL)
        if RUNTIMES[candidate.runtime].takes_network or now is Care.CLOSED or candidate.float_layers:
            return False
        care[candidate.runtime] = Care(now + 1)
        return True

    def _of_another_size(self) -> Batch | None:
        """The example with half of its samples, or one sample twice: data of one size don't tell of others."""
        example = self._example
        if example.size > 1:
            half = example.part(0, example.size // 2)
        else:
            tensors, structure = example.call.flatten()
            twice = [torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor for tensor in tensors]
            half = Batch(Call.of(structure, twice), None, 2)
        try:
            if half is not None:
                self._subject.outputs(half)
        except Exception:
            # the module itself takes its own size alone
            return None
        return half

    def rule_out(
        self, name: str, reason: str, *, speedup: float | None = None, selected: ScoreLoss | None = None
    ) -> None:
        """Note what became of a candidate."""
        drop = None if selected is None else 100 * selected.drop
        self.outcomes[name] = CandidateResult(name=name, reason=one_line(reason), speedup=speedup, drop=drop)
        self._tell(f"{name}: {one_line(reason)}")

    def leave_out(self, names: Sequence[str], reason: str, more: str) -> None:
        """Note that candidates are not tried; say so, and more of it, in one line."""
        self.outcomes |= {name: CandidateResult(name=name, reason=f"not tried: {reason}") for name in names}
        self._tell(f"not tried: {', '.join(names)}: {reason}, {more}")

    def call_of(self, module: AcceleratedModule) -> Callable[[], object]:
        """A call of a drop-in with the example."""
        return partial(module, *self._example.call.args, **self._example.call.kwargs)

    def _problem(self, module: AcceleratedModule, candidate: ModuleCandidate) -> str | None:
        """Why what it computes is not what the original does; None if it is."""
        found = module.try_fast(self._example.call.args, self._example.call.kwargs)
        if found is None:
            return "it does not take the example"
        if (problem := difference(self._expected, found[0], candidate.precision)) is not None:
            return problem
        for batch in self._others:
            found = module.try_fast(batch.call.args, batch.call.kwargs)
            if found is None:
                continue
            tensors, structure = flatten(self._subject.outputs(batch))
            problem = difference((structure, tensors), found[0], candidate.precision)
            if problem is not None:
                return f"on a batch of {batch.size} {problem}"
        return None

    def _plain(self) -> Callable[[], object]:
        """A call of the module as it is."""
        call, run = self._example.call, self._subject.run

        def plain() -> object:
            with torch.inference_mode():
                return run(call)

        try:
            plain()
        except Exception:
            # some modules keep tensors, which this mode does not let them change
            return partial(run, call)
        return plain

    def _calibration(self) -> list[list[Tensor]]:
        """The tensors of calls alike the example, about CALIBRATION_SAMPLES samples of them."""
        _, structure = self._example.call.flatten()
        given, found, count = self._options.calibration, [], 0
        for batch in self._select if given is None else given:
            tensors, own = batch.call.flatten()
            if own == structure:
                found.append(tensors)
                count += batch.size
            if count >= CALIBRATION_SAMPLES:
                break
        if not found:
            raise DataError("no batch to calibrate on is called like the example")
        return found
