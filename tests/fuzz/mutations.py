"""Damage done to inputs, at random but reproducibly: to JSON trees, to text and to bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CANARY", "damaged_bytes", "damaged_text", "damaged_tree", "paths_of", "reseated", "value"]

# a file that no input may lead to: whoever opens it follows a path that a stranger wrote
CANARY = "fuzz-canary"
HUGE = 10**30

# what a stranger may write in place of any value
VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: -1,
    lambda: 1,
    lambda: 3,
    lambda: 4097,
    lambda: 10**7,
    lambda: 2**31,
    lambda: 2**63,
    lambda: HUGE,
    lambda: 0.5,
    lambda: -0.5,
    lambda: 1e308,
    lambda: math.inf,
    lambda: math.nan,
    lambda: "",
    lambda: "a",
    lambda: "1e3",
    lambda: "None",
    lambda: "x" * 3000,
    lambda: f"../../{CANARY}",
    lambda: f"/tmp/{CANARY}",
    lambda: f"https://127.0.0.1:9/{CANARY}",
    lambda: f"file:///tmp/{CANARY}",
    lambda: "\x1b[2J\x1b]0;title\x07",
    lambda: "two\nlines\r",
    lambda: "\ud800",
    lambda: "relu",
    lambda: "eager",
    lambda: "onnx",
    lambda: "timm/resnet18",
    lambda: "timm/hf-hub:somebody/network",
    list,
    dict,
    lambda: [[]],
    lambda: [0.5],
    lambda: [0, -1],
    lambda: [10**7] * 3,
    lambda: ["a"],
    lambda: [None, None],
    lambda: {"a": 1},
    lambda: {"": {}},
    lambda: [1] * 5000,
    lambda: _nested(200),
    lambda: _nested(20_000),
)
# keys of constructors that load, fetch or write something, and others that change what a network is
KEYS = (
    "pretrained",
    "cache_dir",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "features_only",
    "scriptable",
    "exportable",
    "no_jit",
    "img_size",
    "layers",
    "depths",
    "embed_dim",
    "widths",
    "depth",
    "act_layer",
    "norm_layer",
    "global_pool",
    "num_classes",
    "in_chans",
    "narrowed",
    "size",
    "__class__",
    "self",
    "",
    "files",
    "schema_version",
    "sha256",
)


def _nested(depth: int) -> list[Any]:
    tree: list[Any] = []
    for _ in range(depth):
        tree = [tree]
    return tree


def value(rng: np.random.Generator) -> Any:
    """One of the values that a stranger may write."""
    return VALUES[rng.integers(len(VALUES))]()


def paths_of(tree: Any, path: tuple[Any, ...] = (), limit: int = 64) -> list[tuple[Any, ...]]:
    """The ways to every node below the root, those of long lists to their first few alone."""
    if limit == 0:
        return []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:4]) if isinstance(tree, list) else ()
    found = []
    for key, item in items:
        found.append((*path, key))
        found += paths_of(item, (*path, key), limit - 1)
    return found


def reseated(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    """Call change(parent, key) for the node at `path`."""
    for key in path[:-1]:
        tree = tree[key]
    change(tree, path[-1])


def damaged_tree(tree: Any, rng: np.random.Generator) -> Any:
    """A copy of a JSON tree with one to three of its nodes replaced, removed, doubled or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.integers(1, 4)):
        paths = paths_of(tree)
        if not paths:
            return value(rng)
        path = paths[rng.integers(len(paths))]
        reseated(tree, path, CHANGES[rng.integers(len(CHANGES))](rng))
    return tree


def _replace(rng: np.random.Generator) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        parent[key] = value(rng)

    return change


def _remove(rng: np.random.Generator) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        del parent[key]

    return change


def _add(rng: np.random.Generator) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        node = parent[key] if isinstance(parent[key], dict | list) else parent
        if isinstance(node, dict):
            node[KEYS[rng.integers(len(KEYS))]] = value(rng)
        else:
            node.append(value(rng))

    return change


def _nudge(rng: np.random.Generator) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        old = parent[key]
        if isinstance(old, int | float) and not isinstance(old, bool):
            parent[key] = old * [0, -1, 2, 1000, 10**6, 0.5][rng.integers(6)]
        elif isinstance(old, str):
            parent[key] = damaged_text(old, rng)
        else:
            parent[key] = [old, old]

    return change


CHANGES = (_replace, _replace, _replace, _remove, _add, _add, _nudge)

PIECES = (
    "\x00",
    "\x1b[31m",
    "\n",
    "\r\n",
    "\t",
    ",",
    ";",
    '"',
    "'",
    "{",
    "[" * 300,
    "&a [*a, *a]",
    "<<: *a",
    "!!python/object/apply:os.system ['true']",
    ".inf",
    ".nan",
    "9" * 5000,
    "- " * 2000,
    "../",
    "\\",
    "\ufeff",
    "\u202e",
    "é",
    "*",
    "&x",
    "---\n",
    "%",
)


def damaged_text(text: str, rng: np.random.Generator) -> str:
    """Text with pieces cut out, doubled, or put in that mean something to a parser."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(text) + 1))
        end = min(len(text), start + int(rng.geometric(0.1)))
        piece = (PIECES[rng.integers(len(PIECES))], "", text[start:end] * 2)[rng.integers(3)]
        text = text[:start] + piece + text[end:]
    return text


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with some flipped, cut out, doubled, or set to what lengths and sizes overflow at."""
    changed = bytearray(data)
    for _ in range(int(rng.geometric(0.4))):
        if not changed:
            break
        # headers decide more than pixels do
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 128)
        at = int(rng.integers(reach))
        match rng.integers(6):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            case 2:
                width = int(rng.choice([2, 4, 8]))
                changed[at : at + width] = bytes([int(rng.choice([0, 0x7F, 0xFF]))]) * width
            case 3:
                del changed[at : at + int(rng.geometric(0.05))]
            case 4:
                end = at + int(rng.geometric(0.05))
                changed[at:at] = changed[at:end] * int(rng.choice([1, 2, 50]))
            case _:
                del changed[at:]
    return bytes(changed)
