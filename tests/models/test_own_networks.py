"""Networks of the user's own: what may be passed, what is made of it, and that names alone never run code."""

from __future__ import annotations

import copy
import functools
import linecache
import random
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vivace.errors import ConfigError, ModelError
from vivace.models.config import ModelConfig
from vivace.models.own.fitting import takes_contiguous, to_channels_last
from vivace.models.own.given import OwnNetwork, own_network
from vivace.models.own.names import check_own_arguments, check_own_name, is_own, own_name
from vivace.models.parts import head_parameters, layer_groups


class Small(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images).mean((2, 3)))


class Mapped(Small):
    def forward(self, images: Tensor) -> Any:
        return {"logits": super().forward(images), "other": images}


class Named(Small):
    def forward(self, images: Tensor) -> Any:
        return types.SimpleNamespace(logits=super().forward(images))


class OnlyInTraining(Small):
    """As Inception: an object in training, a tensor in evaluation."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return types.SimpleNamespace(logits=logits, aux_logits=logits) if self.training else logits


class Flattening(nn.Module):
    """Flattens by .view(), which channels_last breaks."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.deeper = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * image_size**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.deeper(self.conv(images)).view(len(images), -1))


def network(model: Any) -> OwnNetwork:
    found = own_network(model)
    assert found is not None
    return found


def built(model: Any, num_classes: int = 5, *, channels: int = 3, size: int = 16, **arguments: Any) -> nn.Module:
    return network(model).build(num_classes, in_channels=channels, size=size, arguments=arguments)


def on_channels_last(model: nn.Module, count: int = 2, size: int = 16) -> Tensor:
    images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return to_channels_last(copy.deepcopy(model)).eval()(images)


def small(num_classes: int) -> nn.Module:
    return Small(num_classes)


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        (Small, "class", "own/test_own_networks.py:Small"),
        (small, "function", "own/test_own_networks.py:small"),
        (functools.partial(Small, width=4), "function", "own/test_own_networks.py:Small"),
        (lambda num_classes: Small(num_classes), "function", "own/test_own_networks.py:<lambda>"),
        (Small(5), "instance", "own/test_own_networks.py:Small"),
        (Mapped, "class", "own/test_own_networks.py:Mapped"),
        (Named, "class", "own/test_own_networks.py:Named"),
        (OnlyInTraining, "class", "own/test_own_networks.py:OnlyInTraining"),
    ],
)
def test_classes_functions_and_instances_give_logits(model: Any, kind: str, name: str) -> None:
    found = network(model)
    assert (found.kind, found.name) == (kind, name)
    check_own_name(found.name)
    assert found.sha256 is not None
    model = built(model)
    for training in (True, False):
        assert model.train(training)(torch.randn(3, 3, 16, 16)).shape == (3, 5)
        assert copy.deepcopy(model)(torch.randn(3, 3, 16, 16)).shape == (3, 5)
    # the names are those of the user's own class
    assert "head.weight" in model.state_dict()


def test_images_decide_what_constructors_are_passed() -> None:
    def by_other_names(num_classes: int, in_chans: int, img_size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_classes))

    def by_keywords(**options: Any) -> nn.Module:
        assert set(options) == {"num_classes"}
        return Small(**options)

    def without_keyword(**options: Any) -> nn.Module:
        # as of a function whose keywords are somebody else's
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**2, 5, **options))

    assert built(by_other_names, 4, channels=1, size=8)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert built(by_keywords, 4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert built(without_keyword, 5)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert built(Small, 5, width=3).get_parameter("head.weight").shape == (5, 3)


def test_a_network_that_flattens_by_view_gets_contiguous_images() -> None:
    model = built(Flattening)
    assert takes_contiguous(model)
    assert takes_contiguous(copy.deepcopy(model))
    assert on_channels_last(model).shape == (2, 5)
    assert not takes_contiguous(built(Small))
    assert next(to_channels_last(built(Small)).parameters()).is_contiguous(memory_format=torch.channels_last)


def test_lazy_layers_get_their_shapes() -> None:
    model = built(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)))
    assert model.state_dict()["1.weight"].shape == (5, 768)


def test_an_instance_is_copied_with_its_weights() -> None:
    instance = Small(5).eval()
    expected = instance.head.weight.detach().clone()
    found = network(instance)
    with torch.no_grad():
        instance.head.weight.zero_()
    first = found.build(5, in_channels=3, size=16, arguments={})
    assert torch.equal(first.state_dict()["head.weight"], expected)
    with torch.no_grad():
        first.get_parameter("head.weight").zero_()
    again = found.build(5, in_channels=3, size=16, arguments={})
    assert torch.equal(again.state_dict()["head.weight"], expected)
    with pytest.raises(ModelError, match=r"model\.arguments would be ignored: got width and an instance"):
        found.build(5, in_channels=3, size=16, arguments={"width": 3})


def test_the_source_of_a_class_in_a_notebook_is_known_by_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(name: str, text: str) -> Any:
        # as Jupyter does: the text is in linecache alone, and __main__ has no file
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
        space: dict[str, Any] = {"__name__": "__main__", "nn": nn}
        exec(compile(text, name, "exec"), space)
        return own_network(space["Net"])

    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    text = "class Net(nn.Module):\n    def forward(self, images):\n        return images\n"
    first, same = cell("/tmp/ipykernel_1/1.py", text), cell("/tmp/ipykernel_1/2.py", text)
    other = cell("/tmp/ipykernel_1/3.py", text.replace("return images", "return -images"))
    assert first.name == "own/__main__:Net"
    assert first.sha256 is not None
    assert (first.sha256 == same.sha256, first.sha256 == other.sha256) == (True, False)


def test_building_prints_to_stderr_and_leaves_the_random_generators(capsys: pytest.CaptureFixture[str]) -> None:
    def seeding(num_classes: int) -> nn.Module:
        print("building")
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        return Small(num_classes)

    state, python, drawn = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]
    built(seeding)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    now = np.random.get_state(legacy=False)["state"]
    assert np.array_equal(now["key"], drawn["key"])
    assert now["pos"] == drawn["pos"]
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "building\n")


class Locked(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.lock = threading.Lock()


class Odd(Small):
    """What `what` says is wrong with it."""

    def __init__(self, num_classes: int, what: str = "") -> None:
        super().__init__(num_classes)
        self.what = what
        if what == "half":
            self.half()
        if what == "frozen":
            self.requires_grad_(False)
        if what == "raises":
            raise RuntimeError("no such luck")

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return {
            "squeezed": logits.squeeze(),
            "tuple": (logits, images),
            "unnamed": {"scores": logits},
            "detached": logits.detach(),
            "summed": logits.sum(),
            "classes": logits.argmax(1),
        }.get(self.what, logits)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Small(3), r"gives 3 logits, and the data has 5 classes\. Give its constructor a parameter num_classes"),
        (lambda: Small(7), "gives 7 logits, and the data has 5 classes"),
        (Locked, r"Locked can't be copied: TypeError: .*lock.*Keep what copy\.deepcopy can't copy"),
        (Small, r"takes no argument 'widht'\. Did you mean 'width'\? It takes: width"),
        (lambda num_classes: 5, "gives no network: got int"),
        (functools.partial(Odd, what="raises"), "can't be built: RuntimeError: no such luck"),
        (functools.partial(Odd, what="half"), r"has weights of float16: .*Give it in float32"),
        (functools.partial(Odd, what="frozen"), "has nothing to train: got 6 parameters, none of which requires"),
        (nn.Flatten(), "has nothing to train: got 0 parameters"),
        (functools.partial(Odd, what="squeezed"), r"gives \[5\] for one image, .*squeeze\(\) removes the batch too"),
        (functools.partial(Odd, what="tuple"), "gives no logits: got a tuple of 2"),
        (functools.partial(Odd, what="unnamed"), "gives no logits: got a mapping with scores"),
        (functools.partial(Odd, what="detached"), "can't be trained: RuntimeError: .*without detach"),
        (functools.partial(Odd, what="summed"), r"gives a tensor of \[\], torch.float32, for 2 images"),
        (lambda num_classes: nn.Linear(7, num_classes), r"does not take images \[2, 3, 16, 16\], float: RuntimeError"),
    ],
)
def test_what_can_not_be_trained_is_refused_with_the_reason(model: Any, message: str) -> None:
    arguments = {"widht": 3} if model is Small else {}
    with pytest.raises(ModelError, match=message):
        built(model, **arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (5, "`model` is no network: got int"),
        (dict, r"got the class dict\. Give a class of torch\.nn\.Module"),
        (Locked(5), "the network can't be copied: Locked: TypeError"),
    ],
)
def test_what_is_no_network_is_refused_at_once(model: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        own_network(model)


def test_a_softmax_at_the_end_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    built(lambda num_classes: nn.Sequential(Small(num_classes), nn.Softmax(1)))
    assert "seems to end in a softmax" in capsys.readouterr().err


def test_attributes_that_are_called_like_methods_of_ours_are_left_alone() -> None:
    class Parts(Small):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.parts = nn.ModuleList()
            self.group_matcher = self.get_classifier = 5

    model = built(Parts)
    assert head_parameters(model) == ["head.weight", "head.bias"]
    assert [group[0] for group in layer_groups(model)] == ["body.0.weight", "head.weight"]


# files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a network, what it imports, and a file that must not be run."""
    (tmp_path / "own_blocks.py").write_text("WIDTH = 4\n")
    (tmp_path / "nets.py").write_text(
        "import own_blocks\nfrom torch import nn\nprint('imported')\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes, in_channels=3, width=own_blocks.WIDTH):\n"
        "        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(width, num_classes))\n\n\n"
        "class Outer:\n    Inner = Net\n\n\nVALUE = 5\n"
    )
    return tmp_path


def test_a_file_is_imported_with_what_lies_beside_it_and_nothing_stays_in_the_path(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    for name in ("Net", "Outer.Inner"):
        found = network(f"{project / 'nets.py'}:{name}")
        assert (found.name, found.kind, found.module) == ("own/nets.py:Net", "class", "nets.py")
        assert found.given == f"{project / 'nets.py'}:{name}"
        model = found.build(5, in_channels=1, size=16, arguments={"width": 6})
        assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert sys.path == before
    assert "nets" not in sys.modules
    assert capsys.readouterr().out == ""
    # an edited file is run anew
    (project / "nets.py").write_text("from torch import nn\nNet = lambda num_classes: nn.Linear(1, num_classes)\n")
    assert network(f"{project / 'nets.py'}:Net").sha256 != found.sha256
    sys.modules.pop("own_blocks")


def test_a_file_of_a_package_may_import_relatively(project: Path) -> None:
    package = project / "own_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "layers.py").write_text("from torch.nn import Linear as Net\n")
    (package / "model.py").write_text("from .layers import Net\n")
    before = list(sys.path)
    assert network(f"{package / 'model.py'}:Net").make is nn.Linear
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("none.py:Net", None, r"the file of the network can't be read: .*none\.py \(No such file"),
        ("nets.py", None, r"names no network in its file: got .*Write FILE\.py:NAME"),
        ("nets.py:", None, r"names no network in its file"),
        ("nets.py:Nett", None, r"has no 'Nett'\. Did you mean 'Net'\? It has: Net, Outer"),
        ("nets.py:own_blocks", None, "'own_blocks' in .* is a module"),
        ("nets.py:VALUE", None, "`model` is no network: got int"),
        ("bad.py:Net", "import nothing_like_this\n", r"can't be imported: .*bad\.py, line 1: ModuleNotFoundError"),
        ("bad.py:Net", "x = 1\nclass Net(\n", r"can't be imported: .*bad\.py, line 2: SyntaxError"),
        ("bad.py:Net", "raise SystemExit(3)\n", r"line 1: SystemExit: 3.*below if __name__ == '__main__'"),
        ("folder.py:Net", None, r"can't be read: .*folder\.py"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_with_the_reason(
    project: Path, place: str, text: str | None, message: str
) -> None:
    (project / "folder.py").mkdir()
    if text is not None:
        (project / "bad.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(ModelError, match=message):
        own_network(f"{project}/{place}")
    assert set(sys.modules) - before <= {"own_blocks", "_own_network_nets"}
    sys.modules.pop("own_blocks", None)


@pytest.mark.parametrize("name", ["fast_cnn", "timm/resnet18", "auto", "C:\\nets\\thing", "own/nets.py"[:3]])
def test_names_of_networks_are_no_files(name: str) -> None:
    assert own_network(name) is None


# names and arguments, as strangers may write them


@pytest.mark.parametrize(
    "name",
    [
        "own/../../evil.py:X",
        "own//etc/evil.py:X",
        "own/evil/evil.py:X",
        "own/evil.py",
        "own/evil.py:X:Y",
        "own/..:X",
        "own/evil.py:X()",
        "own/evil.py:X\n",
        "own/" + 200 * "a" + ":X",
    ],
)
def test_names_that_are_none_are_refused(name: str) -> None:
    assert is_own(name)
    with pytest.raises(ModelError, match="no name of one of your own"):
        check_own_name(name)
    with pytest.raises(ConfigError, match="no name of one of your own"):
        ModelConfig(name=name)


@pytest.mark.parametrize("place", ["nets.py", "my nets (2).py", "..", "", "ünï.py", ".hidden.py", "a/b.py", "x" * 300])
@pytest.mark.parametrize("qualified", ["Net", "make.<locals>.Net", "<lambda>", "a b", "..", "n" * 300])
def test_every_name_that_is_made_is_a_valid_one(place: str, qualified: str) -> None:
    check_own_name(own_name(place, qualified))


@pytest.mark.parametrize(
    "arguments",
    [{"width": 3, "act": "leaky relu", "on": True, "none": None, "rate": 0.5, "depths": [[1, 2], [3]], "m": {"a": 1}}],
)
def test_plain_arguments_are_valid(arguments: dict[str, Any]) -> None:
    check_own_arguments(arguments)
    assert ModelConfig(name="own/nets.py:Net", arguments=arguments).arguments == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "evil.pth"}, r"weights is no word: got 'evil\.pth'.*Give a path in a function of your own"),
        ({"weights": "/etc/passwd"}, "is no word"),
        ({"weights": ["http://evil"]}, "is no word"),
        ({"weights": {"a/b": 1}}, "is no word"),
        ({"deep": [[[[[[1]]]]]]}, "holds too much"),
        ({"many": list(range(2000))}, "holds too much"),
        ({"inf": float("inf")}, "no plain value"),
        ({"huge": 10**30}, "no plain value"),
        ({"object": object()}, "no plain value"),
        ({"num_classes": 5}, "not the network's own: got 5. Leave it out"),
        ({"img_size": 5}, "not the network's own: got 5. Set `size`"),
        ({"a.b": 5}, "names no argument"),
        ({"1": 5}, "names no argument"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_own_arguments(arguments)
    with pytest.raises(ConfigError, match=message):
        ModelConfig(name="own/nets.py:Net", arguments=arguments)
