"""What is fuzzed of files: change logs, lists of zeros, manifests, and every file that a journal reads when it is opened.

The files get checksums that are right again after a change (for most inputs), so that what lies behind the checksum is reached: a checksum
is no defence against who can write one.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3

from secondsite.blocks import DigestTable
from secondsite.errors import CorruptError, SecondSiteError, UnsupportedError
from secondsite.hrl.format import ENTRY_LENGTH, HEADER_LENGTH, checksum
from secondsite.hrl.index import ExtentIndex
from secondsite.hrl.reader import read_log, verify_data
from secondsite.hrl.zeros import decode_zeros, encode_zeros
from secondsite.journal import Journal
from secondsite.journal.documents import Identity, load_base_state, load_epoch, load_identity
from secondsite.journal.pins import PinStore
from secondsite.journal.points import PointStore
from secondsite.model.manifest import Manifest
from support.fuzz_loop import MIB, Finding, Target
from support.hrl_logs import build_log, reader_of
from support.journals import KEY, VDA, Model, filled
from support.path_watch import paths_within

_SIZE_AT, _END_AT, _CHECKSUM_AT = 56, 44, 40
_FIELDS: Final = 128
"""Bytes of a log's header that mean something."""


# -- change logs and lists of zeros -----------------------------------------------------------------------


def log_target() -> Target:
    """The log reader. The first byte of an input: 1, the checksums are made right; 0, they are left. The header's padding is left out."""
    writes = [(i * 1536, bytes([i + 1]) * 512 * (1 + i % 2)) for i in range(20)]
    logs = [
        build_log(writes, metadata_size=512),
        build_log(writes[:3], metadata_size=512),
        build_log(writes[:2], metadata_size=4096),
        build_log([]),
        build_log(writes[:2], version=1),
    ]
    return Target(
        "log",
        ("hrl",),
        [bytes([mode]) + log[:_FIELDS] + log[HEADER_LENGTH:] for log in logs for mode in (1, 0)],
        _read_a_log,
        [b"msctlog\0", b"msctlog ", struct.pack("<I", 0x10000), struct.pack("<I", 0x20000), bytes(32)],
    )


def repaired(data: bytes) -> bytes:
    """Return the log with every checksum that can be found right again."""
    log = bytearray(data)
    if len(log) < HEADER_LENGTH:
        return data
    _sum(log, 0, HEADER_LENGTH, _CHECKSUM_AT)
    for at, size in _blocks(log):
        _sum(log, at, ENTRY_LENGTH, 12)
        for slot in range(at + ENTRY_LENGTH, at + size - ENTRY_LENGTH + 1, ENTRY_LENGTH):
            if any(log[slot : slot + ENTRY_LENGTH]):
                _sum(log, slot, ENTRY_LENGTH, 8)
    return bytes(log)


def _blocks(log: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield position and size of the metadata blocks, from the last one back: the plain way, for a sound log and for a changed one."""
    (at,) = struct.unpack_from("<Q", log, _END_AT)
    (size,) = struct.unpack_from("<I", log, _SIZE_AT)
    at -= size
    for _ in range(64):
        if not (ENTRY_LENGTH <= size <= len(log) and HEADER_LENGTH <= at <= len(log) - size):
            return
        yield at, size
        (distance,) = struct.unpack_from("<Q", log, at)
        if not distance:
            return
        at -= distance


def _sum(log: bytearray, at: int, length: int, where: int) -> None:
    log[at + where : at + where + 4] = bytes(4)
    log[at + where : at + where + 4] = struct.pack("<I", checksum(log[at : at + length]))


def _read_a_log(data: bytes) -> None:
    mode, fields, rest = data[:1], data[1 : 1 + _FIELDS], data[1 + _FIELDS :]
    content = fields.ljust(HEADER_LENGTH, b"\0") + rest if len(data) > 1 + _FIELDS else data[1:]
    if mode == b"\1":
        content = repaired(content)
    read = [0]

    def read_at(offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or length > len(content) + MIB:
            raise Finding(f"reads {length} bytes at {offset} of {len(content)}")
        read[0] += length
        if read[0] > 4 * len(content) + MIB:
            raise Finding(f"has read {read[0]} bytes of {len(content)}")
        return content[offset : offset + length]

    try:
        log = read_log(read_at, len(content))
    except (CorruptError, UnsupportedError):
        return
    entries = log.entries
    if len(entries) and (
        int(entries.location.min()) < HEADER_LENGTH
        or int((entries.location + entries.length).max()) > len(content)
    ):
        raise Finding("an entry's data lie outside of the file")
    for at, size in _blocks(content):
        if ((entries.location < at + size) & (entries.location + entries.length > at)).any():
            raise Finding("an entry's data lie within a metadata block")
    reach = (entries.offset.astype(object) + entries.length).max() if len(entries) else 0
    if reach > max(log.header.original_size, log.header.current_size):
        raise Finding("an entry lies beyond the disk")
    index = ExtentIndex.from_log(log, 0)
    if not (index.start < index.end).all() or not (index.end[:-1] <= index.start[1:]).all():
        raise Finding("the index is not sorted and disjoint")
    with suppress(CorruptError):
        verify_data(log, reader_of(content))


def zeros_target() -> Target:
    """The reader of zero lists: what it takes encodes to itself."""
    lists = [encode_zeros([]), encode_zeros([(0, 512)]), encode_zeros([(i * 4096, 1024) for i in range(50)])]
    return Target("zeros", ("hrl",), lists, _read_zeros, [b"SSZEROS\n", struct.pack("<II", 1, 0)])


def _read_zeros(data: bytes) -> None:
    try:
        extents = decode_zeros(data)
    except (CorruptError, UnsupportedError):
        return
    if encode_zeros(extents) != data:
        raise Finding("another encoding of the same zeros was taken")
    ExtentIndex.from_zeros(np.asarray(extents))


# -- manifests ---------------------------------------------------------------------------------------------


def manifest_target() -> Target:
    """The manifest reader: what it takes, it writes again, and reads back the same."""
    model = Model()
    files = {VDA: model.parts(VDA, [(0, b"a" * 4096), (8192, 4096)])}
    document = json.loads(model.manifest(files).to_bytes())
    document["labels"] = {"group": "g:1", "group.members": "2", "table.vda": "0" * 64}
    document["replaces"] = ["1" * 64]
    seeds = [model.manifest(files).to_bytes(), json.dumps(document).encode()]
    words = [json.dumps(key).encode() for key in (*document, *document["disks"]["vda"], "digest", "length")]
    return Target(
        "manifest", ("model/manifest.py", "model/ids.py"), seeds, _read_a_manifest, words, json_share=0.6
    )


def _read_a_manifest(data: bytes) -> None:
    try:
        manifest = Manifest.from_bytes(data)
    except (CorruptError, UnsupportedError) as error:
        json.dumps(error.to_dict())
        return
    if Manifest.from_bytes(manifest.to_bytes()) != manifest:
        raise Finding("the manifest reads back as another one")


# -- journals ----------------------------------------------------------------------------------------------

_PATHS: Final = [b"base/vda.raw", b"base/vdb.raw", b"../../x", b"/etc/hosts", b"base/../../x"]
_MARK: Final = b"\n--file--\n"


def journal_target(folder: Path) -> Target:
    """A journal of which some files were replaced. An input: name, a newline, 1 or 0 (checksums made right or not), the content; more of them after _MARK."""
    sound = folder / "sound"
    model, journal = filled(sound, 3)
    journal.pin(journal.points()[-1].sequence, "fuzz")
    journal.close()
    names = sorted(path for path in sound.rglob("*") if path.is_file())
    seeds = [
        str(path.relative_to(sound)).encode() + b"\n1" + path.read_bytes()[:8192]
        for path in names
        if path.name != "lock" and path.suffix != ".raw"
    ]
    seeds += [seeds[0] + _MARK + seeds[1], b"pins/view-0123.json\n0{}", b"points/0000000000000009.point\n1{}"]
    words = [str(path.relative_to(sound)).encode() + b"\n1" for path in names]
    words += [
        b'"raw"',
        b'"image"',
        b'"initial"',
        b'"ready"',
        b"base/vda.raw",
        b"../../x",
        b"/etc/hosts",
        _MARK,
    ]
    assert model.sequence == 3
    traced = ("journal", "blocks/table.py", "model", "durable.py")
    return Target("journal", traced, seeds, lambda data: _open_a_journal(folder, data), words, json_share=0.6)


def _open_a_journal(folder: Path, data: bytes) -> None:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "sound", work / "journal")
    place = work / "journal"
    for replaced in data.split(_MARK)[:4]:
        _replace(place, replaced)
    with paths_within(place) as outside:
        for writable in (True, False):
            with suppress(SecondSiteError), Journal.open(place, writable=writable) as journal:
                _look(journal)
                if not writable:
                    _read(journal)
    allowed = {f"open {work}", f"os.scandir {work}"}  # the folder above is synced after a rename
    if strange := [path for path in outside if path not in allowed]:
        raise Finding(f"outside of the journal: {strange[:3]}")


def _look(journal: Journal) -> None:
    json.dumps(journal.status().damage)
    journal.points()
    with suppress(SecondSiteError):
        journal.pins()


def _read(journal: Journal) -> None:
    for point in journal.points()[-1:]:
        with suppress(SecondSiteError), journal.view(point.sequence, purpose="fuzz", verify=True) as view:
            for disk in view.disks.values():
                disk.readinto(0, memoryview(bytearray(min(disk.size, 64 << 10))))
    with suppress(SecondSiteError):
        for finding in journal.verify():
            json.dumps(str(finding))


def _replace(place: Path, text: bytes) -> None:
    """Write one file of an input; a name that leads out of the folder is not ours to write."""
    head, _, content = text.partition(b"\n")
    name = head.decode("utf-8", "replace")
    if not name or "\0" in name or ".." in name or name.startswith("/") or len(name) > 200:
        return
    path = place / name
    content = sealed(name, content[1:]) if content[:1] == b"1" else content[1:]
    with suppress(OSError, UnicodeEncodeError):
        path.write_bytes(content)


def sealed(name: str, content: bytes) -> bytes:
    """Return the content with its checksum right: of a small document, a point, a table or a log."""
    if name.endswith(".point"):
        body = content[: content.rfind(b"}") + 1]
        return body + f"\n{blake3(body).hexdigest()}\n".encode()
    if name.endswith(".tbl"):
        return content[:32] + blake3(content[:32]).digest() + content[64:]
    if name.endswith(".hrl"):
        return repaired(content)
    if name.endswith(".json") and "/" not in name:
        try:
            document = json.loads(content[: content.rfind(b"}") + 1])
            document.pop("checksum", None)
            body = _canonical(document)
            return _canonical({**document, "checksum": blake3(body).hexdigest()}) + b"\n"
        except (ValueError, RecursionError, AttributeError):
            return content
    return content


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# -- single files of a journal -----------------------------------------------------------------------------


def documents_target(folder: Path) -> Target:
    """The readers of a journal's small files, one file an input (written like `journal_target`'s): many more inputs a second."""
    sound = folder / "sound"
    _, journal = filled(sound, 3)
    journal.pin(journal.points()[-1].sequence, "fuzz")
    journal.close()
    names = ["journal.json", "epoch.json", "base.json", "points/0000000000000003.point", "base/vda.tbl"]
    seeds = [name.encode() + b"\n1" + (sound / name).read_bytes()[:4200] for name in names]
    seeds += [b"base.json\n1" + json.dumps({"state": "initial", "checksum": ""}).encode()]
    pin = next((sound / "pins").glob("lasting-*"))
    seeds += [b"pins/lasting-0-3.json\n0" + pin.read_bytes()]
    words = [name.encode() + b"\n1" for name in names]
    words += [b'"raw"', b'"image"', b'"initial"', b'"ready"', b'"grown_from":', *_PATHS]
    work = folder / "work"
    for part in ("points", "pins", "base"):
        (work / part).mkdir(parents=True)
    traced = ("journal", "blocks/table.py", "model")
    return Target(
        "documents", traced, seeds, lambda data: _read_a_document(work, data), words, json_share=0.7
    )


def _read_a_document(work: Path, data: bytes) -> None:
    for path in work.rglob("*"):
        if path.is_file():
            path.unlink()
    _replace(work, data)
    name = data.partition(b"\n")[0]
    reader = next((read for start, read in _READERS if name.startswith(start)), None)
    if reader is None:
        return
    with suppress(SecondSiteError), paths_within(work) as outside:
        reader(work)
    if outside:
        raise Finding(f"outside of the journal: {outside[:3]}")


def _read_base_state(work: Path) -> None:
    state = load_base_state(work / "base.json")
    for number in (state.sequence, state.folding_to):
        _whole(1 if number is None else number, "sequence")


def _read_points(work: Path) -> None:
    store = PointStore(work / "points")
    for sequence in store.sequences():
        json.dumps(store.load(sequence).info().kind)


def _read_a_table(work: Path) -> None:
    with suppress(FileNotFoundError):  # the store takes care of this one
        DigestTable.open(work / "base" / "vda.tbl", KEY, writable=False).close()


def _check_identity(identity: Identity, work: Path) -> None:
    if len(identity.key) != len(KEY):
        raise Finding(f"a key of {len(identity.key)} bytes")
    for spec in identity.disks.values():
        if spec.kind == "raw" and not spec.path.resolve().is_relative_to((work / "base").resolve()):
            raise Finding(f"a raw base outside of the journal: {str(spec.path)[:200]!r}")
        for size in (spec.size, 512 if spec.grown_from is None else spec.grown_from):
            _whole(size, "size")


def _whole(value: object, what: str) -> None:
    if type(value) is not int or not 1 <= value < 1 << 63:
        raise Finding(f"not a {what}: {value!r}"[:200])


_READERS: Final[tuple[tuple[bytes, Callable[[Path], object]], ...]] = (
    (b"journal.json", lambda work: _check_identity(load_identity(work / "journal.json"), work)),
    (b"epoch.json", lambda work: _whole(load_epoch(work / "epoch.json"), "epoch")),
    (b"base.json", _read_base_state),
    (b"pins/", lambda work: PinStore(work / "pins").all()),
    (b"points/", _read_points),
    (b"base/", _read_a_table),
)
"""By the beginning of the file's name."""
