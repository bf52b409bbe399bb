"""A user's data: any iterable of (inputs, targets), read once, and dealt to choosing and proving."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.acceleration.modules.digests import sample_digests
from vivace.acceleration.modules.signature import Call, Signature, flatten, rebuild
from vivace.errors import DataError, first_line, shown
from vivace.hardware import available_memory_bytes

__all__ = ["Batch", "Batches", "batch_of", "open_sides", "read_batches", "shapes_of_call"]

# samples to choose on; every fourth batch is for it until there are as many
SELECT_SAMPLES = 512
DEAL = 4
# fewer batches are cut into both parts, instead of being dealt whole
MIN_BATCHES = 8
# samples that a proof uses at most: at these a drop of 0.5 points is provable even where 1 % of the answers change
MAX_SAMPLES = 10_000
# of the memory that is there, for batches that were read and are not used yet
MEMORY_SHARE = 0.25
# batches in a row whose samples were all there before: the data repeat themselves
MAX_REPEATED = 100
# what data sets call their labels, in a batch that is a dict
LABELS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Batch:
    """Samples: the call that computes them, and their targets."""

    call: Call
    targets: Any
    """None: there are none."""
    size: int
    counted_B: np.ndarray | None = None
    """bool: the samples that count; others were there before. None: all do."""

    @property
    def num_counted(self) -> int:
        return self.size if self.counted_B is None else int(self.counted_B.sum())

    @property
    def num_bytes(self) -> int:
        tensors = self.call.flatten()[0]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def part(self, first: int, last: int) -> Batch | None:
        """Samples first to last - 1: of all tensors with as many rows as there are samples. None: there are none."""
        tensors, structure = self.call.flatten()
        arguments = [value for value in _arguments(self.call) if isinstance(value, Tensor) and value.ndim]
        if not any(len(tensor) == self.size for tensor in arguments):
            return None
        call = Call.of(structure, [_rows(tensor, self.size, first, last) for tensor in tensors])
        counted_B = None if self.counted_B is None else self.counted_B[first:last]
        return Batch(call, _part_of(self.targets, self.size, first, last), last - first, counted_B)


def _rows(tensor: Tensor, size: int, first: int, last: int) -> Tensor:
    # a copy: what is computed of it may depend on where it lies in memory
    return tensor[first:last].clone() if tensor.ndim and len(tensor) == size else tensor


def _part_of(targets: Any, size: int, first: int, last: int) -> Any:
    if isinstance(targets, np.ndarray) and targets.ndim and len(targets) == size:
        return targets[first:last]
    if isinstance(targets, list | tuple) and len(targets) == size and not any(isinstance(t, Tensor) for t in targets):
        return targets[first:last]
    tensors, structure = flatten(targets)
    return rebuild(structure, [_rows(tensor, size, first, last) for tensor in tensors])


def batch_of(item: Any, signature: Signature, device: torch.device) -> Batch:
    """A batch of what the data yield: (inputs, targets), (inputs,), a tensor, or a dict with or without labels.

    inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments. They are copied to
    `device`, and targets too: some loaders write the next batch into the memory of this one. A Batch is taken as it
    is. Raises DataError.
    """
    if isinstance(item, Batch):
        return item
    inputs, targets = _parted(item)
    if isinstance(inputs, Mapping):
        if not all(isinstance(name, str) for name in inputs):
            raise DataError(f"inputs of a dict are keyword arguments: got the keys {shown(list(inputs))}. Name them.")
        call = signature.call((), inputs)
    elif isinstance(inputs, list | tuple):
        call = signature.call(inputs, {})
    elif isinstance(inputs, Tensor):
        call = signature.call((inputs,), {})
    else:
        raise DataError(
            f"the inputs of a batch are a tensor, a tuple or a dict: got {type(inputs).__name__}. Convert them."
        )
    tensors, structure = call.flatten()
    if not tensors:
        raise DataError("the inputs of a batch hold no tensor. Give a tensor, a tuple or a dict of tensors.")
    size = _size(call, targets)
    if size == 0:
        raise DataError("a batch holds no samples. Leave it out.")
    call = Call.of(structure, [tensor.detach().to(device, copy=True) for tensor in tensors])
    return Batch(call, _copied(targets), size)


def _copied(targets: Any) -> Any:
    if isinstance(targets, Tensor):
        return targets.detach().clone()
    if isinstance(targets, np.ndarray):
        return targets.copy()
    if type(targets) in (list, tuple):
        return type(targets)(_copied(one) for one in targets)
    if type(targets) is dict:
        return {name: _copied(one) for name, one in targets.items()}
    return targets


def _parted(item: Any) -> tuple[Any, Any]:
    """(inputs, targets) of what the data yield."""
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, Mapping):
        name = next((name for name in LABELS if name in item), None)
        return {key: item[key] for key in item if key != name}, None if name is None else item[name]
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return item[0], (item[1] if len(item) == 2 else None)
    got = f"{len(item)} parts" if isinstance(item, tuple | list) else type(item).__name__
    raise DataError(
        f"batches of (inputs, targets) are needed: got {got}. Several inputs are a tuple or dict of their own: "
        "((first, second), targets)."
    )


def _arguments(call: Call) -> list[Any]:
    return [*call.args, *call.kwargs.values()]


def _size(call: Call, targets: Any) -> int:
    """The number of targets, or else of rows of the first tensor, or of tensors in a list."""
    rows = [
        len(value)
        for value in _arguments(call)
        if (isinstance(value, Tensor) and value.ndim)
        or (isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value))
    ]
    target = _num_targets(targets, rows)
    if target is not None and rows and target not in rows and len(set(rows)) == 1:
        raise DataError(f"a batch has {rows[0]} samples and {target} targets. Give a target for each sample.")
    return target if target is not None else rows[0] if rows else 1


def _num_targets(targets: Any, rows: list[int]) -> int | None:
    """Of a tensor its rows; of a list its length, unless it holds a tensor for each of several outputs."""
    if isinstance(targets, list | tuple):
        each = {len(target) if isinstance(target, Tensor) and target.ndim else -1 for target in targets}
        return rows[0] if rows and each == {rows[0]} else len(targets)
    if isinstance(targets, np.ndarray):
        return len(targets) if targets.ndim else None
    return next((len(tensor) for tensor in flatten(targets)[0] if tensor.ndim), None)


def shapes_of_call(batch: Batch) -> list[tuple[int, ...]]:
    """Of each tensor of its call."""
    return [tuple(tensor.shape) for tensor in batch.call.flatten()[0]]


def open_sides(batches: Sequence[Batch], *, any_size: bool) -> list[frozenset[int]]:
    """For each tensor of the first batch's call, the sides that differ between batches; if `any_size`, that of the
    samples too."""
    first = batches[0]
    structure = first.call.flatten()[1]
    alike = [shapes_of_call(batch) for batch in batches if batch.call.flatten()[1] == structure]
    found = []
    for place, shape in enumerate(shapes_of_call(first)):
        others = [shapes[place] for shapes in alike if len(shapes[place]) == len(shape)]
        sides = {side for side in range(len(shape)) if any(other[side] != shape[side] for other in others)}
        found.append(frozenset(sides | ({0} if any_size and shape and shape[0] == first.size else set())))
    return found


class Batches:
    """The data, read once from begin to end: a few batches to choose on, all others to prove on.

    Which samples are which is decided as they are read, and no sample is both. Later batches are read when they are
    proven on, so that no more than a few need to be in memory, and random orders and generators do no harm.
    """

    def __init__(
        self,
        data: Iterable[Any],
        signature: Signature,
        device: torch.device,
        *,
        stop: Callable[[], bool] = lambda: False,
        withheld: frozenset[bytes] = frozenset(),
    ) -> None:
        """stop: whether to stop reading; asked before each batch. withheld: digests of samples that must not count.

        Raises DataError for data without a sample.
        """
        if isinstance(data, str | bytes) or not isinstance(data, Iterable):
            raise DataError(
                f"the data of a module are batches of (inputs, targets): got {shown(data)}. Give a DataLoader, or any "
                "iterable of batches."
            )
        self.one_shot = isinstance(data, Iterator)
        self.num_repeated, self.num_withheld = 0, 0
        """Samples that do not count: they were there before, or are in `withheld`."""
        self._seen: set[bytes] = set()
        self._withheld, self._stop = withheld, stop
        self._read = self._distinct(data, signature, device)
        first = next(self._read, None)
        if first is None and self.num_withheld:
            raise DataError(
                "all samples of the data are in `calibration`: what was fitted to them proves nothing on them. Give "
                "others to calibrate on, or leave it out."
            )
        if first is None:
            raise DataError("the data hold no batch. Give at least two samples.")
        self.first = first

    def _distinct(self, data: Iterable[Any], signature: Signature, device: torch.device) -> Iterator[Batch]:
        """Batches with samples that were not there before: what is repeated proves nothing."""
        repeated = 0
        for batch in read_batches(data, "the data", signature, device):
            batch = dataclasses.replace(batch, counted_B=self._counted(sample_digests(batch.call, batch.size)))
            repeated = 0 if batch.num_counted else repeated + 1
            if batch.num_counted:
                yield batch
            elif repeated == MAX_REPEATED:
                return

    def _counted(self, digests: list[bytes]) -> np.ndarray | None:
        """Whether each sample is new and none of those withheld; None: all are."""
        found = np.ones(len(digests), bool)
        for place, digest in enumerate(digests):
            if digest in self._withheld:
                self.num_withheld += 1
                found[place] = False
            elif digest in self._seen:
                self.num_repeated += 1
                found[place] = False
            self._seen.add(digest)
        return None if found.all() else found

    def notices(self) -> list[str]:
        """What is to be said of what was read."""
        found = []
        if self.num_repeated:
            found.append(f"{self.num_repeated:,} samples were there before: each counts once")
        if self.num_withheld:
            found.append(f"{self.num_withheld:,} samples are in `calibration`, which was fitted to them: none counts")
        if self.one_shot:
            found.append("the data are an iterator, which was read once: it may be at its end now")
        return found

    def deal(self, accepts: Callable[[Batch], bool]) -> tuple[list[Batch], Iterator[Batch]]:
        """(batches to choose on, batches to prove on), with no sample in both; the latter are read as they are used.

        accepts: whether the module takes a batch of this size; asked for parts of batches. Raises DataError if there
        are too few samples for both.
        """
        held, num_select, num_bytes = [self.first], self.first.num_counted, self.first.num_bytes
        limit = MEMORY_SHARE * (available_memory_bytes() or 2**33)
        ended = False
        while num_select < SELECT_SAMPLES and num_bytes < limit and not self._stop():
            batch = next(self._read, None)
            if batch is None:
                ended = True
                break
            num_select += batch.num_counted if len(held) % DEAL == 0 else 0
            num_bytes += batch.num_bytes
            held.append(batch)
        if not ended and len(held) == 1:
            # out of time already: is there another one to prove on?
            following = list(itertools.islice(self._read, 1))
            held, ended = held + following, not following
        if ended and len(held) < MIN_BATCHES:
            return self._cut(held, accepts)
        chosen, others = held[::DEAL], [batch for place, batch in enumerate(held) if place % DEAL]
        return chosen, itertools.chain(others, self._read)

    def _cut(self, held: list[Batch], accepts: Callable[[Batch], bool]) -> tuple[list[Batch], Iterator[Batch]]:
        """Of a few batches: the first quarter of each, and the rest of each."""
        chosen, others = [], []
        for batch in held:
            cut = max(1, batch.size // DEAL)
            one, other = (batch.part(0, cut), batch.part(cut, batch.size)) if batch.size > 1 else (None, None)
            if one is None or other is None or not (accepts(one) and accepts(other)):
                break
            chosen.append(one)
            others.append(other)
        else:
            return chosen, iter(others)
        if len(held) < 2:
            raise DataError(
                f"the data hold one batch of {held[0].size} that can't be cut in two: one part is to choose on, the "
                "other to prove on. Give several batches."
            )
        return held[::DEAL], iter([batch for place, batch in enumerate(held) if place % DEAL])


def read_batches(data: Iterable[Any], name: str, signature: Signature, device: torch.device) -> Iterator[Batch]:
    """What the user's iterable yields, as `batch_of`. Raises DataError for whatever it raises."""
    try:
        for item in data:
            yield batch_of(item, signature, device)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{name} could not be read: {_cause(error)}. Batches of (inputs, targets) are needed."
        ) from error


def _cause(error: Exception) -> str:
    """In one line; of what a worker of a DataLoader raised, what it was there."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].strip()
    return f"{type(error).__name__}: {first_line(error)}"
