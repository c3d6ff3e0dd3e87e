"""What comes over the wire parses exactly, or is refused with a typed error."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.model.ids import Digest, Epoch, Sequence
from secondsite.ship.protocol import (
    CELLS_PER_CALL_MAX,
    PARTS_PER_CALL_MAX,
    LastPoint,
    ReplicaStatus,
    parse_digests,
    parse_header_number,
    parse_kind,
    parse_number,
    parse_parts,
    parse_ranges,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    for parse in (
        parse_parts,
        parse_digests,
        parse_ranges,
        parse_kind,
        lambda v: parse_number(v, "x"),
        lambda v: ReplicaStatus.from_dict(
            v if isinstance(v, dict) else {"last": v, "state": "ready", "epoch": 1}
        ),
    ):
        with suppress(InvalidInputError):  # and nothing else
            parse(value)


@given(st.none() | st.text(max_size=25))
def test_header_number_is_decimal_digits_and_nothing_else(text: str | None) -> None:
    try:
        number = parse_header_number(text, "X")
    except InvalidInputError:
        assert (
            text is None
            or not (text.isascii() and text.isdigit())
            or int(text) > (1 << 63) - 1
            or len(text) > 19
        )
        return
    assert text is not None
    assert number == int(text)
    assert set(text) <= set("0123456789")


@given(
    st.integers(1, 1 << 40),
    st.none() | st.tuples(st.integers(1, 1 << 60), st.integers(1, 1 << 40), st.datetimes()),
)
def test_status_comes_back_as_it_went(epoch: int, last: tuple[int, int, datetime] | None) -> None:
    point = (
        None
        if last is None
        else LastPoint(Sequence(last[0]), Digest("ab" * 32), Epoch(last[1]), last[2].replace(tzinfo=UTC))
    )
    if point is not None and point.time.year < 1000:
        return  # strftime does not pad such years, and no point is that old
    status = ReplicaStatus(Epoch(epoch), "ready" if point else "initial", point)
    assert ReplicaStatus.from_dict(status.to_dict()) == status


def test_lists_are_bounded() -> None:
    part = {"digest": "0" * 64, "kind": "hrl"}
    assert len(parse_parts([part] * PARTS_PER_CALL_MAX)) == PARTS_PER_CALL_MAX
    with pytest.raises(InvalidInputError):
        parse_parts([part] * (PARTS_PER_CALL_MAX + 1))
    assert parse_ranges([[0, CELLS_PER_CALL_MAX]])
    with pytest.raises(InvalidInputError):
        parse_ranges([[0, CELLS_PER_CALL_MAX], [5, 1]])
