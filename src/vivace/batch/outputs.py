"""What a stream of predictions is written to: a table; each part takes batches, and gets its name at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.batch.parquet import import_pyarrow
from vivace.batch.pipeline import Batch
from vivace.batch.publish import publish
from vivace.batch.rows import FORMATS, Columns
from vivace.batch.unfinished import Unfinished
from vivace.errors import ConfigError, OutputPathError, nearest
from vivace.outputs import check_file
from vivace.predictor import Prediction, Predictor
from vivace.sources.paths import folders_of

if TYPE_CHECKING:
    from vivace.batch.sorting import Sorter

__all__ = ["Outputs", "Table", "check_table"]

# files that identify a folder
FOLDER_KINDS = {("bundle.json",): "a bundle", ("model.json",): "a deployment", ("run.json", "recipe.yaml"): "a run"}


class Outputs:
    """Where predictions go. Make it, and call `check`, before the bundle is opened: what is wrong shows at once.

    out: a table, .csv, .jsonl or .parquet. overwrite: replace it if it is there. sort_into: a folder for links to the
    images, in one for each class. embeddings: a .parquet for features. inputs: files that are read.
    """

    def __init__(
        self,
        out: Path | None = None,
        *,
        overwrite: bool = False,
        sort_into: Path | None = None,
        embeddings: Path | None = None,
        inputs: Iterable[Path] = (),
    ) -> None:
        self.out, self.sort_into, self.embeddings = out, sort_into, embeddings
        self._overwrite, self.inputs = overwrite, list(inputs)
        self.replaced: Path | None = None
        """The table that is there, and is replaced at the end."""
        self.embedder: Predictor | None = None
        """What gives features, where they are written."""
        self._parts: list[Any] = []
        self._sorter: Sorter | None = None

    @property
    def anchor(self) -> Path | None:
        """The output beside which what is unfinished lies; None: nothing is written."""
        return self.out or self.embeddings or self.sort_into

    def check(self, paths: Iterable[str | Path], *, resuming: bool) -> None:
        """Raises ConfigError, MissingExtra and OutputPathError for outputs that can't be written.

        resuming: an output may be there already, from a run that was killed in its last moment.
        """
        if self.out is not None:
            found = check_table(self.out, inputs=self.inputs, overwrite=self._overwrite or resuming)
            self.replaced = self.out if found is not None and self._overwrite else None
        if self.embeddings is not None:
            if self.embeddings.suffix.lower() != ".parquet":
                raise ConfigError(f"`embeddings` is a parquet file: got {self.embeddings.name!r}. Call it X.parquet.")
            if self.out is not None and self.embeddings.absolute() == self.out.absolute():
                raise ConfigError(f"`embeddings` and `out` are one file: got {self.out}. Give two names.")
            import_pyarrow()
            check_file(
                self.embeddings,
                inputs=self.inputs,
                option="`embeddings`",
                overwrite=resuming,
                advice="move it away",
            )
        if self.sort_into is not None:
            from vivace.batch.sorting import check_place

            check_place(self.sort_into, inputs=[*self.inputs, *folders_of(paths)])

    def check_unmade(self) -> None:
        """Raises OutputPathError if an output is there, of which there is no unfinished run."""
        for path in (self.out, self.embeddings, self.sort_into):
            made = path is not None and path.exists() and not (path.is_dir() and not any(path.iterdir()))
            if made and not (self._overwrite and path == self.out):
                raise OutputPathError(
                    f"nothing to resume: {path} is there, and no unfinished run of it. It is finished, or another's: "
                    "give another name, or leave it."
                )

    def made_from(self) -> dict[str, Any]:
        """What of them must be the same for a run to be resumed."""
        return {
            "out": None if self.out is None else self.out.suffix.lower(),
            "embeddings": None if self.embeddings is None else str(self.embeddings.absolute()),
            "sort_into": None if self.sort_into is None else str(self.sort_into.absolute()),
        }

    def begin(self, unfinished: Unfinished, predictor: Predictor, topk: int) -> None:
        """Before the first batch. Raises what `embedder_of` raises."""
        self._unfinished = unfinished
        if self.embeddings is not None:
            from vivace.batch.embeddings import Embeddings, embedder_of

            self.embedder = embedder_of(predictor)
            self._parts.append(Embeddings(self.embeddings, unfinished))
        if self.out is not None:
            # the last to get its name: once it is there, all is
            # a file that came meanwhile was compared with nothing that is read: it is not replaced
            table = Table(self.out, Columns.of(predictor, topk), unfinished, overwrite=self.replaced is not None)
            self._parts.append(table)
        if self.sort_into is not None:
            from vivace.batch.sorting import Sorter

            several = predictor.bundle.info.multi_label
            if not unfinished.state.begun:
                unfinished.state.begun = True
                unfinished.commit()
            self._sorter = Sorter(self.sort_into, predictor.classes, unfinished, several=several)

    def write(self, batch: Batch, number: int) -> None:
        """The outcomes of a batch, whose first item is the item of this number."""
        for part in self._parts:
            part.write(batch)
        if self._sorter is not None:
            for place, (item, outcome) in enumerate(zip(batch.items, batch.outcomes, strict=True)):
                if isinstance(outcome, Prediction):
                    self._sorter.write(number + place, item, outcome)

    def finish(self) -> None:
        """Give the outputs their names. Raises OutputPathError if another file has one meanwhile."""
        self._unfinished.close_files()
        for part in self._parts:
            part.finish()

    def close(self) -> None:
        """No more batches come, whatever happened."""
        if self._sorter is not None:
            self._sorter.close()


@dataclass
class Table:
    """The rows of a table, as they come, and the table at the end."""

    out: Path
    columns: Columns
    unfinished: Unfinished
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.format = FORMATS[self.out.suffix.lower()]
        if not self.unfinished.resumed:
            self.unfinished.append("rows", self.format.head(self.columns))

    def write(self, batch: Batch) -> None:
        """Add a row for each outcome."""
        cells = [self.columns.cells(outcome, as_text=self.format.as_text) for outcome in batch.outcomes]
        self.unfinished.append("rows", self.format.rows(self.columns, cells))

    def finish(self) -> None:
        """Give the table its name. Raises OutputPathError if another file has it meanwhile."""
        rows, convert = self.unfinished.path("rows"), self.format.finish
        if not rows.exists():
            # the process was killed after it got its name
            return
        if convert is None:
            publish(rows, self.out, overwrite=self.overwrite)
        else:
            publish(rows, self.out, overwrite=self.overwrite, make=lambda file: convert(rows, self.columns, file))


def check_table(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> str | None:
    """What a table would replace, or None. Call it before the rows are computed.

    inputs: the files that the rows are computed from. Raises ConfigError for an extension other than .csv, .jsonl and
    .parquet, MissingExtra for parquet without pyarrow, and OutputPathError if the path can't be written, or if the file
    exists (with `overwrite` only if it is part of a bundle, a deployment or a run).
    """
    if (suffix := path.suffix.lower()) not in FORMATS:
        raise ConfigError(
            f"the format is unknown: got {path.name!r}.{nearest(suffix, FORMATS)} Use .csv, .jsonl or .parquet."
        )
    if suffix == ".parquet":
        import_pyarrow()
    found = check_file(path, inputs=inputs, overwrite=overwrite, advice="give `overwrite` to replace it")
    if found is not None:
        _refuse_part(path)
    return found


def _refuse_part(path: Path) -> None:
    """Raise OutputPathError for a file of a bundle, a deployment or a run: naming one is surely a mistake."""
    for folder in path.resolve().parents:
        for names, called in FOLDER_KINDS.items():
            if all((folder / name).is_file() for name in names):
                raise OutputPathError(
                    f"`out` exists already, in the folder of {called}: {path}. Such files are never replaced: give "
                    "another name."
                )
