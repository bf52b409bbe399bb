"""Checks JSON output against the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import vivace

SCHEMAS = Path(vivace.__file__).parent / "schemas"


def schema_of(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def strict(schema: Any) -> Any:
    """The same schema, which takes no key that it does not describe."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "object" in schema.get("type", ()) and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def last_answer(text: str) -> dict[str, Any]:
    """The object on the last line of stdout: strict JSON, as the schema of its verb says, and with no other key."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"not strict JSON: {constant}")

    answer: dict[str, Any] = json.loads(text.splitlines()[-1], parse_constant=refuse)
    assert list(answer)[:2] == ["schema_version", "verb"]
    name = "error" if "error" in answer else answer["verb"]
    Draft202012Validator(strict(schema_of(name))).validate(answer)
    return answer
