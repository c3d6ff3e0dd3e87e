import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import CorruptError, InvalidInputError, UnsupportedError
from secondsite.model.manifest import (
    MANIFEST_BYTES_MAX,
    Consistency,
    DiskPoint,
    FileRef,
    Manifest,
    PointKind,
    VmDefinition,
    format_time,
    parse_time,
)

ITEM = "0a1b2c3d-0000-4000-8000-123456789abc"
TIME = datetime(2026, 11, 23, 5, 0, 0, 123456, tzinfo=UTC)

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
files = st.builds(FileRef, digest=digests, length=st.integers(1, 1 << 40))
disks = st.builds(
    DiskPoint,
    size=st.integers(1, 1 << 40).map(lambda sectors: sectors * 512),
    logs=st.lists(files, max_size=3).map(tuple),
    zeros=st.none() | files,
    changed=st.integers(0, 1 << 50),
)
manifests = st.builds(
    Manifest,
    item=st.uuids().map(str),
    name=texts,
    epoch=st.integers(1, 1 << 40),
    sequence=st.integers(1, 1 << 40),
    time=st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)),
    consistency=st.sampled_from(Consistency),
    kind=st.sampled_from(PointKind),
    previous=st.none() | digests,
    disks=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True), disks, min_size=1, max_size=3
    ),
    vm=st.builds(VmDefinition, format=texts, text=texts),
    replaces=st.lists(digests, max_size=3).map(tuple),
    labels=st.dictionaries(texts, texts, max_size=3),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def document():
    return {
        "format": "secondsite-point/1",
        "item": ITEM,
        "name": "web",
        "epoch": 1,
        "sequence": 7,
        "time": "2026-11-23T05:00:00.123456Z",
        "consistency": "crash",
        "kind": "delta",
        "previous": "ab" * 32,
        "replaces": ["cd" * 32],
        "labels": {"why": "test"},
        "disks": {
            "vda": {
                "size": 1 << 20,
                "changed": 4096,
                "logs": [{"digest": "ef" * 32, "length": 9000}],
                "zeros": {"digest": "01" * 32, "length": 40},
            }
        },
        "vm": {"format": "libvirt", "text": "<domain/>"},
    }


def encoded(fields):
    return json.dumps(fields).encode()


@given(manifests)
def test_a_manifest_reads_back_as_it_was_written(manifest):
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert Manifest.from_bytes(data).to_bytes() == data


def test_the_bytes_are_canonical():
    data = Manifest.from_bytes(encoded(document())).to_bytes()
    assert data == json.dumps(document(), sort_keys=True, separators=(",", ":")).encode()


def test_fields_are_what_the_document_says():
    manifest = Manifest.from_bytes(encoded(document()))
    assert (manifest.item, manifest.name, manifest.epoch, manifest.sequence) == (ITEM, "web", 1, 7)
    assert manifest.time == TIME
    assert manifest.disks["vda"].logs == (FileRef("ef" * 32, 9000),)
    assert manifest.disks["vda"].zeros == FileRef("01" * 32, 40)


def paths(value, at=()):
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths(inner, (*at, number))


def changed(at, value):
    fields = document()
    inner = fields
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return fields


FIELDS = [path for path in paths(document()) if path]


@pytest.mark.parametrize("path", [path for path in FIELDS if isinstance(path[-1], str)], ids=str)
def test_a_missing_field_is_refused_unless_it_names_a_member(path):
    fields = document()
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    if path == ("labels", "why"):
        assert Manifest.from_bytes(encoded(fields)).labels == {}
        return
    with pytest.raises((CorruptError, UnsupportedError)):
        Manifest.from_bytes(encoded(fields))


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_anywhere_is_read_or_refused_and_nothing_else(path, value):
    try:
        manifest = Manifest.from_bytes(encoded(changed(path, value)))
    except (CorruptError, UnsupportedError):
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("item",), ITEM.upper()),
        (("item",), "../../etc"),
        (("epoch",), 0),
        (("epoch",), True),
        (("epoch",), 1.0),
        (("sequence",), 1 << 63),
        (("time",), "2026-11-23T05:00:00Z"),
        (("time",), "2026-13-23T05:00:00.000000Z"),
        (("consistency",), "perhaps"),
        (("kind",), []),
        (("previous",), "AB" * 32),
        (("disks",), {}),
        (("disks",), {"../vda": document()["disks"]["vda"]}),
        (("disks", "vda", "size"), 100),
        (("disks", "vda", "size"), 1000),
        (("disks", "vda", "changed"), -1),
        (("disks", "vda", "logs", 0, "length"), 0),
        (("vm", "text"), None),
        (("labels",), {"a": 1}),
        (("labels",), None),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_corruption(path, value):
    with pytest.raises(CorruptError):
        Manifest.from_bytes(encoded(changed(path, value)))


@given(st.binary(max_size=200))
def test_random_bytes_are_corruption(data):
    with pytest.raises((CorruptError, UnsupportedError)):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format":' + b"[" * 100_000],
    ids=["empty", "list", "null", "cut", "not UTF-8", "deep", "deep within"],
)
def test_what_is_no_json_object_is_corruption(data):
    with pytest.raises(CorruptError):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("name", ["\\ud800", "\\udfff"])
def test_a_text_that_is_no_unicode_is_corruption(name):
    data = encoded(document()).replace(b'"web"', f'"{name}"'.encode())
    with pytest.raises(CorruptError):
        Manifest.from_bytes(data)


def test_a_manifest_that_is_too_large_is_not_even_parsed():
    with pytest.raises(CorruptError):
        Manifest.from_bytes(b" " * (MANIFEST_BYTES_MAX + 1))


@pytest.mark.parametrize("found", ["secondsite-point/2", None, 1, [], "x"])
def test_another_format_is_refused_as_such(found):
    with pytest.raises(UnsupportedError):
        Manifest.from_bytes(encoded(changed(("format",), found)))


def test_times_are_written_in_utc():
    there = timezone(timedelta(hours=5, minutes=30))
    assert format_time(TIME.astimezone(there)) == "2026-11-23T05:00:00.123456Z"
    assert parse_time(format_time(TIME)) == TIME


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(InvalidInputError):
        format_time(datetime(2026, 11, 23))


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_reads_back(time):
    assert parse_time(format_time(time)) == time


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        None,
        5,
        "2026-11-23T05:00:00.000000+00:00",
        "2026-02-30T00:00:00.000000Z",
        "2026-02-27T24:00:00.000000Z",
        "\u0662026-11-23T05:00:00.000000Z",
    ],
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InvalidInputError):
        parse_time(text)
