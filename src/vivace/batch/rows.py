"""The rows of a table of predictions: their cells, and their bytes in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.batch.names import written_name
from vivace.outputs import csv_text
from vivace.predicted import Prediction, reliance_cells
from vivace.prediction import Failure
from vivace.predictor import Predictor

__all__ = ["FORMATS", "Columns", "applying"]


@dataclass(frozen=True)
class Columns:
    """The columns of the predictions of one predictor, the same for every image."""

    num_ranks: int
    """How many classes of an image; 0: it has a set of labels."""
    reliance: bool
    """Whether the bundle has thresholds for prediction sets, abstaining and unlike images."""
    decode: str = "fine"
    """How JPEGs are decoded; what is not as in training is told in a column of its own."""

    @classmethod
    def of(cls, predictor: Predictor, topk: int) -> Columns:
        several = predictor.bundle.info.multi_label
        ranks = 0 if several else min(topk, len(predictor.classes))
        return cls(ranks, predictor.decider is not None and not several, predictor.bundle.preprocess.decode)

    @property
    def names(self) -> list[str]:
        """In the order of the table."""
        last = () if self.decode == "fine" else ("decode",)
        if not self.num_ranks:
            return ["path", "error", "labels", "probabilities", *last]
        ranked = [f"{what}_{rank}" for rank in range(1, self.num_ranks + 1) for what in ("label", "probability")]
        reliance = ("prediction_set", "abstain", "ood", "ood_score") if self.reliance else ()
        return ["path", "error", *ranked, *reliance, *last]

    def cells(self, outcome: Prediction | Failure, *, as_text: bool) -> dict[str, Any]:
        """A row: path, error, and label_1, probability_1, label_2 …; of sets of labels labels, probabilities.

        Of a bundle with thresholds also prediction_set, abstain, ood and ood_score; decode where it is not fine. A
        failure has its short name as error, and no labels. as_text: lists as one text, separated by semicolons.
        """
        cells = self._cells(outcome, as_text)
        return cells if self.decode == "fine" else cells | {"decode": self.decode}

    def _cells(self, outcome: Prediction | Failure, as_text: bool) -> dict[str, Any]:
        none: Any = "" if as_text else []
        if isinstance(outcome, Failure):
            cells: dict[str, Any] = {"path": written_name(outcome.path), "error": outcome.problem}
            if not self.num_ranks:
                return cells | {"labels": none, "probabilities": none}
            for rank in range(1, self.num_ranks + 1):
                cells[f"label_{rank}"], cells[f"probability_{rank}"] = "", None
            if self.reliance:
                cells |= {"prediction_set": none, **dict.fromkeys(("abstain", "ood", "ood_score"))}
            return cells
        cells = {"path": written_name(outcome.path), "error": ""}
        if not self.num_ranks:
            found = applying(outcome)
            labels, probs = [name for name, _ in found], [probability for _, probability in found]
            if as_text:
                return cells | {
                    "labels": ";".join(labels),
                    "probabilities": ";".join(f"{value:.6g}" for value in probs),
                }
            return cells | {"labels": labels, "probabilities": probs}
        for rank, (name, probability) in enumerate(outcome.topk, start=1):
            cells[f"label_{rank}"], cells[f"probability_{rank}"] = name, probability
        return cells | (reliance_cells(outcome, as_text=as_text) if self.reliance else {})


def applying(row: Prediction) -> tuple[tuple[str, float], ...]:
    """(label, probability) of the labels that reach their thresholds, the likeliest first."""
    probs = dict(row.topk)
    return tuple((name, probs[name]) for name in row.labels)


@dataclass(frozen=True)
class Format:
    """How rows are written while they come, and what becomes of that at the end."""

    as_text: bool
    """Whether lists are one text."""
    head: Callable[[Columns], bytes]
    rows: Callable[[Columns, Sequence[dict[str, Any]]], bytes]
    finish: Callable[[Path, Columns, Any], None] | None = None
    """(written rows, columns, file to write): None, the written rows are the table."""


def _csv_head(columns: Columns) -> bytes:
    return csv_text([columns.names])


def _csv_rows(columns: Columns, rows: Sequence[dict[str, Any]]) -> bytes:
    names = columns.names
    return csv_text([row.get(name) for name in names] for row in rows)


def _json_rows(columns: Columns, rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Path, columns: Columns, file: Any) -> None:
    from vivace.batch.parquet import write_parquet

    write_parquet(rows, columns, file)


FORMATS: dict[str, Format] = {
    ".csv": Format(True, _csv_head, _csv_rows),
    ".jsonl": Format(False, lambda columns: b"", _json_rows),
    ".parquet": Format(False, lambda columns: b"", _json_rows, _parquet),
}
