"""Trains smaller networks to answer like a module that classifies images, within the time budget.

1. Read the images to train on; none of them may be one to choose or prove on.
2. Build the students untrained, and time each beside the module on the same runtime.
3. Train the slowest of those that are faster, of photos the slowest from published weights, which loses least as a
   rule; if it keeps the budget on the samples to choose on, train the fastest as well.

What comes of a trained one is decided as for any other candidate: built for every runtime, compared, proven, timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vivace.acceleration.budget import Budget
from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.candidates import ModuleCandidate
from vivace.acceleration.modules.classifiers import ImageClassifier
from vivace.acceleration.modules.digests import sample_digests
from vivace.acceleration.modules.distilling import Limits, distil
from vivace.acceleration.modules.signature import Call, flatten
from vivace.acceleration.modules.students import ModuleStudent, Replacement, StudentNetwork, proposed
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.training_images import TrainingImages, read_training_images
from vivace.acceleration.modules.trials import Entry, Trials
from vivace.errors import DataError, VivaceError, first_line
from vivace.models.zoo import forward_flops
from vivace.runtimes.table import REFERENCE, RUNTIMES, is_quantized

__all__ = ["BUILD_SHARE", "OWN_SHARE", "Replacing", "chosen", "plain_candidate"]

# fractions of the time budget that have passed when the module's own candidates are built, when the images are read,
# when students are no longer timed, when training ends, and when the candidates of trained ones are built
OWN_SHARE, READ_SHARE, SPEED_SHARE, TRAIN_SHARE, BUILD_SHARE = 0.25, 0.3, 0.35, 0.65, 0.8
# of the time for training, for the first student
FIRST_SHARE = 0.6
# training takes at least so long, s
MIN_SECONDS = 3.0
# a student is trained if it is so many times as fast as the module on the same runtime
LEAST_GAIN = 1.2
# passes over the images: distillation profits from many (arXiv:2106.05237); of published weights a few are enough
MIN_EPOCHS, MAX_EPOCHS, MANY_IMAGES, PUBLISHED_EPOCHS = 24, 100, 1_000_000, 8


def plain_candidate(network: str) -> ModuleCandidate:
    """A student as it is, in PyTorch."""
    return ModuleCandidate(REFERENCE, RUNTIMES[REFERENCE].module_variants[0], network=network)


class Replacing:
    """The students of one search."""

    def __init__(
        self,
        subject: Subject,
        classifier: ImageClassifier,
        example: Batch,
        budget: Budget,
        tell: Callable[[str], None],
    ) -> None:
        """example: a call like those of the data. Raises VivaceError for a module that no student can stand in for."""
        if not classifier.is_alone:
            raise VivaceError("its outputs hold more tensors than logits")
        self._subject, self._classifier, self._budget, self._tell = subject, classifier, budget, tell
        self._inputs = example.call.flatten()[1]
        self._outputs = flatten(subject.outputs(example))[1]
        self._digests: frozenset[bytes] = frozenset()
        self.num_left_out = 0
        """Batches to prove on that hold training images."""
        self.networks: dict[str, StudentNetwork] = {}
        """The trained ones by name."""

    def train(
        self,
        batches: Iterable[Any],
        trials: Trials,
        own: Sequence[Entry],
        select: Sequence[Batch],
        keeps: Callable[[Trials, str], bool],
    ) -> list[tuple[str, Trials]]:
        """Trained students, the fastest first: their names, and what builds their candidates.

        own: the module's candidates. keeps: whether a student, by its trials and name, keeps the accuracy budget on
        the samples to choose on. Raises DataError for batches that are no images like the data's, or some of them.
        """
        self._tell("reading the images to train on")
        images = read_training_images(
            batches, self._classifier, self._subject.signature, stop=lambda: self._passed(READ_SHARE)
        )
        self._digests = images.digests
        if any(self._overlaps(batch) for batch in select):
            raise DataError(
                "`train` holds images of the data, which choose and prove: a network that was trained on them proves "
                "nothing. Give other images to train on."
            )
        if images.is_cut:
            self._tell(f"training on the first {len(images):,} images: more would not fit")
        # first weights are the same in every search
        torch.manual_seed(0)
        students = self._fast_ones(trials, own, proposed(self._classifier, *images.statistics(), self._flops()))
        found: list[tuple[str, Trials]] = []
        for student, share in zip(chosen(students), (FIRST_SHARE, 1.0), strict=False):
            seconds = share * (TRAIN_SHARE * self._seconds - self._budget.elapsed())
            made = self._trained(student, images, own, trials, seconds)
            if made is None or not keeps(made, student.name):
                # a faster one loses more
                break
            found.insert(0, (student.name, made))
        return found

    def disjoint(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches without those that hold training images."""
        for batch in batches:
            if self._overlaps(batch):
                self.num_left_out += 1
            else:
                yield batch

    @property
    def _seconds(self) -> float:
        return self._budget.seconds or float("inf")

    def _passed(self, share: float) -> bool:
        return self._budget.elapsed() > share * self._seconds

    def _overlaps(self, batch: Batch) -> bool:
        return bool(self._digests) and not self._digests.isdisjoint(sample_digests(batch.call, batch.size))

    def _flops(self) -> float:
        """Operations of the module for an image; infinite where they can't be counted, and any student is smaller."""
        try:
            side = min(self._classifier.height, self._classifier.width)
            return forward_flops(self._subject.module, in_channels=self._classifier.channels, size=side)
        except Exception:
            return float("inf")

    def _fast_ones(
        self, trials: Trials, own: Sequence[Entry], students: Sequence[ModuleStudent]
    ) -> list[tuple[float, ModuleStudent]]:
        """(speed relative to the module on the same runtime, student) of those worth training, slowest first."""
        if not students:
            self._tell("no smaller networks: none has fewer operations")
        graphs = [one for one in own if _is_graph(one) and not one.candidate.variant.asymmetric]
        best = max(graphs, key=lambda entry: entry.times_faster, default=None)
        found: list[tuple[float, ModuleStudent]] = []
        for student in students:
            if found and self._passed(SPEED_SHARE):
                self._tell(f"{student.name}: not timed: out of time")
                continue
            name = f"{student.name}, untrained"
            plain = plain_candidate(name)
            candidate = (
                plain if best is None else ModuleCandidate(best.candidate.runtime, best.candidate.variant, network=name)
            )
            entry = self._trials_of(student, trials).try_one(candidate)
            # it was built for its time alone
            trials.outcomes.pop(candidate.name, None)
            speed = 0.0 if entry is None else entry.times_faster / (1.0 if best is None else best.times_faster)
            self._tell(f"{student.name}: {speed:.2f} times as fast")
            if speed > LEAST_GAIN:
                found.append((speed, student))
        return sorted(found, key=lambda pair: pair[0])

    def _trials_of(self, student: ModuleStudent, trials: Trials) -> Trials:
        subject = Subject(Replacement(student.network.to(self._subject.device), self._outputs))
        return trials.of_replacement(subject, share=BUILD_SHARE)

    def _trained(
        self, student: ModuleStudent, images: TrainingImages, own: Sequence[Entry], trials: Trials, seconds: float
    ) -> Trials | None:
        if seconds < MIN_SECONDS:
            trials.rule_out(student.name, "not trained: out of time")
            trials.out_of_time = True
            return None
        limit = "" if seconds == float("inf") else f" for up to {seconds:.0f} s"
        self._tell(f"training {student.name} on {len(images):,} images{limit}")
        many = round(MANY_IMAGES / len(images))
        epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, many)) if student.from_scratch else PUBLISHED_EPOCHS
        try:
            num_seen = distil(
                student,
                images,
                self._teacher(own),
                Limits(epochs=epochs, seconds=seconds),
                self._subject.device,
                sets=self._classifier.sets,
            )
            self._tell(f"{student.name} has seen {num_seen:,} images")
            self.networks[student.name] = student.network
            return self._trials_of(student, trials)
        except Exception as error:
            # of a network that could not be trained the search goes on without it
            trials.rule_out(student.name, f"failed: {type(error).__name__}: {first_line(error)}")
            return None

    def _teacher(self, own: Sequence[Entry]) -> Callable[[Tensor], Tensor]:
        """images_BCHW → logits_BK by the fastest program of the module that is not int8."""
        best = max(filter(_is_graph, own), key=lambda entry: entry.times_faster, default=None)
        module = self._subject.module if best is None or best.times_faster < 1 else best.module

        def teacher(images_BCHW: Tensor) -> Tensor:
            call = Call.of(self._inputs, [images_BCHW])
            return flatten(module(*call.args, **call.kwargs))[0][self._classifier.place]

        return teacher


def chosen(students: Sequence[tuple[float, ModuleStudent]]) -> list[ModuleStudent]:
    """Of (speed, student), the slowest first, those to train: the slowest of those with published weights, which lose
    least, or of all where none has any; then the fastest."""
    if not students:
        return []
    first = next((student for _, student in students if not student.from_scratch), students[0][1])
    return [first] if students[-1][1] is first else [first, students[-1][1]]


def _is_graph(entry: Entry) -> bool:
    """Whether it is a graph in float: quick to build, of any number of images."""
    row = RUNTIMES[entry.candidate.runtime]
    return not row.takes_network and not is_quantized(entry.candidate.precision)
