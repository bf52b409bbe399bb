"""Starting weights: what common checkpoints look like is understood, what does not fit is refused by name."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vivace.errors import ModelError
from vivace.models.zoo import create_model, head_parameters, load_weights

Weights = dict[str, Tensor]


def network(num_classes: int = 5, **arguments: Any) -> nn.Module:
    return create_model("fast_cnn", num_classes, size=16, widths=[8, 16], depth=1, **arguments)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture
def trained() -> nn.Module:
    model = network()
    model(torch.randn(8, 3, 16, 16))
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_are_taken_over_exactly(trained: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(trained.state_dict(), path)
    model = network()
    assert not same(model, trained)
    assert load_weights(model, str(path)) == []
    assert same(model, trained)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"state": {}}},
        lambda w: {"model_state_dict": w},
        lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
        lambda w: {"state_dict": {f"model.{name}": tensor for name, tensor in w.items()}},
        lambda w: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in w.items()}},
        lambda w: {"state_dict": {name: torch.zeros_like(t) for name, t in w.items()}, "state_dict_ema": w},
        lambda w: {name: tensor for name, tensor in w.items() if "num_batches" not in name},
    ],
)
def test_wrappers_of_common_checkpoints_are_understood(
    trained: nn.Module, tmp_path: Path, wrap: Callable[[Weights], dict]
) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pth")
    model = network()
    assert load_weights(model, tmp_path / "w.pth") == []
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(images), trained.eval()(images))


def test_a_network_whose_own_names_begin_as_a_wrapper_s_keeps_them(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    saved, fresh = Wrapped(), Wrapped()
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    load_weights(fresh, tmp_path / "w.pth")
    assert same(saved, fresh)


@pytest.mark.parametrize("name", ["fast_cnn", "simple_cnn", "timm/test_resnet"])
def test_a_head_of_another_size_is_left_out_and_named(name: str, tmp_path: Path) -> None:
    saved, model = create_model(name, 7), create_model(name, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(saved.state_dict(), tmp_path / "w.safetensors")
    left_out = load_weights(model, tmp_path / "w.safetensors")
    assert left_out == sorted(left_out)
    assert set(head_parameters(model)) <= set(left_out)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in left_out else saved.state_dict()[key]), key


def test_a_head_that_the_file_lacks_is_left_out(trained: nn.Module, tmp_path: Path) -> None:
    torch.save({k: v for k, v in trained.state_dict().items() if not k.startswith("head")}, tmp_path / "w.pth")
    assert load_weights(network(), tmp_path / "w.pth") == ["head.weight"]


def test_half_precision_is_widened(trained: nn.Module, tmp_path: Path) -> None:
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    save_file(halves, tmp_path / "w.safetensors")
    model = network()
    load_weights(model, tmp_path / "w.safetensors")
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, halves["head.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {**w, "whiten.bias": torch.zeros(3)},
            r"whiten\.bias in .* is \(3,\), expected \(48,\)\. Give weight",
        ),
        (
            lambda w: {**w, "whiten.bias": torch.zeros(48).double()},
            r"whiten\.bias in .* is float64, expected float32\.",
        ),
        (
            lambda w: {**w, "whiten.bias": torch.zeros(48).int()},
            r"whiten\.bias in .* is int32, expected float32\. Give",
        ),
        (
            lambda w: {k: v for k, v in w.items() if k != "whiten.bias"},
            r"do not fit: .*w\.pth lacks whiten\.bias\. Give",
        ),
        (
            lambda w: {**w, "extra.weight": torch.zeros(2)},
            r"w\.pth has extra\.weight, which the network lacks\. Give",
        ),
        (
            lambda w: {**w, "whiten.bias": torch.full((48,), float("nan"))},
            r"hold NaN or Inf: whiten\.bias in .*w\.pth\.",
        ),
        (lambda w: {}, r"^no state dict was found in .*w\.pth\. Save it by torch\.save\(model\.state_dict"),
        (lambda w: [1, 2], r"^no state dict was found in "),
        (lambda w: {"epoch": 3, "best": w["whiten.bias"]}, r"^no state dict was found in "),
    ],
)
def test_what_does_not_fit_is_refused_by_the_first_key_and_changes_nothing(
    trained: nn.Module, tmp_path: Path, change: Callable[[Weights], Any], message: str
) -> None:
    torch.save(change(dict(trained.state_dict())), tmp_path / "w.pth")
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.empty(48, device="meta"), "a tensor on the device meta, which holds no numbers here"),
        (lambda: torch.zeros(48).to_sparse(), "a tensor of layout sparse_coo"),
        (lambda: torch.eye(48).to_sparse_csr(), "a tensor of layout sparse_csr"),
        (lambda: torch.eye(48).to_sparse_bsc((2, 2)), "a tensor of layout sparse_bsc"),
        (lambda: torch.quantize_per_tensor(torch.zeros(48), 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda: torch.zeros(48, dtype=torch.complex64), "a tensor of complex64"),
        (lambda: torch.zeros(48).to(torch.float8_e4m3fn), "a tensor of float8_e4m3fn"),
        (lambda: torch.zeros(48, dtype=torch.uint16), "a tensor of uint16"),
        (lambda: torch.zeros(48, dtype=torch.uint8).view(torch.bits8), "a tensor of bits8"),
        (lambda: 3, "of type int"),
        (lambda: None, "of type NoneType"),
        (lambda: [torch.zeros(48)], "of type list"),
        (lambda: torch.float32, "of type dtype"),
        (lambda: torch.zeros(48).untyped_storage(), "of type TypedStorage"),
    ],
)
@pytest.mark.parametrize("name", ["whiten.bias", "head.extra", "x" * 1000])
def test_what_is_no_plain_tensor_is_refused_by_what_it_is(
    trained: nn.Module, tmp_path: Path, name: str, make: Callable[[], Any], what: str
) -> None:
    weights = {key: value.clone() for key, value in trained.state_dict().items()}
    torch.save({**weights, name: make()}, tmp_path / "w.pth")
    message = (
        rf"^no state dict was found in \S*w\.pth: {name[:120]} is {what}, expected a plain tensor\. Save it by [^\n]*$"
    )
    with pytest.raises(ModelError, match=message):
        load_weights(network(), tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(tmp_path: Path, layout: torch.layout) -> None:
    tensor = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=layout)
    torch.save({"whiten.bias": tensor}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"^the weights hold more than tensors, [^\n]* asks for torch\."):
        load_weights(network(), tmp_path / "w.pth")


def test_a_safetensors_of_a_strange_dtype_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    save_file(
        {**trained.state_dict(), "whiten.bias": torch.zeros(48).to(torch.float8_e5m2)}, tmp_path / "w.safetensors"
    )
    with pytest.raises(ModelError, match=r"whiten\.bias is a tensor of float8_e5m2, expected a plain tensor"):
        load_weights(network(), tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("evil-was-here",))


@pytest.mark.parametrize(
    ("save", "asked"),
    [
        (lambda path: torch.save({"weight": Evil()}, path), "mkdir"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
        (lambda path: torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path), "argparse.Namespace"),
        (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)), "mkdir"),
    ],
)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], Any], asked: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"^the weights hold more than tensors, which could run code: ") as caught:
        load_weights(network(), tmp_path / "w.pth")
    assert asked in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_cut_anywhere_is_refused(trained: nn.Module, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in (0, 1, 10, 200, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ModelError,
            match=r"^the weights can't be read: .*w\.pth \(.*\)\. Give a \.safetensors file, or a state dict",
        ):
            load_weights(network(), path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\xff" * 8 + b"{}", b"\x08" + b"\0" * 7 + b'{"a": 1}'])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"^the weights can't be read: ") as caught:
        load_weights(network(), path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    irregular = "are in no regular file"
    for name, problem in {"none.pth": "file was not found", ".": irregular, "pipe.pth": irregular}.items():
        path = tmp_path / name
        with pytest.raises(ModelError, match=rf"^the weights {problem}: .*\. Give a \.safetensors or \.pth file"):
            load_weights(network(), path)


def test_timm_weights_fit_another_size_and_number_of_channels(tmp_path: Path) -> None:
    saved = create_model("timm/test_vit", 1000, size=160)
    save_file(saved.state_dict(), tmp_path / "w.safetensors")
    model = create_model("timm/test_vit", 5, in_channels=1, size=32)
    assert load_weights(model, tmp_path / "w.safetensors") == ["head.bias", "head.weight"]
    name = "patch_embed.proj.weight"
    torch.testing.assert_close(model.state_dict()[name], saved.state_dict()[name].sum(1, keepdim=True))
    assert torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], saved.state_dict()["blocks.0.attn.qkv.weight"])
    assert model.pos_embed.shape[1] < saved.pos_embed.shape[1]


def test_weights_of_another_network_are_refused_for_a_timm_network_too(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"^the weights do not fit: .*lacks "):
        load_weights(create_model("timm/test_convnext", 5, size=32), tmp_path / "w.pth")


def test_a_file_that_inflates_is_refused_before_it_is_read(trained: nn.Module, tmp_path: Path) -> None:
    torch.save({**trained.state_dict(), "more": torch.zeros(10_000_000)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in stored.infolist():
            bomb.writestr(member.filename, stored.read(member))
    with pytest.raises(
        ModelError, match=r"the weights are compressed, which torch never does: .*bomb\.pth has [\d,]+ by"
    ):
        load_weights(trained, tmp_path / "bomb.pth")
