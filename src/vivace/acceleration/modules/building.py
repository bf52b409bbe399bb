"""Builds the candidates of a module or of a student, and scores them on the samples to choose on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.acceleration.modules.batches import MAX_SAMPLES, Batch
from vivace.acceleration.modules.candidates import ModuleCandidate, candidates_for
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.proof import loss_of, score
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.trials import Entry, Trials
from vivace.runtimes.table import PRECISIONS, RUNTIMES, is_quantized

__all__ = ["Building"]

# where a runtime that `leads` was in bf16 or int8 so many times as fast as the module, no other runtime was faster than
# it by as much as the other number, on 34 modules of benchmarks/module_zoo.py: docs/log/2026-11-29.md
ENOUGH, HARDLY = 1.5, 1.1


class Building:
    """The candidates of one search, before any of them is proven."""

    def __init__(
        self,
        subject: Subject,
        scorer: Scorer,
        select: Sequence[Batch],
        options: ModuleOptions,
        budget: Budget,
        share: float,
    ) -> None:
        """select: to choose on. share: of the time, when scoring ends."""
        self._subject, self._scorer, self._select, self._budget = subject, scorer, select, budget
        self._max_drop, self._thorough, self._share = options.max_drop / 100, options.thorough, share
        self.baseline: Entry | None = None
        """The module compiled in float32, where that is faster than as it is."""
        self.untried: list[ModuleCandidate] = []
        """What could hardly be faster."""

    def build(self, trials: Trials, network: str = "") -> list[Entry]:
        """The candidates that could be built and timed, of the module or of a student."""
        candidates, missing = candidates_for(self._subject.device)
        for name, reason in () if network else missing.items():
            trials.rule_out(name, f"not tried: {reason}")
        waiting = [dataclasses.replace(candidate, network=network) for candidate in candidates]
        entries: list[Entry] = []
        while waiting and not self._may_end(trials, entries, waiting):
            runtime = waiting[0].runtime
            group = [candidate for candidate in waiting if candidate.runtime == runtime]
            waiting = waiting[len(group) :]
            entries += trials.try_all([candidate for candidate in group if not candidate.variant.asymmetric])
            for candidate in group:
                if not candidate.variant.asymmetric:
                    continue
                if self._all_lose([entry for entry in entries if is_quantized(entry.candidate.precision)]):
                    entries += trials.try_all([candidate])
                else:
                    trials.rule_out(candidate.name, "not tried: for where int8 without zero points loses too much")
        return entries + self._reverted(trials, entries)

    def _may_end(self, trials: Trials, entries: Sequence[Entry], waiting: Sequence[ModuleCandidate]) -> bool:
        """Whether what was built keeps the budget on the samples to choose on, and the rest is hardly faster."""
        leading = [
            entry
            for entry in entries
            if RUNTIMES[entry.candidate.runtime].leads
            and entry.candidate.precision != PRECISIONS[0]
            and entry.times_faster >= ENOUGH
        ]
        if self._thorough or not leading:
            return False
        self.score(leading)
        kept = [entry for entry in leading if entry.selected is not None and not self.loses_too_much(entry)]
        best = max(kept, key=lambda entry: entry.times_faster, default=None)
        if best is None:
            return False
        trials.leave_out(
            [candidate.name for candidate in waiting],
            f"{best.name} is {best.times_faster:.1f} times as fast as the module",
            f"and they are hardly ever faster by more than {100 * (HARDLY - 1):.0f} %. `thorough=True` tries them",
        )
        self.untried += waiting
        return True

    def compiled(self, trials: Trials) -> list[Entry]:
        """The module compiled in float32, if it was left untried."""
        return trials.try_all([candidate for candidate in self.untried if candidate.variant.is_baseline])

    def _reverted(self, trials: Trials, entries: Sequence[Entry]) -> list[Entry]:
        """If all int8 lose too much, the one that loses least with as few layers in float as are enough, if any are.

        Nothing is tried if something without int8 is as fast.
        """
        int8 = [entry for entry in entries if is_quantized(entry.candidate.precision)]
        if not self._all_lose(int8):
            return []
        scored = [entry for entry in int8 if entry.selected is not None and entry.failure is None]
        fastest = max((entry.times_faster for entry in entries if entry not in int8), default=1.0)
        best = min(scored, key=lambda entry: entry.selected.drop if entry.selected else 1.0, default=None)
        if best is None or best.times_faster <= fastest * decide.SLACK:
            return []
        for entry in trials.with_float_layers(best):
            if entry.times_faster <= fastest * decide.SLACK:
                self.rule_out(trials, entry, "not faster than something without int8")
                return []
            self.score([entry])
            if not self.loses_too_much(entry):
                return [entry]
            lost = "it failed" if entry.selected is None else f"loses {100 * entry.selected.drop:.2f} points"
            self.rule_out(trials, entry, f"{lost} on the samples to choose on")
        return []

    def _all_lose(self, entries: Sequence[Entry]) -> bool:
        self.score(entries)
        return bool(entries) and all(map(self.loses_too_much, entries))

    def loses_too_much(self, entry: Entry) -> bool:
        """Whether it failed, or loses more than the budget on the samples to choose on."""
        return entry.failure is not None or (entry.selected is not None and entry.selected.drop > self._max_drop)

    def score(self, entries: Sequence[Entry]) -> None:
        """Score those on the samples to choose on that have no score yet."""
        waiting = [entry for entry in entries if entry.selected is None and entry.failure is None]
        if not waiting:
            return
        found, _ = score(
            [entry.module for entry in waiting],
            self._select,
            self._subject,
            self._scorer,
            max_samples=MAX_SAMPLES,
            stop=lambda: self._budget.elapsed() > self._share * (self._budget.seconds or float("inf")),
        )
        for entry, scored in zip(waiting, found, strict=True):
            entry.failure = scored.failure
            entry.selected = loss_of(scored) if scored.num_samples and scored.failure is None else None

    def rule_out(self, trials: Trials, entry: Entry, reason: str) -> None:
        """Note what became of an entry."""
        trials.rule_out(entry.name, reason, speedup=self.speed(entry), selected=entry.selected)

    def speed(self, entry: Entry) -> float:
        """Relative to the baseline."""
        return entry.times_faster / (1.0 if self.baseline is None else self.baseline.times_faster)
