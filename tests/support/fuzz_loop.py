"""A small coverage-guided fuzzer: it keeps the inputs that reach new lines of the package under fuzz, and changes them further.

Why our own and not atheris: the sequence of inputs depends on the seed alone, many targets run in one process and inside the test suite, and
what is bounded (steps, memory, paths, silent logs) is looked at after every single input.

What counts as a failure, for every target: an exception that is none of ours; more traced lines and calls than the target allows (an endless loop: counted
in steps, not in seconds, so that a slow machine judges alike); more memory than it allows; an error that the product only logged as its own
bug; a path outside of the target's folder (see `path_watch`). What it does not do: it cannot interrupt a loop inside native code (the test's or tool's own time-out ends that).
"""

from __future__ import annotations

import logging
import random
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import secondsite
from support.fuzz_mutation import mutated

PACKAGE: Final = Path(secondsite.__file__).parent
PLANTED: Final = str(Path(__file__).with_name("fuzz_bugs.py"))
MIB: Final = 1 << 20
INPUT_MAX: Final = 96 << 10
SECONDS_MAX: Final = 20.0
"""Most time for one input; honest ones take milliseconds. Only a loop in native code meets this before the steps are up."""


class Finding(BaseException):
    """Something that must not be, found by the target or the loop. No Exception, so that no `except Exception` swallows it."""


class HangFinding(Finding):
    """More steps than an input may take."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed. `run` takes one input, swallows what is legitimate (errors of ours) and lets everything else out.

    traced: modules under `secondsite`, by path prefix ("hrl", "ship/body.py"). words: byte strings that mean something to it.
    """

    name: str
    traced: tuple[str, ...]
    seeds: Sequence[bytes]
    run: Callable[[bytes], None]
    words: Sequence[bytes] = ()
    steps_max: int = 400_000
    memory_max: int = 96 * MIB
    json_share: float = 0.0
    """How often a change is one of a value in a JSON document."""


@dataclass
class Outcome:
    """What a run found. `failure` is None if nothing."""

    target: str
    seed: int
    runs: int = 0
    lines: int = 0
    kept: int = 0
    seconds: float = 0.0
    failure: BaseException | None = None
    data: bytes = b""
    corpus: list[bytes] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.target}, seed {self.seed}: {self.runs} inputs in {self.seconds:.1f} s, {self.lines} lines reached, {self.kept} inputs kept"
        if self.failure is None:
            return head
        return f"{head}\n  FOUND {type(self.failure).__name__}: {self.failure}\n  input ({len(self.data)} bytes): {self.data[:400]!r}"


class Tracer:
    """Collects the lines of some modules that the calling thread reaches; raises HangFinding after too many."""

    def __init__(self, traced: Sequence[str], steps_max: int) -> None:
        self._prefixes = (*(str(PACKAGE / prefix) for prefix in traced), PLANTED)
        self._known: dict[CodeType, bool] = {}
        self._steps_max = steps_max
        self.steps = 0
        self.lines: set[tuple[CodeType, int]] = set()

    def __enter__(self) -> Tracer:
        self.steps = 0
        self.lines = set()
        self._before = sys.gettrace()  # the suite's own coverage, perhaps
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        wanted = self._known.get(code)
        if wanted is None:
            wanted = self._known[code] = code.co_filename.startswith(self._prefixes)
        self._step(frame)
        return self._line if wanted and event == "call" else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code, frame.f_lineno))
            self._step(frame)
        return self._line

    def _step(self, frame: FrameType) -> None:
        self.steps += 1
        if self.steps > self._steps_max:
            sys.settrace(None)
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            raise HangFinding(f"no end after {self.steps} lines and calls, at {where}")


class _OwnBugs(logging.Handler):
    """Remembers what the product logged with the trace of an exception that it did not foresee."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self.found.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


@contextmanager
def own_bugs() -> Iterator[list[str]]:
    """Collect what the product logs as unforeseen within."""
    handler = _OwnBugs()
    logger = logging.getLogger("secondsite")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def address_space(extra: int = 1536 * MIB) -> Iterator[None]:
    """Let this process grow by at most `extra` bytes within, so that a promised terabyte is a MemoryError, not the machine's end."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(
    target: Target, *, seed: int, runs: int | None = None, seconds: float | None = None, log: bool = False
) -> Outcome:
    """Feed the seeds, then changed inputs, until `runs` or `seconds` are over or something is found.

    The n-th input depends on the target and the seed alone.
    """
    outcome = Outcome(target.name, seed)
    rng = random.Random(f"{target.name}:{seed}")
    reached: set[object] = set()
    tracer = Tracer(target.traced, target.steps_max)
    began = time.monotonic()
    with address_space(), own_bugs() as logged:
        for data in _inputs(target, rng, outcome.corpus):
            outcome.seconds = time.monotonic() - began
            if (runs is not None and outcome.runs >= runs) or (
                seconds is not None and outcome.seconds >= seconds
            ):
                break
            outcome.runs += 1
            outcome.failure = _one(target, data, tracer, logged)
            new = _features(tracer) - reached
            if outcome.failure is None and new:
                reached |= new
                outcome.corpus.append(data)
                outcome.failure = _measured(target, data)
                if log:
                    print(f"  {outcome.runs}: {len(data)} bytes reach {len(new)} more", file=sys.stderr)
            if outcome.failure is not None:
                outcome.data = data
                break
    outcome.lines = sum(isinstance(feature, tuple) for feature in reached)
    outcome.kept = len(outcome.corpus)
    return outcome


def replay(target: Target, data: bytes) -> BaseException | None:
    """Run one input as `fuzz` does and return what it finds."""
    with address_space(), own_bugs() as logged:
        found = _one(target, data, Tracer(target.traced, target.steps_max), logged)
        return found or _measured(target, data)


def _inputs(target: Target, rng: random.Random, corpus: Sequence[bytes]) -> Iterator[bytes]:
    yield from target.seeds
    while True:
        pool = [*target.seeds, *corpus]
        # Often one of the latest finds: what was reached last is what was looked at least.
        parent = rng.choice(pool[-8:]) if rng.random() < 0.4 else rng.choice(pool)
        yield mutated(rng, parent, rng.choice(pool), target.words, target.json_share)[:INPUT_MAX]


def _features(tracer: Tracer) -> set[object]:
    return {*tracer.lines, tracer.steps.bit_length()}


def _one(target: Target, data: bytes, tracer: Tracer, logged: list[str]) -> BaseException | None:
    logged.clear()
    began, peak = time.monotonic(), _peak()
    try:
        with tracer:
            target.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    if logged:
        return Finding(f"logged as a bug of its own: {logged[0]}")
    if _peak() - peak > target.memory_max:
        return Finding(f"took {(_peak() - peak) // MIB} MiB")
    if time.monotonic() - began > SECONDS_MAX:
        return Finding(f"took {time.monotonic() - began:.1f} s")
    return None


def _measured(target: Target, data: bytes) -> BaseException | None:
    """Run once more and count the memory exactly."""
    tracemalloc.start(1)
    try:
        target.run(data)
        peak = tracemalloc.get_traced_memory()[1]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        tracemalloc.stop()
    return Finding(f"took {peak // MIB} MiB") if peak > target.memory_max else None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
