"""The schemas of what --json prints; the answers of all verbs are held to them where they are tested (`answers`)."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator, ValidationError

from answers import SCHEMAS, last_answer, schema_of, strict
from vivace.cli import VERBS, main
from vivace.cli.answers import SCHEMA_VERSION


def test_every_verb_has_a_schema_and_there_is_one_for_errors() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == {*VERBS, "error"}


@pytest.mark.parametrize("name", [*VERBS, "error"])
def test_a_schema_is_one_of_draft_2020_12_and_names_version_and_verb(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"schema_version", "verb", "warnings"} <= set(schema["required"])
    assert schema["properties"]["schema_version"] == {"const": SCHEMA_VERSION} | {
        key: value for key, value in schema["properties"]["schema_version"].items() if key == "description"
    }
    assert name == "error" or schema["properties"]["verb"] == {"const": name}


def test_the_same_key_has_the_same_type_in_every_answer() -> None:
    types: dict[str, set[str]] = {}
    for verb in VERBS:
        for key, described in schema_of(verb)["properties"].items():
            kind = described.get("type", [])
            # null, where a value may be missing, is no other type
            types.setdefault(key, set()).add(str({kind} if isinstance(kind, str) else set(kind) - {"null"}))
    # doctor's are of the machine, not of a bundle or a data set; bench has its runs by technique
    different = {key for key, found in types.items() if len(found) > 1} - {"data", "precision", "runs"}
    assert not different


@pytest.mark.parametrize(
    ("arguments", "verb", "error"),
    [
        (["trian"], None, "ConfigError"),
        (["audit", "nowhere"], "audit", "DataError"),
        (["audit"], "audit", "ConfigError"),
    ],
)
def test_a_failure_is_an_object_of_the_schema_of_errors(
    arguments: list[str], verb: str | None, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 2
    answer = last_answer(capsys.readouterr().out)
    assert (answer["verb"], answer["error"]["type"], answer["error"]["exit_status"]) == (verb, error, 2)


def test_the_helper_refuses_a_key_that_is_not_described() -> None:
    answer = {
        "schema_version": SCHEMA_VERSION,
        "verb": "cache",
        "cache_dir": "x",
        "caches": [],
        "removed": [],
        "warnings": [],
    }
    validator = Draft202012Validator(strict(schema_of("cache")))
    validator.validate(answer)
    with pytest.raises(ValidationError, match="unexpected"):
        validator.validate(answer | {"more": 1})
