"""The data of a post: what is taken, as it is written, and what is refused with a code."""

import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posts.data import MAX_BYTES, MAX_DEPTH, MAX_NUMBER, DataRefused, compact, text_of
from tests.e2e.real_data import DATA

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
fractions = st.floats(-MAX_NUMBER, MAX_NUMBER).filter(lambda x: x == 0 or abs(x) >= 1e-20)
scalars = st.none() | st.booleans() | st.integers(-MAX_NUMBER, MAX_NUMBER) | fractions | texts


def nested(levels: int) -> st.SearchStrategy[Any]:
    if levels == 0:
        return scalars
    inner = nested(levels - 1)
    return scalars | st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)


# What a client may send as `data`.
objects = st.dictionaries(texts, nested(3), max_size=3)


@given(objects)
def test_what_is_taken_is_equal_as_json(data: dict[str, Any]) -> None:
    assert json.loads(compact(json.dumps(data, indent=1))) == data


def deep(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"": ""}',
        '{"a": null, "b": [true, false]}',
        '{"n": [9007199254740991, -9007199254740991, 0, -0, 1e-20, 1.50, 2E3, 0.1, 0.0e5, -0.0]}',
        '{"same": {"same": 1}, "other": {"same": 1}}',
        '{"a": "\\\\u0000", "\\u00e9": "\\ud83c\\udf0d"}',
        deep(MAX_DEPTH),
        json.dumps({"x": "y" * (MAX_BYTES - 8)}),
        json.dumps({"x": "\u4e16" * ((MAX_BYTES - 8) // 3)}),
    ],
)
def test_data_within_the_bounds_is_taken(text: str) -> None:
    assert json.loads(compact(text)) == json.loads(text)


REFUSED = [
    ("[]", "data_not_an_object"),
    ("5", "data_not_an_object"),
    ('"text"', "data_not_an_object"),
    ("true", "data_not_an_object"),
    (json.dumps({"x": "y" * (MAX_BYTES - 7)}), "data_too_large"),
    (json.dumps({"x": "\u4e16" * (MAX_BYTES // 3)}), "data_too_large"),
    (deep(MAX_DEPTH + 1), "data_too_deep"),
    ('{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "data_too_deep"),
    ('{"a":' + "[" * 1_020 + "]" * 1_020 + "}", "data_too_deep"),
    ('{"a": "\\u0000"}', "data_has_nul"),
    ('{"a": {"\\u0000": 1}}', "data_has_nul"),
    ('{"a": 1, "a": 1}', "duplicate_key"),
    ('{"a": 1, "\\u0061": 1}', "duplicate_key"),
    ('{"a": [{"b": {}, "b": {}}]}', "duplicate_key"),
    ('{"a": 9007199254740992}', "data_number"),
    ('{"a": -9007199254740992}', "data_number"),
    ('{"a": 9007199254740993.0}', "data_number"),
    ('{"a": 18446744073709551616}', "data_number"),
    ('{"a": ' + "9" * 300 + "}", "data_number"),
    ('{"a": 1e300}', "data_number"),
    ('{"a": 1e-21}', "data_number"),
    ('{"a": 1e-400}', "data_number"),
    ('{"a": 0.1234567890123456789}', "data_number"),
    ('{"a": 0.' + "3" * 50 + "}", "data_number"),
    ("{", "malformed_json"),
    ('{"a": 1e400}', "malformed_json"),
    ('{"a": ' + "9" * 5_000 + "}", "malformed_json"),
    ('{"a": NaN}', "malformed_json"),
    ('{"a": -Infinity}', "malformed_json"),
    ('{"a": "\\ud800"}', "malformed_json"),
    ('{"\\udc00": 1}', "malformed_json"),
    ('{"a": 1,}', "malformed_json"),
    ("{'a': 1}", "malformed_json"),
    ('\ufeff{"a": 1}', "malformed_json"),
]


@pytest.mark.parametrize(("text", "code"), REFUSED, ids=lambda value: str(value)[:40])
def test_all_else_is_refused_with_a_code(text: str, code: str) -> None:
    assert code_of(text) == code


def code_of(text: str) -> str | None:
    """Return the code with which data is refused, None if it is taken."""
    try:
        compact(text)
    except DataRefused as refusal:
        return refusal.code
    return None


@pytest.mark.skipif(not DATA.exists(), reason="the JSON test suite is not beside the repository")
def test_the_json_test_suite_within_data() -> None:
    """Each file as a member: refused if it is no JSON, else kept as it is or refused with a code."""
    with tarfile.open(DATA / "json_test_suite.tar.gz") as suite:
        for member in suite:
            file = suite.extractfile(member)
            name = member.name.rpartition("/")[2]
            if file is None or name[:2] not in ("y_", "n_", "i_"):
                continue
            text = '{"member":' + file.read().decode(errors="surrogateescape") + "}"
            code = code_of(text)
            if name[:2] == "y_":
                assert code in (None, "duplicate_key", "data_number", "data_has_nul"), name
            if name[:2] == "n_":
                assert code is not None or json.loads(text), name
            if code is None:
                assert json.loads(compact(text)) == json.loads(text), name


@pytest.mark.skipif(not DATA.exists(), reason="the naughty strings are not beside the repository")
def test_naughty_strings_are_keys_and_values() -> None:
    for text in json.loads((DATA / "blns.json").read_text()):
        if "\0" not in text:
            assert json.loads(text_of({text: text})) == {text: text}
