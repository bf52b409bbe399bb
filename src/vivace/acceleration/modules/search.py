"""The search for a faster program of a module: the order of its steps, within the time budget.

1. Check that the module can be replaced: its outputs are not random, and it changes nothing.
2. Build the candidates, the quick ones first; compare their outputs with the original's on the example and on other
   batches, and time them beside the module as it is.
3. Score those that are faster than the baseline on the samples to choose on. int8 with zero points, and then with some
   layers in float, is only built where int8 loses too much there. With `train`, smaller networks are trained before
   (`replacing`), and their candidates built too.
4. Prove the finalists on the other samples, each batch once, in an order that was fixed before.
5. Time the proven ones against the baseline, and that against itself (A/A); the fastest wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.acceleration.modules import proof
from vivace.acceleration.modules.batches import MAX_SAMPLES, Batch, batch_of, open_sides
from vivace.acceleration.modules.building import Building
from vivace.acceleration.modules.classifiers import ImageClassifier, NotAClassifier, classifier_of
from vivace.acceleration.modules.metric_checks import check_metric
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.reading import opened
from vivace.acceleration.modules.replacing import OWN_SHARE, Replacing, plain_candidate
from vivace.acceleration.modules.result import CandidateResult
from vivace.acceleration.modules.saving import Saveable
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.timing import FINAL_ROUNDS, judge, per_call_ms
from vivace.acceleration.modules.trials import BUILD_SHARE, Entry, Trials
from vivace.acceleration.results import Verdict
from vivace.errors import DataError, VivaceError
from vivace.measure import TimeUp
from vivace.runtimes.table import PRECISIONS

__all__ = ["ModuleSearch"]

# fractions of the time budget that have passed when reading what to choose on ends, and when choosing does
READ_SHARE, SELECT_SHARE = 0.2, 0.7
# the latter where smaller networks are trained
STUDENTS_SELECT_SHARE = 0.85
# of what is left after choosing, for the last timing
FINAL_SHARE = 0.3
MAX_FINALISTS = 4
# samples that a result keeps, to compare a saved bundle on
NUM_KEPT = 64


class ModuleSearch:
    """One search: its winner and verdict, what became of each candidate, and what else is to be said, in `warnings`."""

    def __init__(
        self, subject: Subject, data: Any, options: ModuleOptions, budget: Budget, tell: Callable[[str], None]
    ) -> None:
        """Reads the first batch. Raises DataError and ConfigError."""
        self._subject, self._budget, self._tell = subject, budget, tell
        self._max_drop = options.max_drop / 100
        self._seconds = budget.seconds or float("inf")
        self.warnings = subject.notes
        self.winner: Entry | None = None
        self.verdict = Verdict.UNDECIDED
        self.baseline_ms = float("nan")
        self._compiled_is_known = False
        self._classifier: ImageClassifier | None = None
        self._no_classifier = ""
        self._replacing: Replacing | None = None
        self._trials: Trials | None = None
        self._batches, self._options = opened(
            data, options, subject, stop=lambda: budget.elapsed() > READ_SHARE * self._seconds
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
        self.warnings += check_metric(self.scorer, original, first)
        self.scorer.by_batch |= self._subject.mixes_samples(first, original)
        if self.scorer.guessed:
            self.warnings.append("the data have no targets: what is kept is agreement with the original")
        select, certify = self._batches.deal(self._accepts)
        first_certify = next(certify, None)
        if first_certify is None:
            raise DataError("the data hold too few samples to prove anything. Give more batches.")
        try:
            sides = open_sides([first, *select, first_certify], any_size=False)
            self._classifier = classifier_of(first, sides, original)
        except NotAClassifier as error:
            self._no_classifier = str(error)
        trains = self._options.train is not None
        self._trials = trials = Trials(
            *(self._subject, self._example, expected, select, first_certify),
            *(self._options, self._budget, self._tell),
            share=OWN_SHARE if trains else BUILD_SHARE,
        )
        share = STUDENTS_SELECT_SHARE if trains else SELECT_SHARE
        self._building = Building(self._subject, self.scorer, select, self._options, self._budget, share)
        entries = self._building.build(trials)
        self._building.baseline = self._baseline(trials, entries)
        if trains:
            entries += self._students(trials, entries, [*select, first_certify])
        finalists = self._select(trials, self._faster(trials, entries), sum(batch.num_counted for batch in select))
        certified = self._certify(trials, finalists, itertools.chain([first_certify], certify))
        if self._building.untried and all(entry.candidate.precision == PRECISIONS[0] for entry in certified):
            self.warnings.append(
                "nothing in less than float32 was proven: what was not tried may be faster. Give `thorough=True`"
            )
            # of float32 a compiler may make as much
            self._building.baseline = self._baseline(trials, self._building.compiled(trials) if certified else [])
        self._time(trials, certified)
        if not self._compiled_is_known:
            self.warnings.append("the baseline is the module as it is: torch.compile was not timed, see the candidates")
        self._say_what_was_read()

    def _students(self, trials: Trials, own: Sequence[Entry], others: Sequence[Batch]) -> list[Entry]:
        """The candidates of smaller networks that are trained here. others: batches that they may not be trained on."""
        building = self._building
        try:
            if self._classifier is None:
                raise VivaceError(f"only image classifiers are distilled; {self._no_classifier}")
            if not trials.takes_any_size:
                raise VivaceError("it takes one batch size alone")
            self._replacing = replacing = Replacing(
                self._subject, self._classifier, self._batches.first, self._budget, self._tell
            )
        except VivaceError as error:
            self.warnings.append(f"`train` is not used: {error}")
            return []
        entries: list[Entry] = []

        def keeps(trials: Trials, name: str) -> bool:
            entry = trials.try_one(plain_candidate(name))
            if entry is None:
                return False
            building.score([entry])
            entries.append(entry)
            return not building.loses_too_much(entry)

        found = replacing.train(self._options.train or (), trials, own, others, keeps)
        return entries + [entry for name, made in found for entry in building.build(made, name)]

    def saveable(self) -> Saveable:
        """What it takes to save the result, after `run`."""
        first = self._batches.first
        network: nn.Module = self._subject.module
        if self._replacing is not None and self.winner is not None:
            network = self._replacing.networks.get(self.winner.candidate.network, network)
        return Saveable(
            network=network,
            answers=self._subject.module if self.winner is None else self.winner.module,
            batch=first.part(0, min(first.size, NUM_KEPT)) or first,
            classifier=self._classifier,
            why_not=self._no_classifier,
        )

    def _accepts(self, batch: Batch) -> bool:
        """Whether the module takes a batch of this size."""
        try:
            self._subject.outputs(batch)
        except Exception:
            return False
        return True

    def _baseline(self, trials: Trials, entries: list[Entry]) -> Entry | None:
        """The module compiled in float32 where that is faster than as it is; None: as it is. Not in `entries` then."""
        self.baseline_ms = trials.plain_ms
        compiled = next((entry for entry in entries if entry.candidate.variant.is_baseline), None)
        if compiled is None:
            return None
        self._compiled_is_known = True
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
            if self._building.speed(entry) > 1:
                found.append(entry)
            else:
                self._building.rule_out(
                    trials, entry, f"not faster: {self._building.speed(entry):.2f} times as fast as the baseline"
                )
        return found

    def _select(self, trials: Trials, entries: Sequence[Entry], num_select: int) -> list[Entry]:
        """The finalists, in the order in which they are judged: those with the smallest bound first.

        Out is what loses too much on the samples to choose on, and what is not faster than something with less risk.
        """
        self._tell(f"comparing {len(entries)} candidates on {num_select:,} samples")
        self._building.score(entries)
        found: list[Entry] = []
        for entry in sorted(entries, key=lambda entry: (entry.candidate.risk, -entry.times_faster)):
            better = next((other for other in found if other.times_faster * decide.SLACK >= entry.times_faster), None)
            if entry.failure is not None:
                self._building.rule_out(trials, entry, f"failed: {entry.failure}")
            elif entry.selected is not None and self._building.loses_too_much(entry):
                lost = 100 * entry.selected.drop
                self._building.rule_out(trials, entry, f"loses {lost:.2f} points on the samples to choose on")
            elif better is not None:
                self._building.rule_out(trials, entry, f"not faster than {better.name}, which has less risk")
            else:
                found.append(entry)
        found.sort(key=lambda entry: -entry.times_faster)
        for entry in found[MAX_FINALISTS:]:
            self._building.rule_out(trials, entry, f"slower than {found[0].name}")
        return sorted(
            found[:MAX_FINALISTS],
            key=lambda entry: (1.0 if entry.selected is None else entry.selected.bound, entry.candidate.risk),
        )

    def _certify(self, trials: Trials, finalists: Sequence[Entry], certify: Iterator[Batch]) -> list[Entry]:
        """Those that are proven to lose at most the budget."""
        if not finalists:
            return []
        # for timing one of them afterwards, but most is for the proof
        reserved = min(trials.timer.final_seconds(self.baseline_ms), FINAL_SHARE * self._budget.seconds_left())
        count = proof.num_affordable(
            [entry.ms / self._example.size for entry in finalists],
            trials.plain_ms / self._example.size,
            samples=proof.samples_needed(self._max_drop),
            seconds=self._budget.seconds_left() - reserved,
        )
        for entry in finalists[count:]:
            trials.out_of_time = True
            self._building.rule_out(trials, entry, f"not judged: out of time for more than {count}")
        finalists = finalists[:count]
        self._tell(f"proving {', '.join(entry.name for entry in finalists)}")
        found, num_read = proof.score(
            [entry.module for entry in finalists],
            certify if self._replacing is None else self._replacing.disjoint(certify),
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
                self._building.rule_out(trials, entry, f"failed: {scored.failure}")
            elif not scored.num_samples:
                self._building.rule_out(trials, entry, "no proof: it takes none of the batches to prove on")
            else:
                entry.certified = proof.loss_of(scored)
                losses.append(entry.certified)
                judged.append(entry)
        proven = proof.certified_in_order(losses, self._max_drop)
        for place, (entry, loss) in enumerate(list(zip(judged, losses, strict=True))[proven:]):
            reason = f"not judged: {judged[proven].name} before it was not proven"
            if not place:
                reason = proof.unproven(loss, self._max_drop)
            self._building.rule_out(trials, entry, reason)
        return judged[:proven]

    def _time(self, trials: Trials, certified: Sequence[Entry]) -> None:
        """Time what is proven against the baseline, the fastest first, until one is faster for sure."""
        baseline = trials.plain if self._building.baseline is None else trials.call_of(self._building.baseline.module)
        self.verdict = Verdict.UNDECIDED if trials.out_of_time and not certified else Verdict.NOTHING_FASTER
        for entry in sorted(certified, key=lambda entry: -entry.times_faster):
            if self.winner is not None:
                self._building.rule_out(trials, entry, f"proven, and slower than {self.winner.name}")
                continue
            self._tell(f"timing {entry.name}")
            try:
                times = trials.timer.final(baseline, trials.call_of(entry.module), expected=self._building.speed(entry))
            except TimeUp:
                self.verdict = Verdict.UNDECIDED
                self._building.rule_out(trials, entry, "proven, and not timed: out of time")
                continue
            self._judge_speed(trials, entry, times)

    def _judge_speed(self, trials: Trials, entry: Entry, times: np.ndarray) -> None:
        """Make an entry the winner, or say why it is none."""
        self.baseline_ms, entry.ms = per_call_ms(times, 0), per_call_ms(times, 1)
        judged = judge(times)
        entry.ratio = judged.ratio
        if judged.is_faster:
            self.winner, self.verdict = entry, Verdict.ACCELERATED
            self._building.rule_out(trials, entry, "accelerated")
            if judged.is_noisy:
                _, low, high = judged.aa_test
                self.warnings.append(
                    f"the machine was busy during the timing: the baseline took {low:.2f} to {high:.2f} times as long "
                    "as itself. The candidate is faster by more than that, the speed-up itself is a rough figure"
                )
        elif judged.is_noisy:
            self.verdict = Verdict.NOISY
            self._building.rule_out(trials, entry, "proven, and the timing was too noisy to decide")
        elif len(times) < FINAL_ROUNDS:
            self.verdict = Verdict.UNDECIDED
            seen = f"after {len(times)} of {FINAL_ROUNDS} rounds"
            self._building.rule_out(
                trials, entry, f"proven, and not faster for sure {seen}, which were all that fitted"
            )
        else:
            self._building.rule_out(trials, entry, f"proven, and not faster for sure: {entry.ratio[0]:.2f} times")

    def _say_what_was_read(self) -> None:
        self.warnings += self._batches.notices()
        if self._replacing is not None and self._replacing.num_left_out:
            left_out = self._replacing.num_left_out
            self.warnings.append(f"{left_out} batches hold images of `train`: nothing is proven on them")
