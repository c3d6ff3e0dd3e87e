"""The handshake, as bytes: what each option answers, and that nothing a client sends gets further than it may."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.nbd import protocol as p
from secondsite.nbd.negotiation import OPTION_DATA_MAX, OPTIONS_MAX, TRANSMISSION_FLAGS, Session, negotiate
from support.nbd_wire import MemoryDisk, contexts, counted, go, option, replies

DISKS = {"vda": MemoryDisk(bytes(4096)), "vdb": MemoryDisk(bytes(8192))}
FLAGS = p.U32.pack(3)


def run(sent: bytes, exports: dict[str, MemoryDisk] = DISKS) -> tuple[bytes, Session | None, bool]:
    """Feed `sent` and return what was answered after the greeting, the session, and whether it ended."""
    steps = negotiate(exports)
    step = next(steps)
    assert step.send == b"NBDMAGICIHAVEOPT\x00\x03"
    answered = b""
    try:
        while len(sent) >= step.want:
            assert 0 <= step.want <= OPTION_DATA_MAX
            taken, sent = sent[: step.want], sent[step.want :]
            step = steps.send(taken)
            answered += step.send
    except StopIteration as end:
        return answered, end.value, True
    return answered, None, False


def answers(*options: bytes) -> list[tuple[int, int, bytes]]:
    answered, session, ended = run(FLAGS + b"".join(options))
    assert session is None
    assert not ended
    return replies(answered)


def test_go_answers_size_flags_and_block_sizes_then_enters_transmission() -> None:
    answered, session, ended = run(FLAGS + option(p.OPT_GO, go("vdb")))
    assert ended
    assert answered == b""
    assert session is not None
    assert session.disk is DISKS["vdb"]
    assert not session.structured
    assert not session.allocation
    assert replies(session.final) == [
        (p.OPT_GO, p.REP_INFO, struct.pack(">HQH", p.INFO_EXPORT, 8192, TRANSMISSION_FLAGS)),
        (p.OPT_GO, p.REP_INFO, struct.pack(">HIII", p.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)),
        (p.OPT_GO, p.REP_ACK, b""),
    ]


def test_transmission_flags_say_read_only_multi_conn_and_df() -> None:
    assert TRANSMISSION_FLAGS == 0b1_1000_0111  # has flags, read-only, flush, DF, multi-conn


def test_go_with_unknown_name_is_refused_and_the_handshake_goes_on() -> None:
    refused, listed, *_ = answers(option(p.OPT_GO, go("vdz")), option(p.OPT_LIST))
    assert refused[1] == p.REP_ERR_UNKNOWN
    assert listed[1] == p.REP_SERVER


def test_info_answers_as_go_but_stays_in_the_handshake() -> None:
    kinds = [(kind, data[:2]) for _, kind, data in answers(option(p.OPT_INFO, go("vda", p.INFO_NAME)))]
    assert kinds == [(p.REP_INFO, b"\0\0"), (p.REP_INFO, b"\0\3"), (p.REP_INFO, b"\0\1"), (p.REP_ACK, b"")]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0", counted("vda"), counted("vda") + b"\0\1", go("vda") + b"x", b"\xff\xff\xff\xffvda\0\0",
     p.U32.pack(2) + b"\xff\xfe\0\0", counted("v" * 4097) + b"\0\0"],
)  # fmt: skip
def test_malformed_go_is_invalid(data: bytes) -> None:
    assert [kind for _, kind, _ in answers(option(p.OPT_GO, data))] == [p.REP_ERR_INVALID]


def test_list_names_every_export() -> None:
    assert answers(option(p.OPT_LIST)) == [
        (p.OPT_LIST, p.REP_SERVER, counted("vda")),
        (p.OPT_LIST, p.REP_SERVER, counted("vdb")),
        (p.OPT_LIST, p.REP_ACK, b""),
    ]


def test_list_with_data_is_invalid() -> None:
    assert [kind for _, kind, _ in answers(option(p.OPT_LIST, b"x"))] == [p.REP_ERR_INVALID]


@pytest.mark.parametrize("number", [p.OPT_STARTTLS, 4, 11, 0, 0xFFFFFFFF])
def test_unknown_option_is_unsupported_and_its_data_skipped(number: int) -> None:
    unknown, structured = answers(option(number, b"some data"), option(p.OPT_STRUCTURED_REPLY))
    assert unknown == (number, p.REP_ERR_UNSUP, b"")
    assert structured[1] == p.REP_ACK


def test_export_name_sends_size_flags_and_zeroes_unless_told_not_to() -> None:
    for flags, zeroes in ((1, 124), (3, 0)):
        _, session, _ = run(p.U32.pack(flags) + option(p.OPT_EXPORT_NAME, b"vda"))
        assert session is not None
        assert session.final == struct.pack(">QH", 4096, TRANSMISSION_FLAGS) + bytes(zeroes)


@pytest.mark.parametrize("name", [b"vdz", b"", b"\xff", b"v" * 4097])
def test_export_name_that_is_unknown_closes(name: bytes) -> None:
    assert run(FLAGS + option(p.OPT_EXPORT_NAME, name)) == (b"", None, True)


def test_empty_name_is_the_only_export_if_there_is_one() -> None:
    _, session, _ = run(FLAGS + option(p.OPT_GO, go("")), {"vda": DISKS["vda"]})
    assert session is not None
    assert session.name == "vda"
    assert answers(option(p.OPT_GO, go("")))[0][1] == p.REP_ERR_UNKNOWN


def test_abort_is_acknowledged_and_closes() -> None:
    answered, session, ended = run(FLAGS + option(p.OPT_ABORT) + option(p.OPT_LIST))
    assert replies(answered) == [(p.OPT_ABORT, p.REP_ACK, b"")]
    assert (session, ended) == (None, True)


def test_allocation_is_selected_by_its_exact_name_after_structured_replies() -> None:
    sent = option(p.OPT_STRUCTURED_REPLY) + option(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))
    context = (p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, p.U32.pack(p.CONTEXT_ID) + b"base:allocation")
    assert answers(sent)[1:] == [context, (p.OPT_SET_META_CONTEXT, p.REP_ACK, b"")]
    for name, selected in (("vda", True), ("vdb", False)):
        _, session, _ = run(FLAGS + sent + option(p.OPT_GO, go(name)))
        assert session is not None
        assert session.structured
        assert session.allocation is selected


def test_meta_context_without_structured_replies_is_invalid() -> None:
    asked = option(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))
    assert answers(asked)[0][1] == p.REP_ERR_INVALID


@pytest.mark.parametrize("queries", [(), ("base:",), ("qemu:dirty-bitmap:x",)])
def test_set_selects_nothing_by_wildcard_or_foreign_name(queries: tuple[str, ...]) -> None:
    again = option(p.OPT_SET_META_CONTEXT, contexts("vda", *queries))
    first = option(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))
    sent = option(p.OPT_STRUCTURED_REPLY) + first + again
    assert answers(sent)[3:] == [(p.OPT_SET_META_CONTEXT, p.REP_ACK, b"")]
    _, session, _ = run(FLAGS + sent + option(p.OPT_GO, go("vda")))
    assert session is not None
    assert not session.allocation  # the second SET replaced the first


@pytest.mark.parametrize(
    ("queries", "found"), [((), True), (("base:",), True), (("base:allocation",), True), (("x:",), False)]
)
def test_list_meta_context_knows_wildcards(queries: tuple[str, ...], found: bool) -> None:
    kinds = [kind for _, kind, _ in answers(option(p.OPT_LIST_META_CONTEXT, contexts("vda", *queries)))]
    assert kinds == ([p.REP_META_CONTEXT] if found else []) + [p.REP_ACK]


def test_query_count_that_lies_is_invalid() -> None:
    lie = counted("vda") + p.U32.pack(0xFFFFFFFF) + counted("base:")
    assert [kind for _, kind, _ in answers(option(p.OPT_LIST_META_CONTEXT, lie))] == [p.REP_ERR_INVALID]


@pytest.mark.parametrize("flags", [4, 0xFFFFFFFF])
def test_unknown_client_flags_close(flags: int) -> None:
    assert run(p.U32.pack(flags)) == (b"", None, True)


def test_wrong_option_magic_closes() -> None:
    assert run(FLAGS + b"GET / HTTP/1.1\r\n") == (b"", None, True)


def test_option_that_is_too_long_is_refused_without_being_read() -> None:
    header = p.OPTION.pack(p.IHAVEOPT, p.OPT_GO, OPTION_DATA_MAX + 1)
    answered, session, ended = run(FLAGS + header)
    assert [kind for _, kind, _ in replies(answered)] == [p.REP_ERR_TOO_BIG]
    assert (session, ended) == (None, True)


def test_endless_options_are_cut_off() -> None:
    answered, session, ended = run(FLAGS + option(99) * (OPTIONS_MAX + 10))
    assert (session, ended) == (None, True)
    assert len(replies(answered)) == OPTIONS_MAX - 1


@given(st.binary(max_size=200))
def test_garbage_never_raises_and_never_opens_a_disk(data: bytes) -> None:
    _, session, _ = run(data)
    assert session is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.one_of(
                st.binary(max_size=64),
                st.builds(go, st.sampled_from(["vda", "", "x"]), st.integers(0, 5)),
                st.builds(contexts, st.sampled_from(["vda", "x"]), st.sampled_from(["base:", "base:allocation", ""])),
            ),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_every_option_gets_exactly_one_final_reply(options: list[tuple[int, bytes]]) -> None:
    answered, session, ended = run(FLAGS + b"".join(option(number, data) for number, data in options))
    if session is not None and session.name:
        assert session.disk is DISKS[session.name]
    if not ended:
        final = [number for number, kind, _ in replies(answered) if kind == p.REP_ACK or kind >> 31]
        assert final == [number for number, _ in options]
