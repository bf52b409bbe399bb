"""vivace: from a folder of images to the fastest image classifier that is still accurate.

    import vivace

    result = vivace.train("path/to/images", within="10m")
    evaluation = vivace.evaluate(result.bundle, "path/to/images")
    found = vivace.accelerate(result.bundle, "path/to/images", out="fast", max_drop=0.5)
    faster = vivace.accelerate(module, loader).module  # any torch.nn.Module and DataLoader
    bundle = vivace.load(found.bundle)
    label = bundle("one.png").label

Every verb of the command line is a function here: `vivace.export` is `vivace export`. Arguments have the names of the
options, with an underscore for a hyphen.

The names below are loaded when they are first used: importing vivace does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vivace import errors

if TYPE_CHECKING:
    from vivace.acceleration.accelerate import accelerate
    from vivace.acceleration.modules.result import ModuleAcceleration
    from vivace.acceleration.options import SearchOptions
    from vivace.acceleration.outcome import Acceleration
    from vivace.batch.files import predict_to
    from vivace.batch.run import Streamed
    from vivace.bundle import Bundle
    from vivace.data.place import Data
    from vivace.evaluation.evaluate import Evaluation, evaluate
    from vivace.exporting.export import Exported, export
    from vivace.exporting.parity import Parity, verify
    from vivace.exporting.state_dict import export_state_dict
    from vivace.heatmaps.explain import HeatMap, heat_maps
    from vivace.loaded import load
    from vivace.prediction import Predictions, predict
    from vivace.predictor import Prediction, Predictor
    from vivace.profiling.profile import Profile
    from vivace.signing import sign
    from vivace.training.recipes.recipe import Recipe
    from vivace.training.recording.callbacks import Callback, StopTraining
    from vivace.training.result import TrainResult
    from vivace.verbs.audit import DataAudit, audit
    from vivace.verbs.compare import RunComparison, compare
    from vivace.verbs.profile import profile
    from vivace.verbs.report import Report, report
    from vivace.verbs.runs import Run, Runs, runs
    from vivace.verbs.train import train

__version__ = "0.1.0"

__all__ = [
    "Acceleration",
    "Bundle",
    "Callback",
    "Data",
    "DataAudit",
    "Evaluation",
    "Exported",
    "HeatMap",
    "ModuleAcceleration",
    "Parity",
    "Prediction",
    "Predictions",
    "Predictor",
    "Profile",
    "Recipe",
    "Report",
    "Run",
    "RunComparison",
    "Runs",
    "SearchOptions",
    "StopTraining",
    "Streamed",
    "TrainResult",
    "accelerate",
    "audit",
    "compare",
    "errors",
    "evaluate",
    "export",
    "export_state_dict",
    "heat_maps",
    "load",
    "predict",
    "predict_to",
    "profile",
    "report",
    "runs",
    "sign",
    "train",
    "verify",
]

# name → the module that it is loaded from
_HOMES = {
    "Acceleration": "vivace.acceleration.outcome",
    "Bundle": "vivace.bundle",
    "Callback": "vivace.training.recording.callbacks",
    "Data": "vivace.data.place",
    "DataAudit": "vivace.verbs.audit",
    "Evaluation": "vivace.evaluation.evaluate",
    "Exported": "vivace.exporting.export",
    "HeatMap": "vivace.heatmaps.explain",
    "ModuleAcceleration": "vivace.acceleration.modules.result",
    "Parity": "vivace.exporting.parity",
    "Prediction": "vivace.predictor",
    "Predictions": "vivace.prediction",
    "Predictor": "vivace.predictor",
    "Profile": "vivace.profiling.profile",
    "Recipe": "vivace.training.recipes.recipe",
    "Report": "vivace.verbs.report",
    "Run": "vivace.verbs.runs",
    "RunComparison": "vivace.verbs.compare",
    "Runs": "vivace.verbs.runs",
    "SearchOptions": "vivace.acceleration.options",
    "Streamed": "vivace.batch.run",
    "StopTraining": "vivace.training.recording.callbacks",
    "TrainResult": "vivace.training.result",
    "accelerate": "vivace.acceleration.accelerate",
    "audit": "vivace.verbs.audit",
    "compare": "vivace.verbs.compare",
    "evaluate": "vivace.evaluation.evaluate",
    "export": "vivace.exporting.export",
    "export_state_dict": "vivace.exporting.state_dict",
    "heat_maps": "vivace.heatmaps.explain",
    "load": "vivace.loaded",
    "predict": "vivace.prediction",
    "predict_to": "vivace.batch.files",
    "profile": "vivace.verbs.profile",
    "report": "vivace.verbs.report",
    "runs": "vivace.verbs.runs",
    "sign": "vivace.signing",
    "train": "vivace.verbs.train",
    "verify": "vivace.exporting.parity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vivace' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
