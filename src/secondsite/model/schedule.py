"""Times of the week: which bandwidth limit holds, and when a source may resynchronise by itself.

A window of the schedule holds on its days from `from` to before `to`; one whose `to` is not later than its `from` passes midnight and belongs to
the day on which it begins. The first window that holds decides; where none does, the policy's own limit holds. Times are those of
the policy's zone: the caller hands in the local time, since zones are read from files. When clocks are set back, the hour that comes
twice has its window twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypedDict

from secondsite.errors import InvalidInputError
from secondsite.model.units import GIB, KIB, MIB

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WINDOWS_MAX: Final = 50
LIMIT_MIN: Final = 8192
ALWAYS: Final = "always"
MANUAL: Final = "manual"
RESYNC_WINDOW: Final = "18:30-06:00"
"""Off-peak, as the field does it."""

_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00", re.ASCII)
_SPAN = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(|B|KB|MB|GB|KIB|MIB|GIB)(?:/S)?", re.ASCII)
_UNITS: Final = {
    "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": KIB, "MIB": MIB, "GIB": GIB,
}  # fmt: skip

BandwidthWindow = TypedDict(
    "BandwidthWindow", {"days": list[str], "from": str, "to": str, "limit": int | None}
)
"""`limit`: bytes a second, or None for no limit. Plain values, as they stand in the API and in records."""


def checked_windows(windows: Iterable[Mapping[str, Any]]) -> tuple[BandwidthWindow, ...]:
    """Return the schedule, its days in order; InvalidInputError says what is wrong with which window."""
    try:
        found = tuple(_checked(window, number) for number, window in enumerate(windows, 1))
    except (TypeError, AttributeError) as error:
        raise _refused("it is no list of {days, from, to, limit}") from error
    if len(found) > WINDOWS_MAX:
        raise _refused(f"it has more than {WINDOWS_MAX} windows")
    return found


def window_from_text(text: str) -> BandwidthWindow:
    """Parse "mon-fri 08:00-18:00 2MiB" (days with "-" and ","; "daily"; a limit in bytes, KiB, MiB, MB ... a second, or "none")."""
    words = text.split()
    span = _SPAN.fullmatch(words[1]) if len(words) == 3 else None
    if span is None:
        raise _refused(f"{text!r} is no window")
    window = {"days": _days(words[0], text), "from": span[1], "to": span[2], "limit": _rate(words[2], text)}
    return _checked(window, 1)


def text_of_window(window: BandwidthWindow) -> str:
    """Return the window as `window_from_text` reads it."""
    limit = "none" if window["limit"] is None else str(window["limit"])
    return f"{','.join(window['days'])} {window['from']}-{window['to']} {limit}"


def limit_at(windows: Iterable[BandwidthWindow], otherwise: int | None, local: datetime) -> int | None:
    """Return the limit in bytes a second that holds at `local`, a time of the schedule's zone; None for no limit."""
    today, minute = local.weekday(), local.hour * 60 + local.minute
    for window in windows:
        begin, end = _minute(window["from"]), _minute(window["to"])
        if end > begin:
            holds = DAYS[today] in window["days"] and begin <= minute < end
        else:
            yesterday = DAYS[(today - 1) % 7]
            holds = (DAYS[today] in window["days"] and minute >= begin) or (
                yesterday in window["days"] and minute < end
            )
        if holds:
            return window["limit"]
    return otherwise


def checked_resync_window(text: object) -> str:
    """Return `text` if it is "always", "manual" or "HH:MM-HH:MM" (UTC)."""
    if text in {ALWAYS, MANUAL}:
        return str(text)
    span = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if span is None or not all(_CLOCK.fullmatch(part) for part in span.groups()) or span[1] == span[2]:
        raise InvalidInputError(
            f"not a window for resynchronizations: {text!r}",
            hint='give "always", "manual", or two different times of the day in UTC: "18:30-06:00"',
            field="resync_window",
        )
    return span[0]


def may_resync(window: str, now: datetime) -> bool:
    """Say whether a source that lost its tracking may compare by itself at `now`."""
    if window in {ALWAYS, MANUAL}:
        return window == ALWAYS
    begin, end = (_minute(part) for part in window.split("-"))
    utc = now.astimezone(UTC)
    minute = utc.hour * 60 + utc.minute
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _checked(window: Mapping[str, Any], number: int) -> BandwidthWindow:
    where = f"window {number}"
    if set(window) != {"days", "from", "to", "limit"}:
        raise _refused(f"{where} needs days, from, to and limit, and nothing else")
    days, begin, end, limit = window["days"], window["from"], window["to"], window["limit"]
    if isinstance(days, str) or not days or set(days) - set(DAYS):
        raise _refused(f"{where} has days that are not among {', '.join(DAYS)}")
    for clock in (begin, end):
        if not isinstance(clock, str) or not _CLOCK.fullmatch(clock):
            raise _refused(f"{where} has {clock!r} where a time of the day should stand")
    if begin == end or begin == "24:00":
        raise _refused(f"{where} has no length; a whole day is 00:00-24:00")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < LIMIT_MIN):
        raise _refused(f"{where} has a limit that is neither none nor at least {LIMIT_MIN} bytes a second")
    return {"days": [day for day in DAYS if day in days], "from": begin, "to": end, "limit": limit}


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _days(word: str, text: str) -> list[str]:
    if word.lower() == "daily":
        return list(DAYS)
    found: set[str] = set()
    for part in word.lower().split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise _refused(f"{text!r} has the days {part!r}")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {DAYS[day % 7] for day in range(begin, end + 1 if end >= begin else end + 8)}
    return [day for day in DAYS if day in found]


def _rate(word: str, text: str) -> int | None:
    if word.lower() == "none":
        return None
    match = _RATE.fullmatch(word.upper())
    if match is None:
        raise _refused(f"{text!r} has the limit {word!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the bandwidth schedule cannot be used: {why}",
        hint='a window is, for example, "mon-fri 08:00-18:00 2MiB" or "sat,sun 00:00-24:00 none"',
        field="bandwidth_schedule",
    )
