"""How one input becomes another: bytes, numbers, words of the format, and values of JSON. Pure; randomness comes in."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

NUMBERS: Final = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 511, 512, 513, 4095, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31,
                  (1 << 32) - 1, 1 << 32, (1 << 62) - 512, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
HOSTILE: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 1, 1.5, 1e308, float("inf"), float("nan"), 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, 10**16, 10**40, "", "0", "..", "../x", "/etc/passwd",
    "../../../tmp/x", "a\0b", "x" * 5000, "\ud800", "\u202e", "é", "A" * 64, "0" * 64, [], {}, [[]], {"": None}, [None], "vda", "vdz", "VDA",
)  # fmt: skip
"""Values that a JSON document must not get by with."""

Mutation = Callable[[random.Random, bytes, bytes, Sequence[bytes]], bytes]


def mutated(
    rng: random.Random, data: bytes, other: bytes, words: Sequence[bytes], json_share: float = 0.2
) -> bytes:
    """Return `data` changed in one to three ways; `other` is another input to take from, `json_share` how often a value of JSON is changed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = _json if rng.random() < json_share else rng.choice(_MUTATIONS)
        data = change(rng, data, other, words)
    return data


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _flip(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _byte(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice((b"\0", b"\xff", b"\x7f", b"\n", b"/", rng.randbytes(1))) + data[at + 1 :]


def _number(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    """Write a number that often matters over 1, 2, 4 or 8 bytes, in either order."""
    size = rng.choice("BHIQ")
    packed = struct.pack(
        rng.choice("<>") + size, rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(size)) - 1)
    )
    at = _place(rng, data)
    if rng.random() < 0.7:
        at -= at % len(packed)
    return data[:at] + packed + data[at + len(packed) :]


def _digits(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    """Replace a run of decimal digits by another number."""
    places = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    if not places:
        return data
    start = end = rng.choice(places)
    while start > 0 and data[start - 1 : start].isdigit():
        start -= 1
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    number = rng.choice((*NUMBERS, -1, 10**16, 10**30))
    return data[:start] + (b"%x" if rng.random() < 0.2 else b"%d") % number + data[end:]


def _cut(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    start = _place(rng, data)
    return data[:start] if rng.random() < 0.3 else data[:start] + data[start + rng.randrange(1, 65) :]


def _repeat(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    start = _place(rng, data)
    piece = data[start : start + rng.randrange(1, 257)]
    return data[:start] + piece * rng.choice((2, 2, 3, 20)) + data[start:]


def _word(rng: random.Random, data: bytes, _other: bytes, words: Sequence[bytes]) -> bytes:
    if not words:
        return data
    word = rng.choice(words)
    at = _place(rng, data)
    return data[:at] + word + data[at + (len(word) if rng.random() < 0.5 else 0) :]


def _exchange(rng: random.Random, data: bytes, _other: bytes, words: Sequence[bytes]) -> bytes:
    """Put one word of the format in another one's place."""
    found = [word for word in words if word in data]
    if not found:
        return data
    return data.replace(rng.choice(found), rng.choice(words), 1)


def _splice(rng: random.Random, data: bytes, other: bytes, _words: Sequence[bytes]) -> bytes:
    at = _place(rng, other)
    return data[: _place(rng, data)] + other[at : at + rng.randrange(1, 4096)]


def _json(rng: random.Random, data: bytes, _other: bytes, _words: Sequence[bytes]) -> bytes:
    """Change one value of the first JSON object in `data`."""
    start, end = data.find(b"{"), data.rfind(b"}") + 1
    if start < 0 or end <= start:
        return data
    try:
        document = json.loads(data[start:end])
    except (ValueError, RecursionError):
        return data
    if rng.random() < 0.03:
        deep = rng.choice((b"[", b'{"a":'))
        return data[:start] + deep * 20_000 + data[end:]
    _change(rng, document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return data[:start] + text.encode("utf-8", "surrogatepass") + data[end:]


def _change(rng: random.Random, document: Any) -> None:
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = rng.choice(keys)
        value = document[key]
        if isinstance(value, dict | list) and value and rng.random() < 0.75:
            document = value
            continue
        break
    what = rng.random()
    if what < 0.1:
        del document[key]
    elif what < 0.2 and isinstance(document, list):
        document += [value] * rng.choice((1, 5, 5000))
    elif what < 0.3 and isinstance(document, dict):
        document[str(rng.choice(HOSTILE))] = value
    elif what < 0.4 and isinstance(value, int):
        document[key] = value + rng.choice((-1, 1, -512, 512, 1 << 40))
    else:
        alike = [other for other in HOSTILE if type(other) is type(value)] if rng.random() < 0.6 else []
        document[key] = rng.choice(alike or HOSTILE)


_MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip, _flip, _byte, _number, _number, _digits, _cut, _repeat, _word, _exchange, _exchange, _exchange, _splice,
)  # fmt: skip
