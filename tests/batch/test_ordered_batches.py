"""Batches of workers that die, come late and out of order are given on once each, in their order."""

from __future__ import annotations

import importlib.util
import io
import itertools
import pickle
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
from streams import fake_predictor, make_images, make_tar

from vivace.batch.cluster import ordered
from vivace.batch.cluster.ordered import Died, Ordered
from vivace.batch.cluster.worker import Answer, Facts
from vivace.batch.files import predict_to
from vivace.batch.outputs import Outputs
from vivace.batch.pipeline import Batch, decoded, outcomes_of
from vivace.batch.run import predict_stream
from vivace.cli import main
from vivace.errors import ConfigError, DataError, MissingExtra, VivaceError
from vivace.sources import shards
from vivace.sources.items import Item, NotHere, file_item
from vivace.sources.shards import tar_items

FACTS = Facts("eager", "fp32", "cpu", 1, "here")


@dataclass
class Fakes:
    """Workers of this process. They answer in random order; what `dies` names takes its worker with it."""

    predictor: Any = None
    seed: int = 0
    dies: float = 0.0
    """How likely a worker dies of a call."""
    poison: str = ""
    """The name of an image that every worker dies of."""
    facts: list[Facts] = field(default_factory=list)
    """Of the workers in their order; then FACTS."""
    opens: Answer | None = None
    sees_files: bool = True
    alive: set[int] = field(default_factory=set)
    asked: dict[Any, Any] = field(default_factory=dict)
    most: int = 0
    """Batches that were out at a time."""
    num_given: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.num_started = 0

    def start(self) -> tuple[int, Any]:
        worker, self.num_started = self.num_started, self.num_started + 1
        self.alive.add(worker)
        facts = self.facts.pop(0) if self.facts else FACTS
        return worker, self._ticket(worker, self.opens or Answer(facts=facts))

    def classify(self, worker: int, items: list[Item], *, small: bool) -> Any:
        return self._ticket(worker, (items, small))

    def _ticket(self, worker: int, what: Any) -> Any:
        self.num_given += 1
        ticket = (worker, self.num_given)
        self.asked[ticket] = what
        self.most = max(self.most, sum(isinstance(what, tuple) for what in self.asked.values()))
        return ticket

    def wait(self, tickets: list[Any], seconds: float) -> list[Any]:
        return self.rng.sample(tickets, self.rng.randint(1, len(tickets))) if tickets else []

    def answer(self, ticket: Any) -> Answer:
        what = self.asked.pop(ticket)
        worker = ticket[0]
        if worker not in self.alive:
            raise Died("it is dead")
        if isinstance(what, Answer):
            return what
        items, small = what
        if self.rng.random() < self.dies or self.poison in [item.name for item in items]:
            self.alive.discard(worker)
            raise Died("it was killed")
        if not self.sees_files and any(isinstance(item.content, str) for item in items):
            return Answer(not_here=True)
        if self.predictor is None:
            return Answer(batch=Batch([], [item.name for item in items], {}))  # type: ignore[arg-type]
        pixels = decoded(items, self.predictor.bundle.preprocess.load)
        found = outcomes_of(items, pixels, self.predictor, 2, small=small)
        return Answer(batch=Batch([], found.outcomes, {}))

    def stop(self, worker: int) -> None:
        self.alive.discard(worker)


def items(count: int) -> list[Item]:
    return [Item(f"{index}", b"", "") for index in range(count)]


def names(fakes: Fakes, source: Any, *, workers: int = 3) -> list[str]:
    over = Ordered(fakes, workers, 2)
    over.begin()
    found = []
    for batch in over.batches(source):
        assert [item.name for item in batch.items] == batch.outcomes
        found += batch.outcomes
    over.close()
    assert not fakes.alive
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_image_comes_once_in_its_order_whoever_dies(seed: int) -> None:
    fakes = Fakes(seed=seed, dies=0.1)
    assert names(fakes, items(101)) == [str(index) for index in range(101)]


def test_workers_do_die_in_that_test() -> None:
    started = 0
    for seed in range(30):
        fakes = Fakes(seed=seed, dies=0.1)
        names(fakes, items(101))
        started += fakes.num_started - 3
    assert started > 60


def test_few_batches_are_out_at_a_time() -> None:
    taken = 0

    def counted() -> Iterator[Item]:
        nonlocal taken
        for item in items(1000):
            taken += 1
            yield item

    fakes = Fakes()
    over = Ordered(fakes, 2, 2)
    over.begin()
    batches = over.batches(counted())
    next(batches)
    # 4 batches of 2 images for each of 2 workers
    assert taken <= 16
    assert sum(len(batch.items) for batch in batches) == 998
    assert fakes.most <= 4


def test_images_that_every_worker_dies_of_are_named() -> None:
    fakes = Fakes(poison="7")
    with pytest.raises(VivaceError, match=r"workers die of these images, 5 times so far: 6 to 7 .*`batch_size`"):
        names(fakes, items(20))


def test_workers_that_never_start_end_the_run() -> None:
    fakes = Fakes()
    fakes.alive = set()
    fakes.start = lambda: (0, fakes._ticket(0, FACTS))  # type: ignore[method-assign]
    with pytest.raises(VivaceError, match="workers die before they are ready: it is dead"):
        names(fakes, items(3))


def test_without_a_worker_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "START_SECONDS", 0.0)
    fakes = Fakes()
    fakes.wait = lambda tickets, seconds: []  # type: ignore[method-assign]
    with pytest.raises(VivaceError, match="no worker was ready within 0 s"):
        names(fakes, items(3))


def test_an_error_of_a_worker_is_raised_as_it_was() -> None:
    fakes = Fakes(opens=Answer(error=("ConfigError", "`threads` is odd: got 3. Give 2.")))
    with pytest.raises(ConfigError, match="`threads` is odd: got 3"):
        names(fakes, items(3))


def test_workers_that_compute_otherwise_are_refused() -> None:
    other = Facts("eager", "bf16", "cpu", 2, "there")
    with pytest.raises(ConfigError, match=r"workers differ: .* by eager, fp32, cpu, .* by eager, bf16, cpu"):
        names(Fakes(facts=[FACTS, other, FACTS], seed=1), items(50))
    # each has a GPU of its own
    cards = [Facts("eager", "bf16", f"cuda:{index}", 2, "there") for index in range(30)]
    assert len(names(Fakes(facts=cards), items(5))) == 5


def test_what_was_found_before_a_source_fails_has_its_rows() -> None:
    def failing() -> Iterator[Item]:
        yield from items(5)
        raise DataError("the list ends")

    over = Ordered(Fakes(), 2, 2)
    over.begin()
    batches = over.batches(failing())
    found = [item.name for batch in itertools.islice(batches, 3) for item in batch.items]
    with pytest.raises(DataError, match="the list ends"):
        next(batches)
    assert found == ["0", "1", "2", "3", "4"]


class Engine:
    """What a stream asks of an engine, with fakes for workers."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes, self.workers, self.threads = fakes, 3, 2

    def begin(self, predictor: Any, *, topk: int, features: bool) -> Facts:
        self.over = Ordered(self.fakes, 3, predictor.batch_size)
        return self.over.begin()

    def batches(self, found: Any, *, resumed: bool) -> Any:
        return self.over.batches(found, resumed=resumed)

    @property
    def num_restarts(self) -> int:
        return self.over.num_restarts


@pytest.mark.parametrize("sees_files", [True, False], ids=["files are seen", "bytes are sent"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_file_is_that_of_this_process(tmp_path: Path, suffix: str, sees_files: bool) -> None:
    images = make_images(tmp_path / "images", 41, damaged=(3, 17))
    sources = [images, tmp_path / "missing.png"]
    if sees_files:
        contents = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
        sources.append(make_tar(tmp_path / "shard.tar", contents))
    paths = [str(path) for path in sources]
    alone = predict_stream(
        fake_predictor(tmp_path / "bundle"), paths, topk=2, outputs=Outputs(tmp_path / f"alone.{suffix}")
    )
    fakes = Fakes(fake_predictor(tmp_path / "bundle"), seed=5, dies=0.1, sees_files=sees_files)
    engine: Any = Engine(fakes)
    many = predict_stream(fakes.predictor, paths, topk=2, outputs=Outputs(tmp_path / f"many.{suffix}"), engine=engine)
    assert (many.num_images, many.num_failures) == (alone.num_images, alone.num_failures)
    assert (many.num_workers, many.num_restarts) == (3, fakes.num_started - 3)
    assert many.num_restarts > 0
    assert (tmp_path / f"many.{suffix}").read_bytes() == (tmp_path / f"alone.{suffix}").read_bytes()


class AsRay(pickle.Pickler):
    """Takes methods apart as cloudpickle does: the function of the class, and the object, which may become another."""

    def reducer_override(self, value: Any) -> Any:
        return (MethodType, (value.__func__, value.__self__)) if isinstance(value, MethodType) else NotImplemented


def test_a_tar_is_opened_again_where_it_is_the_same(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "a.tar", {"0.png": b"first", "1.png": b"second"})
    buffer = io.BytesIO()
    AsRay(buffer).dump(list(tar_items(str(shard), [])))
    sent = buffer.getvalue()
    read = [item.content.read() for item in pickle.loads(sent)]
    assert read == [b"first", b"second"]
    later = pickle.loads(sent)
    shard.rename(tmp_path / "b.tar")
    # another process has not opened it yet
    shards._opened_again.cache_clear()
    with pytest.raises(NotHere):
        later[0].content.read()
    make_tar(shard, {"0.png": b"other, and longer than a block" * 100})
    with pytest.raises(NotHere):
        later[1].content.read()


def test_a_worker_says_which_file_it_does_not_have(tmp_path: Path) -> None:
    from vivace.batch.cluster.worker import _here

    path = tmp_path / "0.png"
    path.write_bytes(b"no image")
    item = file_item(str(path))
    assert len(_here([item], lambda _: "pixels")) == 1
    path.write_bytes(b"another image")
    with pytest.raises(NotHere):
        _here([item], lambda _: "pixels")


def test_without_ray_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    images = make_images(tmp_path / "images", 3, damaged=())
    with pytest.raises(MissingExtra, match=r"the engine ray needs ray, .* pip install 'vivace\[ray\]'"):
        predict_to(tmp_path / "bundle", images, tmp_path / "out.csv", engine="ray")
    with pytest.raises(ConfigError, match="`workers` goes with `engine='ray'`: got 3 without it"):
        predict_to(tmp_path / "bundle", images, tmp_path / "out.csv", workers=3)
    monkeypatch.delenv("VIVACE_TRACEBACK")
    out = str(tmp_path / "out.csv")
    assert main(["predict", str(tmp_path / "bundle"), str(images), "--out", out, "--ray-address", "a:1"]) == 2
    assert "--ray-address goes with --engine ray" in capsys.readouterr().err
    assert main(["predict", "bundle", str(images), "--engine", "ray", "--heat-maps", "maps", "--out", out]) == 2
    assert "--engine ray and --heat-maps exclude each other" in capsys.readouterr().err
