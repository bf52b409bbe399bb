"""What a report shows, as frozen values: text is printable and bounded, numbers are finite or None."""

from __future__ import annotations

from dataclasses import dataclass, field

from vivace.metrics.measured import Bin
from vivace.reporting.page.charts import Chart, Scatter
from vivace.reporting.page.contradictions import Contradiction
from vivace.reporting.page.robustness import Attacked, Corrupted

__all__ = [
    "Answers",
    "Candidate",
    "Cell",
    "ClassRow",
    "Found",
    "HeatFacts",
    "Page",
    "Picture",
    "Reliability",
    "Reliance",
    "Score",
    "Search",
    "SliceFacts",
    "SliceRow",
]


@dataclass(frozen=True, kw_only=True)
class Score:
    """The accuracy on a split, with its 95 % interval where there is one."""

    split: str
    kind: str
    """top1, or of sets of labels map or exact_match."""
    value: float
    low: float | None
    high: float | None
    num_images: int | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with what the network made of it."""

    uri: str
    """data:image/webp;base64,…"""
    width: int
    height: int
    crisp: bool
    """So small that it is shown in large pixels."""
    name: str
    label: str
    predicted: str
    percent: float
    """Probability of what was predicted."""
    absent: str | None = None
    """Of sets of labels: "label" where the image does not have it, "predicted" where it was not predicted."""
    heat: str | None = None
    """The same image under the colours of its heat map, as `uri`; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The images of a class that were predicted to be of a class."""

    true: int
    predicted: int
    count: int
    fraction: float
    """Of the images of the true class."""
    shade: float
    """How strongly it is coloured, [0, 1]."""
    pictures: tuple[Picture, ...] = ()

    @property
    def anchor(self) -> str:
        return f"pair-{self.true}-{self.predicted}"

    @property
    def right(self) -> bool:
        return self.true == self.predicted


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The metrics of a class or a label; None: undefined without images of it."""

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often answers of a confidence are right."""

    bins: tuple[Bin, ...]
    ece: float


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """What the bundle's thresholds do on the images. Rates in [0, 1]."""

    stated_coverage: float
    coverage: float
    """Of the prediction sets, with its 95 % interval."""
    coverage_low: float
    coverage_high: float
    mean_set_size: float
    rule: str
    stated_risk: float
    abstained: float | None
    """None: no level of confidence holds the risk."""
    error_answered: float | None
    error_answered_bound: float | None
    sizes: tuple[tuple[int, float], ...]
    """(classes in a set, fraction of the images)."""
    calibrated_on: str
    unlike: tuple[tuple[str, float, float, float], ...] = ()
    """(kind of generated images, AUROC, its 95 % interval), against the validation images."""
    ood_score: str | None = None
    num_calibration: int = 0
    exact_coverage: float | None = None
    """Of sets that may be empty, which is what the band is of."""
    band_low: float | None = None
    """Where that is with a probability of 95 %, for images like those of the calibration."""
    band_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """A part of the images. Rates are of mistakes, in [0, 1]."""

    kind: str
    """class, brightness, size, aspect, pair or cluster."""
    names: tuple[str, ...]
    """Of its classes."""
    part: int
    least: float
    most: float
    digits: int
    """Decimals of the two that tell the part from its neighbours."""
    num_images: int
    wrong: float
    """Of a pair: taken for each other."""
    low: float
    high: float
    elsewhere: float
    """Of the other images; of a pair, if mistakes fell on all classes alike."""
    is_worse: bool
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SliceFacts:
    """The worst parts of the images, the worst first."""

    rows: tuple[SliceRow, ...]
    num_tested: int
    num_worse: int


@dataclass(frozen=True, kw_only=True)
class HeatFacts:
    """How the heat maps of the mistakes were made."""

    method: str
    layer: str
    side: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was measured image by image."""

    split: str
    num_images: int
    num_mistakes: int
    multi_label: bool
    classes: tuple[str, ...]
    cells: tuple[Cell, ...] = ()
    """The pairs of classes that occur, in the order of the matrix."""
    rows: tuple[ClassRow, ...] = ()
    mistakes: tuple[Picture, ...] = ()
    after: Reliability | None = None
    before: Reliability | None = None
    """Of the probabilities as they were before calibration; None: they were not calibrated, or that is not known."""
    reliance: Reliance | None = None
    """None: the bundle has no thresholds."""
    heat: HeatFacts | None = None
    """None: no mistake has a heat map."""
    no_heat: str | None = None
    """Why."""
    slices: SliceFacts | None = None
    """None: the images were not parted."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A finding of the audit."""

    severity: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant that a search for a faster bundle tried."""

    number: int | None
    """In the figure; None: it is not there."""
    name: str
    outcome: str
    won: bool
    p50_ms: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    drop: float | None
    bound: float | None
    num_bytes: float | None


@dataclass(frozen=True, kw_only=True)
class Search:
    """What an acceleration found. Drops in percentage points."""

    winner: str | None
    baseline: str | None
    reason: str
    max_drop: float | None
    num_certify: int | None
    candidates: tuple[Candidate, ...]
    num_left_out: int
    """Candidates beyond those shown."""
    figure: Scatter | None
    evidence: str | None
    notes: tuple[str, ...]

    @property
    def best(self) -> Candidate | None:
        return next((row for row in self.candidates if row.won), None)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a report says."""

    name: str
    kind: str
    """run, bundle or accelerated."""
    model: str
    data: str | None
    classes: tuple[str, ...]
    multi_label: bool
    size: int
    num_bytes: int
    runtime: str
    precision: str
    num_train: int | None = None
    started_from: str | None = None
    license: str | None = None
    scores: tuple[Score, ...] = ()
    measured: tuple[Score, ...] = ()
    """On the images that the report was given."""
    measured_on: str | None = None
    num_trained_on: int | None = 0
    epochs: float | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    within_seconds: float | None = None
    target: float | None = None
    target_reached: bool | None = None
    target_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    """What its records say that can't be true."""
    privacy: tuple[float, float] | None = None
    """Epsilon and delta of a private training; None: it was not private."""
    curves: tuple[Chart, ...] = ()
    answers: Answers | None = None
    findings: tuple[Found, ...] | None = None
    """None: nothing was audited."""
    search: Search | None = None
    corrupted: tuple[Corrupted, ...] = ()
    """What corruptions left, the newest measurement first."""
    attacked: tuple[Attacked, ...] = ()
    """What attacks left, the newest measurement first."""
    kernels: tuple[tuple[str, str], ...] = ()
    kernels_measured: bool = False
    """Whether a trial chose them."""
    environment: tuple[tuple[str, str], ...] = ()
    hashes: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    recipe: str | None = None
    not_measured: tuple[tuple[str, str], ...] = field(default=())
    """(what, the command that measures it)."""

    @property
    def main_scores(self) -> tuple[Score, ...]:
        """On the images that were given, else on test if there is one, else the first."""
        if self.measured:
            return self.measured
        splits = [score.split for score in self.scores]
        main = "test" if "test" in splits else next(iter(splits), None)
        return tuple(score for score in self.scores if score.split == main)
