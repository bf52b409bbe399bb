"""Smaller networks within a search: timed before they are trained, raced, and the best of them trained to the end.

Latency does not depend on the weights: a student that would not be faster is never trained. Of the others some are
chosen, each gets a quarter of its training; half of them, those that are most accurate on the images to select on, get
all of it (successive halving, arXiv:1502.07943). The teacher answers in a fast form, where that agrees with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.decide import lost_too_much
from vivace.acceleration.rows import Row
from vivace.acceleration.splits import Splits
from vivace.acceleration.students import RACE_SHARE, Student, patience, propose, train_student
from vivace.acceleration.variants import Variant, open_variant
from vivace.acceleration.workbench import Workbench
from vivace.acceleration.worker import WorkerDied
from vivace.bundle import Bundle
from vivace.data.place import AnyData
from vivace.errors import OutOfTime, TrainingError, first_line
from vivace.runtimes import load_runtime

__all__ = ["FastTeacher", "Smaller", "entrants", "survivors"]

# calibrated on so many images an untrained network takes as long as on more
NUM_CALIBRATE_UNTRAINED = 8
UNTRAINED = " untrained"
# shares of a given time that is left: the race, and training to the end; the rest is for forms, timing, certificates
RACE_TIME, FINAL_TIME = 0.2, 0.7
# and for building and for timing students before they are trained
SPEEDS_TIME = 0.15
# what computes half as much may be four times as fast, for a network's operations need not suit its runtime; students
# that would not be fast enough even so are not timed
HOPE = 2.0
# students that get a first look
MAX_RACED = 4
# a teacher's fast form gives its answer for so many of the images to select on, or the network in PyTorch teaches
LEAST_AGREEMENT = 0.97
# those that need no compiler in the process that trains
TEACHING = ("openvino", "onnx")
# a run of fewer seconds teaches nothing
LEAST_SECONDS = 10.0


def entrants(speeds: Mapping[str, float], *, least_speed: float, asked: bool) -> list[str]:
    """Names of those that are fast enough and get a first look, the slower first.

    asked: whether so much speed was asked for. Then the slowest that have it are taken, for more speed costs accuracy;
    otherwise some from the slowest to the fastest.
    """
    fast = sorted((name for name, speed in speeds.items() if speed > least_speed), key=lambda name: speeds[name])
    if asked or len(fast) <= MAX_RACED:
        return fast[:MAX_RACED]
    return [fast[round(i * (len(fast) - 1) / (MAX_RACED - 1))] for i in range(MAX_RACED)]


def survivors(
    speeds: Mapping[str, float], accuracies: Mapping[str, float], from_nothing: Collection[str] = ()
) -> list[str]:
    """Names that stay in the race, the most accurate first: half of those that no other of their kind beats in both
    respects, and of each kind the best.

    from_nothing: those that started from nothing. Early in their training they say little beside those that started
    from what the model knows.
    """

    def kind(name: str) -> bool:
        return name in from_nothing

    alone = [
        name
        for name in accuracies
        if not any(
            accuracies[other] >= accuracies[name] and speeds[other] > speeds[name]
            for other in accuracies
            if other != name and kind(other) == kind(name)
        )
    ]
    ranked = sorted(alone, key=lambda name: (-accuracies[name], -speeds[name]))
    # the first of its kind before others of a kind that is there
    best = {kind(name): name for name in reversed(ranked)}
    ranked.sort(key=lambda name: best[kind(name)] != name)
    return ranked[: max(1, -(-len(accuracies) // 2))]


@dataclass
class FastTeacher:
    """A faster form of the teacher, which is loaded when it first answers, in whatever process that is."""

    runtime: str
    bundle: Bundle
    precision: str

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """probs_NK float32 for uint8 images at the bundle's size."""
        if not hasattr(self, "_classify"):
            self._classify = load_runtime(
                self.runtime, self.bundle, device=torch.device("cpu"), precision=self.precision
            )
        return self._classify(images_NHWC)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_classify"}


def proposed(
    bundle: Bundle, splits: Splits, folder: Path, *, fake_quant: bool = False
) -> tuple[list[Student], list[str]]:
    """What `propose` returns, and what it has to say; for a process that only returns."""
    notes: list[str] = []
    return propose(bundle, splits, folder, fake_quant=fake_quant, on_message=notes.append), notes


class Smaller:
    """The students of a search."""

    def __init__(
        self,
        bench: Workbench,
        data: AnyData,
        work: Path,
        opening: Mapping[str, Any],
    ) -> None:
        """work: folder for students and their forms. opening: cache_dir and on_bad_image, as for `open_splits`."""
        self._steps, within_seconds = bench.steps, bench.budget.seconds
        self._bench, self._data, self._work, self._opening = bench, data, work, opening
        # what was trained in less time is not taken where there is more
        self._runs = work / "runs" / ("no limit" if within_seconds is None else f"within {within_seconds:g} s")
        self._answers: FastTeacher | None = None

    def train(self, own: Sequence[Row], baseline: Row, *, least_speed: float, asked: bool) -> list[list[Row]]:
        """Rows of the trained networks in the forms of `own`, timed beside the baseline; a list for each network.

        own: the fastest forms of the model's own network, the fastest first; of those in int8 some may have lost too
        much. least_speed: times as fast as the baseline that a network must be to be trained; asked: whether a person
        asked for that.
        """
        bench = self._bench
        forms = [row.candidate for row in own]
        try:
            students, notes = self._steps.run(
                proposed, bench.own.bundle, bench.own.splits, self._work, fake_quant=any(map(lost_too_much, own))
            )
        except OutOfTime:
            self._steps.leave_out("smaller networks: not built")
            return []
        for note in notes:
            self._steps.note(note)
        hopeful = [student for student in students if HOPE * own[0].times_faster > least_speed * student.flops]
        speeds = self._speeds(hopeful, forms[0], baseline)
        fast = entrants(speeds, least_speed=least_speed, asked=asked)
        for student in students:
            said = f"{speeds[student.name]:.2f} times as fast" if student.name in speeds else "not timed"
            # those that go on have rows of their own
            (self._steps.tell if student.name in fast else self._steps.note)(
                f"{student.name}: {said}{'' if student.name in fast else ', not trained'}"
            )
        self._answers = self._fast_teacher(own)
        chosen = [student for name in fast for student in students if student.name == name]
        raced = self._raced(chosen, speeds)
        finished = [self._finished(student, num_left=len(raced) - done) for done, student in enumerate(raced)]
        trained = [variant for variant in finished if variant is not None]
        bench.variants |= {variant.name: variant for variant in trained}
        rows = bench.build([dataclasses.replace(form, network=variant.name) for variant in trained for form in forms])
        timed = bench.screen(rows, baseline) if rows else []
        return [[row for row in timed if bench.variant(row) is variant] for variant in trained]

    def _speeds(self, students: Sequence[Student], form: Candidate, baseline: Row) -> dict[str, float]:
        """How many times as fast as the baseline each is in a form, untrained; without those that can't be timed."""
        bench = self._bench
        names = [student.name + UNTRAINED for student in students]
        for name, student in zip(names, students, strict=True):
            variant = self._opened(name, student.bundle, num_calibrate=NUM_CALIBRATE_UNTRAINED)
            if variant is not None:
                bench.variants[name] = variant
        there = [name for name in names if name in bench.variants]
        rows = bench.build([dataclasses.replace(form, network=name) for name in there], share=SPEEDS_TIME)
        timed = bench.screen(rows, baseline, share=SPEEDS_TIME) if rows else []
        rows = bench.rows.now(rows)
        # of no use but for their time: no rows of the result
        bench.rows.forget(rows)
        for row in rows:
            if row.screened is None:
                self._steps.note(f"{row.name}: {row.outcome.reason}")
        return {row.candidate.network.removesuffix(UNTRAINED): row.times_faster for row in timed}

    def _fast_teacher(self, own: Sequence[Row]) -> FastTeacher | None:
        """The fastest of the forms that answers as the model does, for students to learn from; None: none is needed."""
        for row in own:
            if row.parity is None or row.parity.top1_agreement < LEAST_AGREEMENT:
                continue
            runtime, precision = row.candidate.runtime, row.candidate.precision
            if runtime not in TEACHING:
                return None
            self._steps.tell(f"{row.name} is the teacher")
            return FastTeacher(runtime, self._bench.bundle_of(row), precision)
        return None

    def _raced(self, students: Sequence[Student], speeds: Mapping[str, float]) -> list[Student]:
        """Students that are worth their whole training."""
        if len(students) < 2:
            return list(students)
        within, accuracies = self._share_of_time(RACE_TIME, len(students)), {}
        for student in students:
            if within is not None and within < LEAST_SECONDS:
                self._steps.leave_out(f"{student.name}: not trained")
                continue
            self._steps.tell(f"a first look at {student.name}")
            bundle = self._trained(student, "race", share=RACE_SHARE, within_seconds=within)
            variant = None if bundle is None else self._opened(student.name, bundle)
            accuracy = None if variant is None else self._accuracy(variant)
            if accuracy is not None:
                accuracies[student.name] = accuracy
        from_nothing = {student.name for student in students if "model.weights" not in student.changes}
        names = survivors(speeds, accuracies, from_nothing) if accuracies else []
        for name, accuracy in accuracies.items():
            if name not in names:
                self._steps.note(f"{name}: {accuracy:.1%} after a first look, not trained to the end")
        return [student for name in names for student in students if student.name == name]

    def _finished(self, student: Student, *, num_left: int) -> Variant | None:
        """A student trained to the end; None where there is no time for it, or its training failed.

        num_left: students that share the time that is left, this one included.
        """
        within = self._share_of_time(FINAL_TIME, num_left)
        if within is not None and within < LEAST_SECONDS:
            self._steps.leave_out(f"{student.name}: not trained")
            return None
        self._steps.tell(f"training {student.name}")
        share = patience(student, self._bench.own.splits.num_train)
        bundle = self._trained(student, "whole", share=share, within_seconds=within)
        variant = None if bundle is None else self._opened(student.name, bundle)
        if variant is not None:
            self._accuracy(variant)
        return variant

    def _trained(self, student: Student, part: str, **options: Any) -> Bundle | None:
        try:
            return self._steps.run(
                train_student,
                student,
                self._bench.own.bundle,
                self._data,
                self._runs / f"{student.name}{' for int8' if 'fake_quant' in student.changes else ''} {part}",
                answers=self._answers,
                **self._opening,
                **options,
            )
        except OutOfTime:
            self._steps.leave_out(f"{student.name}: abandoned while it was trained")
        except (TrainingError, WorkerDied) as error:
            self._steps.note(f"{student.name} could not be trained: {first_line(error)}")
        return None

    def _opened(self, name: str, bundle: Bundle, *, num_calibrate: int | None = None) -> Variant | None:
        """A student's network with the images at its size; None where the time is over."""
        try:
            return self._steps.run(
                open_variant,
                name,
                bundle,
                self._data,
                self._work / "forms" / f"{name}",
                like=self._bench.own.splits,
                num_calibrate=num_calibrate,
                **self._opening,
            )
        except OutOfTime:
            self._steps.leave_out(f"{name}: its images were not opened")
            return None

    def _accuracy(self, variant: Variant) -> float | None:
        """On the images to select on; None where the time is over."""
        images = variant.splits.select
        try:
            probs_NK = self._steps.run(variant.probs, None, images)
        except OutOfTime:
            self._steps.leave_out(f"{variant.name}: not compared")
            return None
        accuracy = float(np.mean(probs_NK.argmax(1) == images.labels))
        self._steps.tell(f"{variant.name}: {accuracy:.1%} on the images to select on")
        return accuracy

    def _share_of_time(self, share: float, parts: int) -> float | None:
        """Seconds for each of `parts` of a share of the time that is left; None without a limit."""
        left = self._bench.budget.seconds_left()
        return None if left == float("inf") else max(1.0, share * left / parts)
