"""Pictures of the heat maps of predictions, in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivace.heatmaps.mapper import HeatMapper
from vivace.heatmaps.pictures import HeatMapFolder
from vivace.predicted import Prediction
from vivace.predictor import Predictor

__all__ = ["Drawing"]


class Drawing:
    """Draws the heat map of each prediction's class beside the image."""

    def __init__(
        self, folder: str | Path, predictor: Predictor, files: Sequence[str], outside: Sequence[Path] = ()
    ) -> None:
        """files: all that are predicted. outside: folders of images, where a picture would be predicted the next time.

        Raises OutputPathError if a picture would replace a file that vivace did not write; what `HeatMapper` raises.
        """
        self._index = {file: index for index, file in enumerate(files)}
        self._classes = {name: index for index, name in enumerate(predictor.classes)}
        self._folder = HeatMapFolder(folder, files, inputs=[predictor.bundle.folder], outside=outside)
        self.mapper = HeatMapper(predictor.bundle, device=predictor.device)

    def with_pictures(self, rows: Sequence[Prediction], images_NHWC: np.ndarray) -> list[Prediction]:
        """The predictions with the files of their pictures. Raises what `HeatMapFolder.write` and the mapper raise."""
        maps_NHW = self.mapper(images_NHWC, np.array([self._classes[row.label] for row in rows], np.int64))
        return [
            dataclasses.replace(row, heat_map=str(self._folder.write(self._index[row.path], image, [map_HW])))
            for row, image, map_HW in zip(rows, images_NHWC, maps_NHW, strict=True)
        ]
