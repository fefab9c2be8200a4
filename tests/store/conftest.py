"""Records of every kind, drawn from all values that their fields may hold."""

from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import strategies as st

from lamplighter.store.records import Embedding

FINITE = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PLAIN = {str: st.text(), int: WHOLE, float: FINITE, bool: st.booleans(), Any: JSON, type(None): st.none()}


def values(hint):
    if isinstance(hint, UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=3)
    if get_origin(hint) is dict:
        return st.dictionaries(st.text(), values(get_args(hint)[1]), max_size=3)
    return PLAIN[hint]


def drawn_records(kind):
    hints = get_type_hints(kind)
    drawn = {field.name: values(hints[field.name]) for field in fields(kind)}
    drawn["id"] = st.uuids().map(str)
    drawn["created_at"] = st.datetimes().map(lambda when: when.isoformat(timespec="microseconds"))
    if kind is Embedding:
        drawn["vector"] = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False))
    return st.builds(kind, **drawn)


@pytest.fixture(scope="session")
def records():
    """records(kind): a strategy for records of that kind."""
    return drawn_records
