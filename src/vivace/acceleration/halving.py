"""Smaller networks in a search: timed before they are trained, then selected by successive halving while they train.

Latency does not depend on the weights, so a student that would not be faster is never trained. Up to MAX_RACED of the
others get a quarter of their training. Half of these, the most accurate on the selection images, are trained to the end
(successive halving, arXiv:1502.07943). The teacher runs as a fast variant, if that agrees with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.decide import lost_too_much
from vivace.acceleration.measurements import Measurements
from vivace.acceleration.networks import Network, open_network
from vivace.acceleration.proposals import propose
from vivace.acceleration.results import Result
from vivace.acceleration.splits import Splits
from vivace.acceleration.students import RACE_SHARE, Student, epoch_multiplier, train_student
from vivace.acceleration.worker import WorkerDied
from vivace.bundle import Bundle
from vivace.data.place import AnyData
from vivace.errors import OutOfTime, TrainingError, first_line
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.table import PORTABLE, RUNTIMES

__all__ = ["FastTeacher", "SuccessiveHalving", "promoted", "race_candidates"]

# the latency of an untrained int8 network does not depend on its calibration: a few images are enough
NUM_CALIBRATE_UNTRAINED = 8
UNTRAINED = " untrained"
# fractions of the remaining time for the race and for training to the end; the rest is for building, timing, certifying
RACE_TIME, FINAL_TIME = 0.2, 0.7
# and for building, and for timing, students before they are trained
SPEEDS_TIME = 0.15
# a student's speed is at most this factor times what its number of operations suggests, for the model's operations may
# suit the runtime badly; students that could not be fast enough even so are not timed
MAX_OPTIMISM = 2.0
# students that get a quarter of their training
MAX_RACED = 4
# top-1 agreement with the model that a fast variant needs to be the teacher; otherwise PyTorch runs the teacher
MIN_AGREEMENT = 0.97
# training for less time is not worth starting
MIN_SECONDS = 10.0


def race_candidates(
    speeds: Mapping[str, float], *, least_speed: float, requested: bool, published: Collection[str] = ()
) -> list[str]:
    """Names of the students that enter the race, the slowest first: at most MAX_RACED of those that are fast enough.

    requested: whether `least_speed` was requested. Then the slowest are taken, since more speed costs accuracy;
    otherwise some from the slowest to the fastest. published: students from published weights, which often lose least:
    if none of them is among these, the slowest takes the place of the one that is nearest in speed.
    """
    fast = sorted((name for name, speed in speeds.items() if speed > least_speed), key=lambda name: speeds[name])
    if requested or len(fast) <= MAX_RACED:
        raced = fast[:MAX_RACED]
    else:
        raced = [fast[round(i * (len(fast) - 1) / (MAX_RACED - 1))] for i in range(MAX_RACED)]
    joins = next((name for name in fast if name in published), None)
    if joins is not None and not any(name in published for name in raced):
        nearest = min(raced, key=lambda name: abs(math.log(speeds[name] / speeds[joins])))
        raced = sorted([joins, *(name for name in raced if name != nearest)], key=lambda name: speeds[name])
    return raced


def promoted(
    speeds: Mapping[str, float], accuracies: Mapping[str, float], from_scratch: Collection[str] = ()
) -> list[str]:
    """Names of the students that are trained to the end, the most accurate first.

    Half of those that entered: of students of the same kind none that another one beats in speed and accuracy, and the
    best of each kind before the others. from_scratch: students that did not start from the model's weights; early in
    their training their accuracy is not comparable with that of the others.
    """

    def kind(name: str) -> bool:
        return name in from_scratch

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
    # the best of each kind before all others
    best = {kind(name): name for name in reversed(ranked)}
    ranked.sort(key=lambda name: best[kind(name)] != name)
    return ranked[: max(1, -(-len(accuracies) // 2))]


@dataclass
class FastTeacher:
    """A fast variant of the teacher. It is loaded at its first prediction, in whichever process that happens."""

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
    bundle: Bundle, splits: Splits, folder: Path, *, fake_quant: bool = False, cache_dir: Path | None = None
) -> tuple[list[Student], list[str]]:
    """What `propose` returns, and its messages, for a process that can only return values."""
    notes: list[str] = []
    return propose(bundle, splits, folder, fake_quant=fake_quant, cache_dir=cache_dir, on_message=notes.append), notes


class SuccessiveHalving:
    """Chooses, trains and builds the students of a search."""

    def __init__(
        self,
        measurements: Measurements,
        data: AnyData,
        work: Path,
        opening: Mapping[str, Any],
    ) -> None:
        """work: folder for students and their variants. opening: cache_dir and on_bad_image, as for `open_splits`."""
        self._steps, within_seconds = measurements.steps, measurements.budget.seconds
        self._measurements, self._data, self._work, self._opening = measurements, data, work, opening
        # a student that was trained in less time is not reused if there is more
        self._runs = work / "runs" / ("no limit" if within_seconds is None else f"within {within_seconds:g} s")
        self._answers: FastTeacher | None = None

    def train(
        self, own: Sequence[Result], baseline: Result, *, least_speed: float, requested: bool
    ) -> list[list[Result]]:
        """Results of the trained networks in the variants of `own`, timed beside the baseline: a list for each network.

        own: the fastest variants of the model's own network, the fastest first; int8 ones among them may be INACCURATE.
        least_speed: speed relative to the baseline that a network needs to be trained. requested: whether the user
        requested it.
        """
        measurements = self._measurements
        variants = [result.candidate for result in own]
        try:
            students, notes = self._steps.run(
                proposed,
                measurements.own.bundle,
                measurements.own.splits,
                self._work,
                fake_quant=any(map(lost_too_much, own)),
                cache_dir=self._opening["cache_dir"],
            )
        except OutOfTime:
            self._steps.leave_out("smaller networks: not built")
            return []
        for note in notes:
            self._steps.note(note)
        possible = [student for student in students if MAX_OPTIMISM * own[0].times_faster > least_speed * student.flops]
        speeds = self._speeds(possible, variants[0], baseline)
        published = {student.name for student in students if student.starts_from == "published"}
        fast = race_candidates(speeds, least_speed=least_speed, requested=requested, published=published)
        for student in students:
            said = f"{speeds[student.name]:.2f} times as fast" if student.name in speeds else "not timed"
            # trained ones get results of their own
            (self._steps.tell if student.name in fast else self._steps.note)(
                f"{student.name}: {said}{'' if student.name in fast else ', not trained'}"
            )
        self._answers = self._fast_teacher(own)
        chosen = [student for name in fast for student in students if student.name == name]
        raced = self._raced(chosen, speeds)
        finished = [self._finished(student, num_left=len(raced) - done) for done, student in enumerate(raced)]
        trained = [network for network in finished if network is not None]
        measurements.networks |= {network.name: network for network in trained}
        results = measurements.build(
            [dataclasses.replace(variant, network=network.name) for network in trained for variant in variants]
        )
        timed = measurements.screen(results, baseline) if results else []
        return [[result for result in timed if measurements.network_of(result) is network] for network in trained]

    def _speeds(self, students: Sequence[Student], variant: Candidate, baseline: Result) -> dict[str, float]:
        """Speed of each untrained student relative to the baseline; without those that can't be timed."""
        measurements = self._measurements
        names = [student.name + UNTRAINED for student in students]
        for name, student in zip(names, students, strict=True):
            network = self._opened(name, student.bundle, num_calibrate=NUM_CALIBRATE_UNTRAINED)
            if network is not None:
                measurements.networks[name] = network
        there = [name for name in names if name in measurements.networks]
        results = measurements.build([dataclasses.replace(variant, network=name) for name in there], share=SPEEDS_TIME)
        timed = measurements.screen(results, baseline, share=SPEEDS_TIME) if results else []
        results = measurements.results.current(results)
        # built for their times alone: they are no results of the search
        measurements.results.discard(results)
        for result in results:
            if result.screened is None:
                self._steps.note(f"{result.name}: {result.outcome.reason}")
        return {result.candidate.network.removesuffix(UNTRAINED): result.times_faster for result in timed}

    def _fast_teacher(self, own: Sequence[Result]) -> FastTeacher | None:
        """The fastest variant that agrees with the model, as the teacher; None: PyTorch runs the teacher.

        Of a network of the user's own, whose code is not here, its float32 graph in place of that.
        """
        for result in own:
            agreement = None if result.parity is None else result.parity.agreement
            if agreement is None or agreement < MIN_AGREEMENT:
                continue
            runtime, precision = result.candidate.runtime, result.candidate.precision
            # only runtimes that need no compiler in the training process
            if RUNTIMES[runtime].takes_network:
                return None
            self._steps.tell(f"{result.name} is the teacher")
            return FastTeacher(runtime, self._measurements.bundle_of(result), precision)
        network = self._measurements.own
        if not network.bundle.has_code:
            plain = Candidate(runtime=PORTABLE, precision="fp32")
            return FastTeacher(plain.runtime, network.builder.build(plain), plain.precision)
        return None

    def _raced(self, students: Sequence[Student], speeds: Mapping[str, float]) -> list[Student]:
        """The students that are trained to the end, after a race if there are several."""
        if len(students) < 2:
            return list(students)
        within, accuracies = self._share_of_time(RACE_TIME, len(students)), {}
        for student in students:
            if within is not None and within < MIN_SECONDS:
                self._steps.leave_out(f"{student.name}: not trained")
                continue
            self._steps.tell(f"training {student.name} for a quarter of its epochs")
            bundle = self._trained(student, "race", share=RACE_SHARE, within_seconds=within)
            network = None if bundle is None else self._opened(student.name, bundle)
            accuracy = None if network is None else self._accuracy(network)
            if accuracy is not None:
                accuracies[student.name] = accuracy
        from_scratch = {student.name for student in students if student.starts_from == "random"}
        names = promoted(speeds, accuracies, from_scratch) if accuracies else []
        for name, accuracy in accuracies.items():
            if name not in names:
                self._steps.note(f"{name}: {accuracy:.1%} after a quarter of its training, not trained to the end")
        return [student for name in names for student in students if student.name == name]

    def _finished(self, student: Student, *, num_left: int) -> Network | None:
        """A student trained to the end; None if there is no time or its training failed.

        num_left: number of students that share the remaining time, including this one.
        """
        within = self._share_of_time(FINAL_TIME, num_left)
        if within is not None and within < MIN_SECONDS:
            self._steps.leave_out(f"{student.name}: not trained")
            return None
        self._steps.tell(f"training {student.name}")
        share = epoch_multiplier(student, self._measurements.own.splits.num_train)
        bundle = self._trained(student, "whole", share=share, within_seconds=within)
        network = None if bundle is None else self._opened(student.name, bundle)
        if network is not None:
            self._accuracy(network)
        return network

    def _trained(self, student: Student, part: str, **options: Any) -> Bundle | None:
        try:
            return self._steps.run(
                train_student,
                student,
                self._measurements.own.bundle,
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

    def _opened(self, name: str, bundle: Bundle, *, num_calibrate: int | None = None) -> Network | None:
        """A student's network with the images at its input size; None if the time budget ended."""
        try:
            return self._steps.run(
                open_network,
                name,
                bundle,
                self._data,
                self._work / "variants" / f"{name}",
                like=self._measurements.own.splits,
                num_calibrate=num_calibrate,
                **self._opening,
            )
        except OutOfTime:
            self._steps.leave_out(f"{name}: its images were not opened")
            return None

    def _accuracy(self, network: Network) -> float | None:
        """Accuracy on the selection images; None if the time budget ended."""
        images = network.splits.select
        try:
            probs_NK = self._steps.run(network.probs, None, images)
        except OutOfTime:
            self._steps.leave_out(f"{network.name}: not compared")
            return None
        accuracy = float(np.mean(probs_NK.argmax(1) == images.labels))
        self._steps.tell(f"{network.name}: {accuracy:.1%} on the selection images")
        return accuracy

    def _share_of_time(self, share: float, parts: int) -> float | None:
        """Seconds for each of `parts` in a fraction of the remaining time; None without a time budget."""
        left = self._measurements.budget.seconds_left()
        return None if left == float("inf") else max(1.0, share * left / parts)
