"""vivace: from a folder of images to the fastest image classifier that is still accurate.

    import vivace

    result = vivace.train("digits", epochs=5)
    evaluation = vivace.evaluate(result.bundle, "digits")
    predictions = vivace.predict(result.bundle, ["one.png", "folder/"])
    predictor = vivace.Predictor(result.bundle)
    label = predictor("one.png").label

The names below are loaded when they are first used: importing vivace does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vivace import errors

if TYPE_CHECKING:
    from vivace.acceleration.accelerate import Acceleration, accelerate
    from vivace.acceleration.options import SearchOptions
    from vivace.bundle import Bundle
    from vivace.bundle import load_bundle as load
    from vivace.data.place import Data
    from vivace.evaluation.evaluate import Evaluation, evaluate
    from vivace.exporting.state_dict import export_state_dict
    from vivace.prediction import Predictions, predict
    from vivace.predictor import Prediction, Predictor
    from vivace.training.recipe import Recipe
    from vivace.training.result import TrainResult
    from vivace.training.train import train

__version__ = "0.1.0"

__all__ = [
    "Acceleration",
    "Bundle",
    "Data",
    "Evaluation",
    "Prediction",
    "Predictions",
    "Predictor",
    "Recipe",
    "SearchOptions",
    "TrainResult",
    "accelerate",
    "errors",
    "evaluate",
    "export_state_dict",
    "load",
    "predict",
    "train",
]

_HOMES = {
    "Acceleration": ("vivace.acceleration.accelerate", "Acceleration"),
    "Bundle": ("vivace.bundle", "Bundle"),
    "Data": ("vivace.data.place", "Data"),
    "Evaluation": ("vivace.evaluation.evaluate", "Evaluation"),
    "Prediction": ("vivace.predictor", "Prediction"),
    "Predictions": ("vivace.prediction", "Predictions"),
    "Predictor": ("vivace.predictor", "Predictor"),
    "Recipe": ("vivace.training.recipe", "Recipe"),
    "SearchOptions": ("vivace.acceleration.options", "SearchOptions"),
    "TrainResult": ("vivace.training.result", "TrainResult"),
    "accelerate": ("vivace.acceleration.accelerate", "accelerate"),
    "evaluate": ("vivace.evaluation.evaluate", "evaluate"),
    "export_state_dict": ("vivace.exporting.state_dict", "export_state_dict"),
    "load": ("vivace.bundle", "load_bundle"),
    "predict": ("vivace.prediction", "predict"),
    "train": ("vivace.training.train", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vivace' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
