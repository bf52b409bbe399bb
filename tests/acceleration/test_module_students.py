"""With `train`, smaller networks learn to answer like a module, and compete with its programs by the same proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_modules import SPEEDS, accelerate, made, tell_speeds
from small_modules import Net as SmallNet
from torch import Tensor, nn

import vivace
from vivace.acceleration.modules import replacing as replacing_module
from vivace.acceleration.modules import students as students_module
from vivace.acceleration.modules.classifiers import ImageClassifier
from vivace.acceleration.modules.distilling import Limits, distil
from vivace.acceleration.modules.signature import Signature
from vivace.acceleration.modules.students import proposed
from vivace.acceleration.modules.training_images import read_training_images
from vivace.bundle import load_bundle
from vivace.errors import DataError
from vivace.runtimes.loading import load_runtime


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_speeds(monkeypatch)
    # quantizing three networks takes longer than all the rest
    monkeypatch.delitem(SPEEDS, "openvino int8")
    # small ones for a short time, which are good enough here
    monkeypatch.setattr(students_module, "SMALL_WIDTHS", (((24, 48, 48), 1), ((16, 32, 48), 1)))
    monkeypatch.setattr(replacing_module, "MIN_EPOCHS", 10)
    monkeypatch.setattr(replacing_module, "MAX_EPOCHS", 10)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """images_NCHW of 8 px, normalised, and labels_N."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return (torch.tensor(found.images, dtype=torch.float32)[:, None] / 16 - 0.5) / 0.25, torch.tensor(found.target)


class Net(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images).amax((2, 3)))


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class Rich(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Output:
        return Output(self.net(pixel_values))


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> Net:
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
        for rows in (*torch.randperm(900).split(50), *torch.randperm(900).split(50), *torch.randperm(900).split(50)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


def batches(digits: tuple[Tensor, Tensor], first: int, last: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(values[first:last].split(size) for values in digits), strict=True))


def untrained(student: Any, *_: Any, **__: Any) -> int:
    """In place of its training."""
    student.network.eval()
    return 0


def test_a_student_replaces_the_module_where_it_is_faster_and_proven(digits: Any, trained: Net, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    result = accelerate(trained, batches(digits, 900, 1797), train=batches(digits, 0, 900))
    assert (result.status, result.network.split(",")[0]) == ("accelerated", "fast_cnn")
    assert result.drop <= result.drop_bound <= 5
    # of the students that are as fast as each other here
    assert result.speedup > 5
    assert result.network in result.reason
    assert torch.equal(torch.get_rng_state(), before)
    assert trained.head.weight.requires_grad
    images, labels = (values[900:] for values in digits)
    with torch.no_grad():
        logits = result.module(images)
    assert float((logits.argmax(1) == labels).float().mean()) > result.score_before - 0.05
    assert not torch.allclose(logits, trained(images), atol=1e-2)
    # the original is still there for what the program does not take
    assert torch.equal(result.module(images[:2].requires_grad_()), trained(images[:2]))
    folder = result.save(tmp_path / "saved", mean=0.5, std=0.25)
    info = load_bundle(folder).info
    assert (info.runtime, info.precision) == (result.runtime, result.precision)
    pixels = ((images * 0.25 + 0.5) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    cpu = torch.device("cpu")
    found = load_runtime(info.runtime, load_bundle(folder), device=cpu, precision=info.precision)(pixels)
    assert float(np.mean(found.argmax(1) == logits.argmax(1).numpy())) > 0.99
    assert {path.name for path in folder.iterdir()} >= {"reference.onnx", "acceleration.json"}


def test_its_outputs_have_the_structure_of_the_module_s(
    monkeypatch: pytest.MonkeyPatch, digits: Any, trained: Net
) -> None:
    monkeypatch.setattr(students_module, "SMALL_WIDTHS", students_module.SMALL_WIDTHS[:1])
    data = [({"pixel_values": images}, labels) for images, labels in batches(digits, 900, 1797)]
    train = ({"pixel_values": images, "labels": labels} for images, labels in batches(digits, 0, 900))
    result = accelerate(Rich(trained), data, train=train)
    assert result.network
    images = digits[0][:5]
    found = result.module(pixel_values=images)
    assert (type(found), found.loss, found.logits.shape) == (Output, None, (5, 10))
    assert torch.equal(found.logits, result.module(images).logits)


def test_a_student_that_loses_too_much_is_not_built(monkeypatch: pytest.MonkeyPatch, digits: Any, trained: Net) -> None:
    monkeypatch.setattr(replacing_module, "distil", untrained)
    result = accelerate(trained, batches(digits, 900, 1797), train=batches(digits, 0, 900))
    assert (result.network, result.accelerated) == ("", True)
    (student,) = [one for one in result.candidates if "fast_cnn" in one.name]
    assert "points on the samples to choose on" in student.reason


def test_images_of_the_data_are_not_trained_on(monkeypatch: pytest.MonkeyPatch, digits: Any, trained: Net) -> None:
    monkeypatch.setattr(replacing_module, "distil", untrained)
    data = batches(digits, 900, 1797)
    with pytest.raises(DataError, match="`train` holds images of the data, which choose and prove"):
        accelerate(trained, data, train=data)
    # one among those that are only read to prove
    late = [(batch[0][:1], batch[1][:1]) for batch in data[-1:]]
    result = accelerate(trained, data, train=[*batches(digits, 0, 900), *late], max_drop=10)
    assert "1 batches hold images of `train`: nothing is proven on them" in result.warnings
    assert result.num_certify_samples < 700


class Pair(Net):
    def forward(self, images: Tensor) -> Any:
        features = self.body(images).amax((2, 3))
        return {"logits": self.head(features), "features": features}


class Heights(Net):
    def forward(self, images: Tensor) -> Any:
        return self.body(images).amax(3)


class OneSize(Net):
    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images.view(64, 1, 8, 8)).amax((2, 3)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Pair, "`train` is not used: its outputs hold more tensors than logits"),
        (Heights, "`train` is not used: only image classifiers are distilled; it returns no logits [64, classes]"),
        (OneSize, "`train` is not used: it takes one batch size alone"),
    ],
)
def test_where_train_is_not_used_the_reason_is_said(kind: type[Net], reason: str, digits: Any) -> None:
    data = [(images, None) for images, _ in batches(digits, 900, 1796)]
    result = accelerate(kind(8).eval(), data, train=batches(digits, 0, 64), metric="agreement")
    assert [warning for warning in result.warnings if warning.startswith(reason)]
    assert not [one for one in result.candidates if "fast_cnn" in one.name]


CLASSIFIER = ImageClassifier(channels=1, height=8, width=8, num_classes=10, place=0, is_alone=True, sets=False)


def read(train: Any, classifier: ImageClassifier = CLASSIFIER, *, stop: Callable[[], bool] = lambda: False) -> Any:
    return read_training_images(train, classifier, Signature(Net()), stop=stop)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "`train` holds no batch"),
        ([torch.zeros(4, 1, 9, 9)], r"`train` holds images \[1, 9, 9\], and the data \[1, 8, 8\]"),
        ([torch.zeros(4, 8)], r"`train` holds other batches than the data: its input is no float \[batch"),
        (iter([torch.zeros(4, 1, 8, 8), 3]), r"`train`: batches of \(inputs, targets\) are needed: got int"),
    ],
)
def test_batches_to_train_on_that_are_refused(train: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(train)


def test_a_loader_that_fails_is_the_data_s_fault() -> None:
    def failing() -> Iterator[Tensor]:
        yield torch.zeros(4, 1, 8, 8)
        raise OSError("no disk")

    with pytest.raises(DataError, match="`train` could not be read: OSError: no disk"):
        read(failing())


def test_reading_stops_in_time_and_labels_are_taken_where_all_have_one(digits: Any) -> None:
    parts = batches(digits, 0, 256)
    found = read(parts)
    assert (len(found), found.labels_N.tolist(), found.is_cut) == (256, digits[1][:256].tolist(), False)
    assert torch.allclose(found.images_NCHW.float(), digits[0][:256], atol=2e-3)
    cut = read(parts, stop=lambda: True)
    assert (len(cut), cut.is_cut) == (64, True)
    assert read([*parts, torch.zeros(4, 1, 8, 8)]).labels_N is None
    # of another kind than class indices
    assert read([(images, labels + 0.5) for images, labels in parts]).labels_N is None


@pytest.mark.parametrize("sets", [False, True])
def test_a_student_learns_the_answers_of_its_teacher_without_labels(sets: bool, digits: Any, trained: Net) -> None:
    torch.manual_seed(0)
    images, others = read([digits[0][:800]]), digits[0][900:]
    (student, *_) = proposed(dataclasses.replace(CLASSIFIER, sets=sets), *images.statistics(), float("inf"))

    @torch.no_grad()
    def agreement() -> float:
        return float((student.network.eval()(others).argmax(1) == trained(others).argmax(1)).float().mean())

    assert agreement() < 0.3
    limits = Limits(epochs=10, seconds=60.0)
    seen = distil(student, images, trained, limits, torch.device("cpu"), sets=sets)
    assert seen == 10 * 768
    assert agreement() > 0.6


def test_training_ends_with_its_time(digits: Any) -> None:
    images = read([digits[0][:800]])
    (student, *_) = proposed(CLASSIFIER, *images.statistics(), float("inf"))
    limits = Limits(epochs=10**6, seconds=0.2)
    assert distil(student, images, Net(8).requires_grad_(False), limits, torch.device("cpu"), sets=False) < 10**6
    assert not student.network.training


@pytest.mark.parametrize(("side", "channels"), [(3, 1), (8, 3), (28, 1), (32, 4), (65, 3), (96, 1), (224, 3)])
def test_there_are_students_for_any_size_and_channels(side: int, channels: int) -> None:
    shape = {"channels": channels, "height": side, "width": side + 5}
    classifier = dataclasses.replace(CLASSIFIER, **shape)
    students = proposed(classifier, torch.zeros(channels), torch.ones(channels), float("inf"))
    assert len({student.name for student in students}) == len(students) >= 1
    for student in students[:3]:
        logits = student.network.eval()(torch.zeros(2, channels, side, side + 5))
        assert logits.shape == (2, 10)
        assert student.flops == 0


def test_the_first_to_train_starts_from_published_weights_where_some_do_and_the_second_is_the_fastest() -> None:
    (made_up, *_) = proposed(CLASSIFIER, torch.zeros(1), torch.ones(1), float("inf"))

    def named(name: str, *, from_scratch: bool = True) -> Any:
        return dataclasses.replace(made_up, name=name, from_scratch=from_scratch)

    def names(*students: Any) -> list[str]:
        return [student.name for student in replacing_module.chosen(list(enumerate(students)))]

    slow, fast, published = named("slow"), named("fast"), named("published", from_scratch=False)
    assert names() == []
    assert names(slow) == ["slow"]
    assert names(slow, named("between"), fast) == ["slow", "fast"]
    assert names(slow, published, fast) == ["published", "fast"]
    assert names(slow, fast, published) == ["published"]


def test_no_student_has_as_many_operations_as_the_module() -> None:
    assert proposed(CLASSIFIER, torch.zeros(1), torch.ones(1), 1.0) == []


def test_of_a_module_with_few_operations_none_is_trained() -> None:
    module = made(SmallNet)
    data = [torch.randn(32, 3, 12, 12) for _ in range(10)]
    said: list[str] = []
    result = vivace.accelerate(
        module, data, train=[torch.randn(64, 3, 12, 12)], max_drop=5, on_message=said.append, within="30s"
    )
    assert not result.network
    assert "no smaller networks: none has fewer operations" in said
