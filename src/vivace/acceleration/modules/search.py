"""The search for a faster program of a module: the order of its steps, within the time budget.

1. Check that the module can be replaced: its outputs are not random, and it changes nothing.
2. Build the candidates, the quick ones first; compare their outputs with the original's on the example and on other
   batches, and time them beside the module as it is.
3. Score those that are faster than the baseline on the samples to choose on. int8 with zero points, and then with some
   layers in float, is only built where int8 loses too much there.
4. Prove the finalists on the other samples, each batch once, in an order that was fixed before.
5. Time the proven ones against the baseline, and that against itself (A/A); the fastest wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.acceleration.modules.batches import MAX_SAMPLES, Batch, Batches, batch_of
from vivace.acceleration.modules.candidates import candidates_for
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.proof import certified_in_order, loss_of, num_affordable, samples_needed, score
from vivace.acceleration.modules.result import CandidateResult
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.timing import judge, per_call_ms
from vivace.acceleration.modules.trials import FINAL_ROUNDS, Entry, Trials
from vivace.acceleration.results import Verdict
from vivace.errors import DataError
from vivace.measure import TimeUp
from vivace.runtimes.table import is_quantized

__all__ = ["ModuleSearch"]

# fractions of the time budget that have passed when reading what to choose on ends, and when choosing does
READ_SHARE, SELECT_SHARE = 0.2, 0.7
# of what is left after choosing, for the last timing
FINAL_SHARE = 0.3
MAX_FINALISTS = 4


class ModuleSearch:
    """One search: its winner and verdict, what became of each candidate, and what else is to be said, in `warnings`."""

    def __init__(
        self, subject: Subject, data: Any, options: ModuleOptions, budget: Budget, tell: Callable[[str], None]
    ) -> None:
        """Reads the first batch. Raises DataError and ConfigError."""
        self._subject, self._options, self._budget, self._tell = subject, options, budget, tell
        self._max_drop = options.max_drop / 100
        self._seconds = budget.seconds or float("inf")
        self.warnings = list(subject.notes)
        self.winner: Entry | None = None
        self.verdict = Verdict.UNDECIDED
        self.baseline_ms = float("nan")
        self._compiled: Entry | None = None
        self._trials: Trials | None = None
        self._batches = Batches(
            data, subject.signature, subject.device, stop=lambda: budget.elapsed() > READ_SHARE * self._seconds
        )
        self.scorer = Scorer(options.metric, has_targets=self._batches.first.targets is not None)
        self._example = self._batches.first
        if options.example is not None:
            self._example = batch_of((options.example, None), subject.signature, subject.device)

    @property
    def outcomes(self) -> list[CandidateResult]:
        """What became of each candidate."""
        return [] if self._trials is None else list(self._trials.outcomes.values())

    def run(self) -> None:
        """Search. Raises Unsupported for a module that can't be replaced, ModelError and DataError for wrong input."""
        first = self._batches.first
        self._tell("checking the module on the first batch")
        # first of all: a module that changes its inputs must not get those of the user
        expected = self._subject.check(self._example)
        original = self._subject.outputs(first)
        self.scorer.scores(original, first, original)
        if self.scorer.guessed:
            self.warnings.append("the data have no targets: what is kept is agreement with the original")
        select, certify = self._batches.deal(self._accepts)
        first_certify = next(certify, None)
        if first_certify is None:
            raise DataError("the data hold too few samples to prove anything. Give more batches.")
        self._trials = trials = Trials(
            *(self._subject, self._example, expected, select, first_certify),
            *(self._options, self._budget, self._tell),
        )
        entries = self._build(trials, select)
        self._compiled = self._baseline(trials, entries)
        finalists = self._select(trials, self._faster(trials, entries), select)
        certified = self._certify(trials, finalists, itertools.chain([first_certify], certify))
        self._time(trials, certified)
        self._say_what_was_read()

    def _accepts(self, batch: Batch) -> bool:
        """Whether the module takes a batch of this size."""
        try:
            self._subject.outputs(batch)
        except Exception:
            return False
        return True

    def _build(self, trials: Trials, select: Sequence[Batch]) -> list[Entry]:
        """The candidates that could be built and timed."""
        candidates, missing = candidates_for(self._subject.device)
        for name, reason in missing.items():
            trials.rule_out(name, f"not tried: {reason}")
        entries: list[Entry] = []
        for candidate in candidates:
            int8 = [entry for entry in entries if is_quantized(entry.candidate.precision)]
            if candidate.variant.asymmetric and not self._all_lose(int8, select):
                trials.rule_out(candidate.name, "not tried: for where int8 without zero points loses too much")
            elif (entry := trials.try_one(candidate)) is not None:
                entries.append(entry)
        return entries + self._reverted(trials, entries, select)

    def _reverted(self, trials: Trials, entries: Sequence[Entry], select: Sequence[Batch]) -> list[Entry]:
        """If all int8 lose too much, the one that loses least with as few layers in float as are enough, if any are.

        Nothing is tried if something without int8 is as fast.
        """
        int8 = [entry for entry in entries if is_quantized(entry.candidate.precision)]
        if not self._all_lose(int8, select):
            return []
        scored = [entry for entry in int8 if entry.selected is not None and entry.failure is None]
        fastest = max((entry.times_faster for entry in entries if entry not in int8), default=1.0)
        best = min(scored, key=lambda entry: entry.selected.drop if entry.selected else 1.0, default=None)
        if best is None or best.times_faster <= fastest * decide.SLACK:
            return []
        for entry in trials.with_float_layers(best):
            if entry.times_faster <= fastest * decide.SLACK:
                self._rule_out(trials, entry, "not faster than something without int8")
                return []
            self._score([entry], select)
            if not self._loses_too_much(entry):
                return [entry]
            lost = "it failed" if entry.selected is None else f"loses {100 * entry.selected.drop:.2f} points"
            self._rule_out(trials, entry, f"{lost} on the samples to choose on")
        return []

    def _all_lose(self, entries: Sequence[Entry], select: Sequence[Batch]) -> bool:
        self._score(entries, select)
        return bool(entries) and all(map(self._loses_too_much, entries))

    def _loses_too_much(self, entry: Entry) -> bool:
        return entry.failure is not None or (entry.selected is not None and entry.selected.drop > self._max_drop)

    def _score(self, entries: Sequence[Entry], select: Sequence[Batch]) -> None:
        """Score those on the samples to choose on that have no score yet."""
        waiting = [entry for entry in entries if entry.selected is None and entry.failure is None]
        if not waiting:
            return
        found, _ = score(
            [entry.module for entry in waiting],
            select,
            self._subject,
            self.scorer,
            max_samples=MAX_SAMPLES,
            stop=lambda: self._budget.elapsed() > SELECT_SHARE * self._seconds,
        )
        for entry, scored in zip(waiting, found, strict=True):
            entry.failure = scored.failure
            entry.selected = loss_of(scored) if scored.num_samples and scored.failure is None else None

    def _rule_out(self, trials: Trials, entry: Entry, reason: str) -> None:
        trials.rule_out(entry.name, reason, speedup=self._speed(entry), selected=entry.selected)

    def _speed(self, entry: Entry) -> float:
        """Relative to the baseline."""
        return entry.times_faster / (1.0 if self._compiled is None else self._compiled.times_faster)

    def _baseline(self, trials: Trials, entries: list[Entry]) -> Entry | None:
        """The module compiled in float32 where that is faster than as it is; None: as it is. Not in `entries` then."""
        self.baseline_ms = trials.plain_ms
        compiled = next((entry for entry in entries if entry.candidate.variant.is_baseline), None)
        if compiled is None:
            self.warnings.append("the baseline is the module as it is: torch.compile was not timed, see the candidates")
            return None
        entries.remove(compiled)
        if compiled.times_faster <= 1:
            trials.rule_out(compiled.name, "slower than the module as it is, which is the baseline")
            return None
        self.baseline_ms = compiled.ms
        times = f"{compiled.times_faster:.2f} times as fast as the module as it is"
        trials.rule_out(compiled.name, f"the baseline: {times}", speedup=1.0)
        return compiled

    def _faster(self, trials: Trials, entries: Sequence[Entry]) -> list[Entry]:
        """Those that are faster than the baseline."""
        found = []
        for entry in entries:
            if self._speed(entry) > 1:
                found.append(entry)
            else:
                self._rule_out(trials, entry, f"not faster: {self._speed(entry):.2f} times as fast as the baseline")
        return found

    def _select(self, trials: Trials, entries: Sequence[Entry], select: Sequence[Batch]) -> list[Entry]:
        """The finalists, in the order in which they are judged: those with the smallest bound first.

        Out is what loses too much on the samples to choose on, and what is not faster than something with less risk.
        """
        self._tell(f"comparing {len(entries)} candidates on {sum(batch.size for batch in select):,} samples")
        self._score(entries, select)
        found: list[Entry] = []
        for entry in sorted(entries, key=lambda entry: (entry.candidate.risk, -entry.times_faster)):
            better = next((other for other in found if other.times_faster * decide.SLACK >= entry.times_faster), None)
            if entry.failure is not None:
                self._rule_out(trials, entry, f"failed: {entry.failure}")
            elif entry.selected is not None and self._loses_too_much(entry):
                lost = 100 * entry.selected.drop
                self._rule_out(trials, entry, f"loses {lost:.2f} points on the samples to choose on")
            elif better is not None:
                self._rule_out(trials, entry, f"not faster than {better.name}, which has less risk")
            else:
                found.append(entry)
        found.sort(key=lambda entry: -entry.times_faster)
        for entry in found[MAX_FINALISTS:]:
            self._rule_out(trials, entry, f"slower than {found[0].name}")
        return sorted(
            found[:MAX_FINALISTS],
            key=lambda entry: (1.0 if entry.selected is None else entry.selected.bound, entry.candidate.risk),
        )

    def _certify(self, trials: Trials, finalists: Sequence[Entry], certify: Iterator[Batch]) -> list[Entry]:
        """Those that are proven to lose at most the budget."""
        if not finalists:
            return []
        # for timing one of them afterwards, but most is for the proof
        reserved = min(trials.final_seconds(self.baseline_ms), FINAL_SHARE * self._budget.seconds_left())
        count = num_affordable(
            [entry.ms / self._example.size for entry in finalists],
            trials.plain_ms / self._example.size,
            samples=samples_needed(self._max_drop),
            seconds=self._budget.seconds_left() - reserved,
        )
        for entry in finalists[count:]:
            trials.out_of_time = True
            self._rule_out(trials, entry, f"not judged: out of time for more than {count}")
        finalists = finalists[:count]
        self._tell(f"proving {', '.join(entry.name for entry in finalists)}")
        found, num_read = score(
            [entry.module for entry in finalists],
            certify,
            self._subject,
            self.scorer,
            max_samples=MAX_SAMPLES,
            stop=lambda: self._budget.seconds_left() <= reserved,
        )
        if next(certify, None) is not None:
            self.warnings.append(f"the proof uses the first {num_read:,} samples for it: more would not fit")
            trials.out_of_time |= num_read < MAX_SAMPLES
        losses, judged = [], []
        for entry, scored in zip(finalists, found, strict=True):
            if scored.failure is not None:
                self._rule_out(trials, entry, f"failed: {scored.failure}")
            elif not scored.num_samples:
                self._rule_out(trials, entry, "no proof: it takes none of the batches to prove on")
            else:
                entry.certified = loss_of(scored)
                losses.append(entry.certified)
                judged.append(entry)
        proven = certified_in_order(losses, self._max_drop)
        for place, (entry, loss) in enumerate(list(zip(judged, losses, strict=True))[proven:]):
            reason = f"not judged: {judged[proven].name} before it was not proven"
            if not place:
                bound = f"it may lose {100 * loss.bound:.2f} points, {self._options.max_drop:g} are allowed"
                reason = f"not proven: {bound} ({loss.num_samples:,} samples, {100 * loss.drop:.2f} points lost)"
            self._rule_out(trials, entry, reason)
        return judged[:proven]

    def _time(self, trials: Trials, certified: Sequence[Entry]) -> None:
        """Time what is proven against the baseline, the fastest first, until one is faster for sure."""
        baseline = trials.plain if self._compiled is None else trials.call_of(self._compiled.module)
        self.verdict = Verdict.UNDECIDED if trials.out_of_time and not certified else Verdict.NOTHING_FASTER
        for entry in sorted(certified, key=lambda entry: -entry.times_faster):
            if self.winner is not None:
                self._rule_out(trials, entry, f"proven, and slower than {self.winner.name}")
                continue
            self._tell(f"timing {entry.name}")
            try:
                times = self._final_times(trials, [baseline, trials.call_of(entry.module), baseline])
            except TimeUp:
                self.verdict = Verdict.UNDECIDED
                self._rule_out(trials, entry, "proven, and not timed: out of time")
                continue
            self._judge_speed(trials, entry, times)

    def _final_times(self, trials: Trials, functions: Sequence[Callable[[], object]]) -> np.ndarray:
        """Times of the functions; once more if the baseline differed too much from itself and the time allows it."""
        times = trials.timed(functions, final=True)
        seconds = trials.final_seconds(per_call_ms(times, 0))
        if not judge(times).is_noisy or self._budget.seconds_left() < seconds:
            return times
        self._tell("the machine was busy with something else: timing once more")
        return trials.timed(functions, final=True)

    def _judge_speed(self, trials: Trials, entry: Entry, times: np.ndarray) -> None:
        """Make an entry the winner, or say why it is none."""
        self.baseline_ms, entry.ms = per_call_ms(times, 0), per_call_ms(times, 1)
        judged = judge(times)
        entry.ratio = judged.ratio
        if judged.is_faster:
            self.winner, self.verdict = entry, Verdict.ACCELERATED
            self._rule_out(trials, entry, "accelerated")
            if judged.is_noisy:
                _, low, high = judged.aa_test
                self.warnings.append(
                    f"the machine was busy during the timing: the baseline took {low:.2f} to {high:.2f} times as long "
                    "as itself. The candidate is faster by more than that, the speed-up itself is a rough figure"
                )
        elif judged.is_noisy:
            self.verdict = Verdict.NOISY
            self._rule_out(trials, entry, "proven, and the timing was too noisy to decide")
        elif len(times) < FINAL_ROUNDS:
            self.verdict = Verdict.UNDECIDED
            seen = f"after {len(times)} of {FINAL_ROUNDS} rounds"
            self._rule_out(trials, entry, f"proven, and not faster for sure {seen}, which were all that fitted")
        else:
            self._rule_out(trials, entry, f"proven, and not faster for sure: {entry.ratio[0]:.2f} times")

    def _say_what_was_read(self) -> None:
        if self._batches.repeated:
            self.warnings.append(f"{self._batches.repeated} batches were there before: each counts once")
        if self._batches.one_shot:
            self.warnings.append("the data are an iterator, which was read once: it may be at its end now")
