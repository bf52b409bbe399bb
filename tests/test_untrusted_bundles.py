"""A bundle of a stranger: no code, no network, no file outside it, no traceback, and no memory that its files do not
account for. Its hash has no key, so every change here is sealed anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from untrusted import VALUES, changed, file_facts, places, read_sealed, seal
from vivace.bundle import Architecture, Bundle, BundleInfo, load_bundle, save_bundle
from vivace.config import from_yaml, override
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, ModelError, VivaceError
from vivace.models.zoo import create_model
from vivace.prediction import Predictor
from vivace.training.recipes.recipe import Recipe

RECIPE = {"name": "fast", "data": {"val_fraction": 0.1, "allow_leaks": False}, "seed": 3}
PARITY = {"images": "generated", "num_images": 64, "top1_agreement": 1.0, "max_difference": 1e-6, "tolerance": 1e-3}


def make(folder: Path, name: str = "simple_cnn", size: int = 32, **arguments: Any) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name=name, num_classes=3, size=size, arguments=arguments),
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=size, store_size=size),
        metrics={"val": {"top1": 0.5, "num_images": 10}},
        recipe=RECIPE,
        environment={"torch": "2"},
        data={"name": "digits", "fingerprint": "1e18", "num_images": 30},
        parity=PARITY,
    )
    return save_bundle(folder, create_model(name, 3, size=size, **arguments), info)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def with_architecture(bundle: Bundle, **fields: Any) -> Path:
    manifest = read_sealed(bundle.folder)
    manifest["architecture"] |= fields
    manifest["preprocess"]["size"] = fields.get("size", manifest["preprocess"]["size"])
    manifest["preprocess"]["store_size"] = max(manifest["preprocess"]["size"], manifest["preprocess"]["store_size"])
    seal(bundle.folder, manifest)
    return bundle.folder


# what timm.create_model takes beside constructor arguments, and values that are no plain ones
FORBIDDEN: dict[str, Any] = {
    "pretrained": True,
    "pretrained_cfg": {"url": "http://localhost:1/x"},
    "pretrained_cfg_overlay": {"url": "http://localhost:1/x"},
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "/tmp/x",
    "pretrained_strict": False,
    "pretrained_filter_fn": "x",
    "pretrained_model_args": {},
    "features_only": True,
    "feature_cls": "getter",
    "out_indices": [0],
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "pruned": True,
    "device": "meta",
    "dtype": "float16",
    "cfg": {},
    "block_args": [],
    "num_classes": 1000,
    "in_chans": 3,
    "stem_backbone": "resnet50",
    "hybrid_backbone": "resnet50",
    "block": "x",
    "__class__": "x",
    "drop_rate": 2.0,
    "drop_path_rate": "0.1",
    "embed_dim": 10**7,
    "depth": 10**6,
    "depths": [1] * 65,
    "img_size": 10**6,
    "act_layer": "torch.nn.ReLU",
    "norm_layer": "os.system",
    "global_pool": {"a": 1},
    "patch_size": [[[16]]],
    "num_heads": True,
    "qkv_bias": "false",
    "narrowed": {"stem": [10**7]},
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_only_known_constructor_arguments_with_plain_values_are_taken(bundle: Bundle, name: str) -> None:
    folder = with_architecture(bundle, name="timm/test_resnet", arguments={name: FORBIDDEN[name]})
    with pytest.raises(BundleError, match=r"(architecture|model)\.arguments"):
        load_bundle(folder)
    with pytest.raises(ConfigError, match=r"model\.arguments"):
        override(Recipe(), {"model.arguments": {name: FORBIDDEN[name]}})


@pytest.mark.parametrize(
    "name", sorted(FORBIDDEN.keys() - {"__class__", "pretrained", "num_classes", "narrowed", "cache_dir"})
)
def test_networks_take_no_other_arguments_from_python_either(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.arguments"):
        create_model("timm/test_resnet", 3, **{name: FORBIDDEN[name]})


def test_an_argument_is_never_taken_for_one_of_create_model(bundle: Bundle) -> None:
    info = BundleInfo(
        architecture=Architecture(name="timm/test_resnet", num_classes=3, arguments={"pretrained": True}),
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=32, store_size=32),
    )
    with pytest.raises(BundleError, match="known constructor argument"):
        Bundle(bundle.folder, info).build_model()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm/resnet18", {"drop_rate": 0.1, "act_layer": "silu", "global_pool": "max", "stem_width": 16}),
        ("timm/test_vit", {"embed_dim": 32, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1, "mlp_ratio": 2.0}),
        ("timm/test_vit", {"patch_size": 8, "global_pool": "avg", "class_token": False, "qkv_bias": False}),
        ("timm/test_convnext", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "kernel_sizes": 3}),
        ("timm/test_efficientnet", {"drop_path_rate": 0.2}),
        ("timm/densenet121", {"growth_rate": 8, "block_config": [1, 1, 1, 1]}),
        ("timm/mixer_s32_224", {"drop_rate": 0.1, "global_pool": "avg"}),
        ("fast_cnn", {"widths": [8, 16], "depth": [1, 2], "activation": "relu", "downsample": ["pool", "stride"]}),
        ("fast_photo", {"widths": [8, 16], "depths": [1, 1]}),
    ],
)
def test_what_networks_are_made_of_is_taken(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    size = 64
    made = make(tmp_path / "made", name, size, **arguments)
    images = torch.rand(1, 3, size, size)
    torch.testing.assert_close(load_bundle(made.folder).build_model()(images), made.build_model()(images))


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/resnet18", "local-dir:/tmp", "../resnet18", "/etc/passwd", "resnet18.hf-hub:x/y", "", "resnet18\n"],
)
def test_a_network_is_a_name_in_timms_registry(bundle: Bundle, name: str) -> None:
    folder = with_architecture(bundle, name=f"timm/{name}")
    with pytest.raises(BundleError, match=r"the network is unknown|has no weights"):
        load_bundle(folder).build_model()


WATCHED = """
import sys, os
from pathlib import Path
root, kinds = Path(sys.argv[1]), sys.argv[2:]
import numpy as np, torch, timm
from vivace.prediction import Predictor
from vivace.bundle import load_bundle
def use(folder):
    bundle = load_bundle(folder)
    size = bundle.preprocess.size
    Predictor(bundle, device="cpu").probs(np.zeros((1, size, size, 3), np.uint8))
# all that is imported and looked up once
for kind in kinds:
    use(root / kind)
def watch(event, args):
    if event.startswith("socket.") and event != "socket.__new__":
        raise AssertionError(f"network: {event} {args}")
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(args[0]))
        system = (sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), "/proc/", "/sys/", "/usr/", "/etc/ld.so")
        inside = any(path.startswith(str(root / kind) + "/") for kind in kinds)
        writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
        if not inside and (writes or not path.startswith(system)) and path != "/dev/null":
            raise AssertionError(f"outside: {path} {args[1:]}")
sys.addaudithook(watch)
for kind in kinds:
    use(root / kind)
print("watched", len(kinds))
"""


def test_loading_opens_no_socket_and_no_file_outside(tmp_path: Path) -> None:
    """Every kind of bundle that needs no compiler: ours, of timm, narrowed, graphs of other runtimes."""
    from vivace.exporting.export import export

    narrowed = {"layer1.0.conv1": [24, 64, 1], "layer1.0.bn1": [24], "layer1.0.conv2": [64, 24, 1]}
    made = {
        "plain": make(tmp_path / "plain", "fast_cnn", widths=[8, 8]),
        "timm": make(tmp_path / "timm", "timm/test_vit", drop_rate=0.1, img_size=32),
        "narrowed": make(tmp_path / "narrowed", "timm/resnet18", narrowed=narrowed),
    }
    for runtime in ("onnx", "openvino"):
        pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime)
        export(made["plain"], runtime, tmp_path / runtime)
        made[runtime] = load_bundle(tmp_path / runtime)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path.resolve()), *made], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"watched {len(made)}"


ABSURD = [
    {"num_classes": 10**9},
    {"in_channels": 10**6},
    {"size": 10**6},
    {"name": "fast_cnn", "arguments": {"widths": [10**7, 10**7]}},
    {"name": "fast_cnn", "arguments": {"widths": [60_000] * 6, "depth": 200}},
    {"name": "fast_cnn", "arguments": {"widths": [8] * 60, "depth": 250, "downsample": "none"}},
    {"name": "fast_photo", "arguments": {"widths": [8] * 2, "depths": [256, 256]}},
    {"name": "timm/test_vit", "arguments": {"depth": 10**6}},
    {"name": "timm/vit_base_patch16_224", "arguments": {"depth": 256, "embed_dim": 49_152}},
    {"name": "timm/test_resnet", "arguments": {"layers": [256] * 4, "channels": [60_000] * 4}},
    {"name": "timm/vit_7b_patch16_dinov3"},
    {"name": "timm/test_vit", "arguments": {"narrowed": {"head": [60_000, 60_000]}}},
]
BOUNDED = """
import json, resource, sys
import torch, timm
from pathlib import Path
from vivace.bundle import load_bundle
from vivace.errors import BundleError
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for folder in sys.argv[1:]:
    try:
        load_bundle(folder).build_model()
    except BundleError as error:
        print(str(error)[:100])
    else:
        raise AssertionError(folder)
"""


def test_an_absurd_architecture_is_refused_before_it_is_built(tmp_path: Path) -> None:
    """Within one gibibyte more than the libraries take, whatever the manifest says."""
    folders = []
    for index, fields in enumerate(ABSURD):
        manifest_of = make(tmp_path / str(index))
        folders.append(str(with_architecture(manifest_of, **fields)))
    done = subprocess.run([sys.executable, "-c", BOUNDED, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(ABSURD)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        (
            "fast_cnn",
            32,
            {"widths": [60_000] * 6, "depth": 200, "downsample": "none"},
            r"weights, .* GiB: the limit is 10 · 10⁹",
        ),
        ("fast_cnn", 32, {"widths": [8] * 60, "depth": 200, "downsample": "none"}, r"have more than 5,000 tensors"),
        (
            "fast_cnn",
            4096,
            {"widths": [64] * 3, "depth": 200, "downsample": "none"},
            r"operations for an image of 4096 px",
        ),
        ("timm/vit_base_patch16_224", 4096, {}, r"(operations|GiB) for an image of 4096 px"),
        ("timm/test_resnet", 100_000, {}, r"size is out of range: got 100000\. Give a whole number, 1 to 4096"),
        ("fast_cnn", 32, {"stride": 0}, r"fast_cnn can't be built|stride"),
        (
            "timm/test_vit",
            32,
            {"patch_size": 5000},
            r"patch_size has an invalid value: got 5000\. Give a whole",
        ),
    ],
)
def test_the_bound_is_in_the_message(name: str, size: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        create_model(name, 3, size=size, **arguments)
    assert "\n" not in str(caught.value)


def test_a_network_that_fails_a_bare_assertion_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match=r"AssertionError|can't be built|does not work") as caught:
        create_model("timm/test_vit", 3, size=64, embed_dim=30, num_heads=4)
    assert "\n" not in str(caught.value)


def test_random_numbers_are_what_they_were_without_the_bounds() -> None:
    torch.manual_seed(5)
    before = create_model("timm/test_vit", 3, size=32).state_dict()
    torch.manual_seed(5)
    import timm

    plain = timm.create_model("test_vit", num_classes=3, in_chans=3, img_size=32).state_dict()
    assert all(torch.equal(before[name], plain[name]) for name in plain)


def used(folder: Path) -> None:
    bundle = load_bundle(folder)
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    Predictor(bundle, device="cpu").probs(np.zeros((1, size, size, channels), np.uint8))


def answer(folder: Path) -> str:
    """The message of an error of ours, "" where there was none. Any other error is the test's."""
    try:
        used(folder)
    except VivaceError as error:
        return str(error)
    return ""


def test_whatever_type_a_field_has_the_answer_is_one_line(bundle: Bundle) -> None:
    manifest = read_sealed(bundle.folder)
    refused = tried = 0
    for path in places({key: value for key, value in manifest.items() if key != "sha256"}):
        for value in VALUES:
            seal(bundle.folder, changed(manifest, path, value))
            tried += 1
            message = answer(bundle.folder)
            assert "\n" not in message, (path, value)
            refused += message != ""
    assert tried > 400
    assert refused > tried / 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("classes", 0), 1.5),
        (("classes",), ["a", "a", "b"]),
        (("classes",), {"a": 1}),
        (("schema_version",), True),
        (("schema_version",), 0),
        (("architecture", "num_classes"), [3]),
        (("architecture", "size"), 64),
        (("preprocess", "channels"), True),
        (("preprocess", "std"), [0, 0, 0]),
        (("preprocess", "mean"), [1e308, "x", 0]),
        (("metrics", "val"), 0.5),
        (("metrics", "val", "top1"), "0.5"),
        (("recipe", "data"), []),
        (("recipe", "data", "val_fraction"), "0.1"),
        (("recipe", "seed"), 1.5),
        (("parity", "num_images"), "64"),
        (("parity",), {"images": "x"}),
        (("precision",), "int4"),
        (("temperature",), -1),
        (("files",), ["model.safetensors"]),
        (("files", "model.safetensors"), None),
        (("files", "model.safetensors", "bytes"), "1"),
        (("files", "model.safetensors", "sha256"), 1),
        (("files", "x\0y"), {"sha256": "", "bytes": 1}),
        (("files", "sub/model.bin"), {"sha256": "", "bytes": 1}),
    ],
)
def test_a_field_of_another_type_is_refused_when_the_bundle_is_opened(
    bundle: Bundle, path: tuple[Any, ...], value: Any
) -> None:
    seal(bundle.folder, changed(read_sealed(bundle.folder), path, value))
    with pytest.raises(BundleError):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":1,"a":2}', '"\\ud800"'])
def test_a_manifest_that_is_no_plain_json_is_refused(bundle: Bundle, text: str) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(path.read_text().replace('"temperature": null', f'"temperature": {text}'))
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle.folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


def test_a_link_in_a_bundle_is_refused_even_within_the_folder(bundle: Bundle) -> None:
    weights = bundle.folder / "model.safetensors"
    weights.rename(bundle.folder / "other")
    weights.symlink_to("other")
    with pytest.raises(BundleError, match="is a link"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "model.onnx", "model.onnx.data", "more.safetensors"])
def test_a_file_that_a_runtime_may_read_and_nobody_listed_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.folder / "notes.txt").write_text("mine")
    load_bundle(bundle.folder)
    (bundle.folder / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="its manifest does not list it"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_give_no_answer(bundle: Bundle, value: float) -> None:
    path = bundle.folder / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: torch.full_like(tensor, value) if name == "0.weight" else tensor for name, tensor in weights.items()},
        path,
    )
    seal(bundle.folder, read_sealed(bundle.folder) | {"files": {path.name: file_facts(path)}})
    with pytest.raises(BundleError, match="not finite"):
        used(bundle.folder)


def test_a_graph_that_is_none_is_an_error_of_one_line(tmp_path: Path, bundle: Bundle) -> None:
    for runtime, names in {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"]}.items():
        pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime)
        files = read_sealed(bundle.folder)["files"]
        for name in names:
            (bundle.folder / name).write_bytes(b"<net/>")
            files[name] = file_facts(bundle.folder / name)
        seal(bundle.folder, read_sealed(bundle.folder) | {"files": files, "runtime": runtime})
        with pytest.raises(VivaceError, match=r"can't (run what is in|be loaded)|the graph is refused") as caught:
            used(bundle.folder)
        assert "\n" not in str(caught.value)


BOMBS = {
    "nested lists": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "nested maps": "a: &a {x: 1}\n"
    + "".join(f"{c}: &{c} {{p: *{p}, q: *{p}, r: *{p}}}\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "merge keys": "a: &a {x: 1}\n"
    + "".join(f"{c}: &{c} {{<<: [{','.join([f'*{p}'] * 9)}]}}\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "levels in brackets": "a: " + "[" * 10_000,
    "levels in braces": "a: " + "{a: " * 10_000,
    "levels by indentation": "\n".join(" " * n + f"a{n}:" for n in range(300)),
    "a list in a list": "- " * 20_000,
    "infinity": "epochs: .inf",
    "not a number": "optimizer: {lr: .nan}",
    "hidden infinity": "model: {arguments: {drop_rate: 1e999}}",
    "digits": "epochs: " + "9" * 5000,
    "digits behind a point": "epochs: 0." + "9" * 5000,
    "hexadecimal digits": "epochs: 0x" + "f" * 5000,
    "a huge document": "name: " + "x" * 10_000_000,
    "many keys": "\n".join(f"k{n}: 1" for n in range(100_000)),
    "an object": "name: !!python/object/apply:os.system ['true']",
    "bytes": "name: !!binary aGk=",
    "a set": "name: !!set {a, b}",
    "no boolean": "name: !!bool x",
    "a key twice": "epochs: 1\nepochs: 2",
    "a key that is a list": "? [a]\n: 1",
    "a list for a recipe": "[1, 2]",
    "a number for a recipe": "12",
    "an unfinished quote": 'name: "x',
    "a zero byte": "name: a\0b",
    "a tab": "\tname: x",
    "a directive": "%YAML 9.9\n---\nname: x",
    "two documents": "name: x\n---\nname: y",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_no_yaml_costs_more_than_its_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(BOMBS[kind])
    for source in (BOMBS[kind], path):
        with pytest.raises(ConfigError) as caught:
            from_yaml(Recipe, source)
        assert "\n" not in str(caught.value)


def test_a_config_that_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError):
        from_yaml(Recipe, Path("/dev/zero"))
