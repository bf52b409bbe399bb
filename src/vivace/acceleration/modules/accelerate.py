"""vivace.accelerate for any torch.nn.Module: a faster drop-in replacement, with a proof of what it loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vivace.acceleration.budget import Budget
from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.preserving import preserved_generators
from vivace.acceleration.modules.result import ModuleAcceleration
from vivace.acceleration.modules.search import ModuleSearch
from vivace.acceleration.modules.subject import Subject, Unsupported
from vivace.acceleration.results import Verdict
from vivace.errors import ModelError
from vivace.hardware import limit_threads
from vivace.runtimes.table import PRECISIONS, REFERENCE

__all__ = ["accelerate_module"]


def accelerate_module(
    module: nn.Module, data: Iterable[Any], options: ModuleOptions, *, on_message: Callable[[str], None]
) -> ModuleAcceleration:
    """Find the fastest drop-in replacement of a module whose score drops by at most `max_drop` points, proven.

    data: see `batches.batch_of`. The module is left as it is, and is the result where nothing faster is proven. Raises
    ConfigError, DataError and ModelError for wrong options, data, and a module that fails on them.
    """
    budget = Budget(options.within_seconds)
    if isinstance(module, AcceleratedModule):
        raise ModelError("the module is accelerated already. Give the one that it replaces: its `original`.")
    # what torch.jit scripts has none in its class
    if getattr(type(module), "forward", None) is nn.Module.forward and "forward" not in vars(module):
        raise ModelError(f"the module has no forward: got {type(module).__name__}. Give one that can be called.")
    limit_threads()
    try:
        subject = Subject(module)
    except Unsupported as error:
        return _told(_unsupported(module, error, options, [], budget), on_message)
    with subject.ready(), preserved_generators(subject.device):
        search = ModuleSearch(subject, data, options, budget, on_message)
        try:
            search.run()
        except Unsupported as error:
            return _told(_unsupported(module, error, options, search.warnings, budget), on_message)
    return _told(_result(module, search, budget), on_message)


def _told(found: ModuleAcceleration, tell: Callable[[str], None]) -> ModuleAcceleration:
    """The result, after its warnings and verdict are said: one that came back as it was is easily taken for another."""
    for warning in found.warnings:
        tell(f"warning: {warning}")
    # what became of each candidate was said at the time
    words = Verdict(found.status).reason if found.candidates and not found.accelerated else found.reason
    tell(f"{found.status}: {words}" + ("" if found.accelerated else ". The module comes back as it was"))
    return found


def _unsupported(
    module: nn.Module, error: Unsupported, options: ModuleOptions, warnings: list[str], budget: Budget
) -> ModuleAcceleration:
    metric = options.metric
    return ModuleAcceleration(
        module=module,
        accelerated=False,
        status="unsupported",
        reason=str(error),
        warnings=warnings,
        runtime=REFERENCE,
        precision=PRECISIONS[0],
        network="",
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", ""),
        latency_ms_before=math.nan,
        latency_ms_after=math.nan,
        speedup=1.0,
        speedup_low=math.nan,
        score_before=math.nan,
        score_after=math.nan,
        drop=0.0,
        drop_bound=0.0,
        num_certify_samples=0,
        candidates=[],
        seconds=budget.elapsed(),
    )


def _result(module: nn.Module, search: ModuleSearch, budget: Budget) -> ModuleAcceleration:
    winner, warnings = search.winner, list(search.warnings)
    late = budget.overrun()
    warnings += [] if late is None else [late]
    reason = search.verdict.reason
    loss, ratio = None, None
    if winner is not None:
        loss, ratio = winner.certified, winner.ratio
        assert loss is not None
        assert ratio is not None
        kept = f"loses at most {100 * loss.bound:.2f} points of {search.scorer.name}"
        reason = f"{winner.name} is {ratio[0]:.2f} times as fast as the baseline and {kept}"
    else:
        reason += ": " + "; ".join(f"{one.name}: {one.reason}" for one in search.outcomes)
        short = budget.shortfall() if search.verdict is Verdict.UNDECIDED else None
        warnings += [] if short is None else [short]
    return ModuleAcceleration(
        module=module if winner is None else winner.module,
        accelerated=winner is not None,
        status=search.verdict.value,
        reason=reason,
        warnings=warnings,
        runtime=REFERENCE if winner is None else winner.candidate.runtime,
        precision=PRECISIONS[0] if winner is None else winner.candidate.precision,
        network="" if winner is None else winner.candidate.network,
        metric=search.scorer.name,
        latency_ms_before=search.baseline_ms,
        latency_ms_after=search.baseline_ms if winner is None else winner.ms,
        speedup=1.0 if ratio is None else ratio[0],
        speedup_low=math.nan if ratio is None or ratio[1] is None else ratio[1],
        score_before=math.nan if loss is None else loss.before,
        score_after=math.nan if loss is None else loss.after,
        drop=0.0 if loss is None else 100 * loss.drop,
        drop_bound=0.0 if loss is None else 100 * loss.bound,
        num_certify_samples=0 if loss is None else loss.num_samples,
        candidates=search.outcomes,
        seconds=budget.elapsed(),
        _saveable=search.saveable(),
    )
