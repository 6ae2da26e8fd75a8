"""Seals: every changed value shows, and nothing but values counts."""

import hashlib
import json

import pytest

from xception_jax.utils import seal

FIELDS = {"b": [1, 2.5, "é"], "a": {"y": None, "x": True}}


def test_by_hand():
    text = '{"a":{"x":true,"y":null},"b":[1,2.5,"\\u00e9"]}'
    assert seal.canonical(FIELDS) == text
    assert seal.seal(FIELDS) == hashlib.sha256(text.encode()).hexdigest()
    assert seal.sealed(FIELDS) == {**FIELDS, "seal": seal.seal(FIELDS)}


def test_layout_and_order_do_not_count():
    sealed = seal.sealed(FIELDS)
    for text in (json.dumps(sealed, indent=3), json.dumps(dict(reversed(sealed.items())))):
        seal.check(seal.parse(text))
    seal.check(seal.sealed({"a": (1, 2)}) | {"a": [1, 2]})


@pytest.mark.parametrize(
    "change", [{"b": [1, 2.5, "e"]}, {"a": None}, {"c": 0}, {"b": [1.0, 2.5, "é"]}, {"seal": None}]
)
def test_every_change_shows(change):
    with pytest.raises(ValueError, match="is not what was sealed"):
        seal.check({**seal.sealed(FIELDS), **change})


def test_without_a_seal():
    with pytest.raises(ValueError, match="has no seal"):
        seal.check(FIELDS)


@pytest.mark.parametrize("text", ["", "[1]", "{", b"\xff{}", "[" * 100_000, '{"a": ' * 100_000])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        seal.parse(text)
