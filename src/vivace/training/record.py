"""What is written and told of a run: its data, its budget, the weights that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vivace.data.caching.cache import Cache
from vivace.models.own.given import OwnNetwork
from vivace.training.folder.runfolder import RunFolder
from vivace.training.loop.arrays import TrainingData
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.session import Session
from vivace.training.recording.callbacks import RunInfo

__all__ = ["PATHS", "facts_of", "record_of", "run_info", "starting_weights"]

# facts of the data that say where they lie on this machine
PATHS = ("place", "file")


def record_of(
    facts: dict[str, Any], budget: Budget, weights: Mapping[str, Any], network: OwnNetwork | None = None
) -> dict[str, Any]:
    """The contents of run.json from the start: the data, the budget as "contract", the starting weights.

    network: one of the user's own.
    """
    told = {} if network is None else {"network": network.record()}
    return {"data": facts, "contract": dataclasses.asdict(budget), "weights": dict(weights), **told}


def facts_of(cache: Cache, data: TrainingData, name: str) -> dict[str, Any]:
    """The facts of a run's data, as `run.json` has them."""
    return {
        "name": name,
        "place": str(cache.source.root.resolve()) if cache.source.root and not cache.source.given else None,
        "file": str(cache.source.file.resolve()) if cache.source.file else None,
        "fingerprint": cache.fingerprint,
        "num_images": sum(len(split.labels_N) for split in cache.splits.values()),
        "num_train": len(data.train_indices),
        "num_val": data.num_val,
        "num_test": data.num_test,
    }


def starting_weights(saved: Mapping[str, Any] | None) -> dict[str, str]:
    """Of a run that is resumed; runs of earlier versions do not say."""
    weights = {} if saved is None else saved.get("weights")
    return {str(name): str(value) for name, value in weights.items()} if isinstance(weights, Mapping) else {}


def run_info(session: Session, engine: Engine, folder: RunFolder, facts: Mapping[str, Any], budget: Budget) -> RunInfo:
    """What callbacks are told at the start."""
    counters = engine.counters
    return RunInfo(
        run=folder.path,
        recipe=session.recipe,
        data=dict(facts),
        classes=tuple(session.data.cache.classes),
        device=str(session.device),
        num_steps=None if budget.within_seconds is not None else engine.plan.total_steps(counters),
        within_seconds=budget.within_seconds,
        target=budget.target,
        resumed_step=counters.step or None,
        history=tuple(map(dict, counters.history)),
    )
