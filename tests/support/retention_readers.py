"""Readers of a journal in processes of their own: the view server of a test failover, an extract, a scrub.

An extract and a scrub go step by step: at each report of their progress they wait until they are told to go on, so that a
test decides what the writer does between two of their reads. Whatever harms a reader is a `HarmedError`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from secondsite.errors import SecondSiteError
from secondsite.nbd.image_base import ImageBase

_PATIENCE_S: Final = 60

_STEPPED: Final = """
import json, sys
from pathlib import Path
from secondsite.journal import Journal, verify_folder
from secondsite.journal.extract import extract_disk
from secondsite.model.ids import Sequence

what, folder, sequence, output, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])

def step(*_):
    print("step", flush=True)
    sys.stdin.readline()  # at the end of the input: go on

findings = []
for number in range(rounds):
    if what == "scrub":
        findings += [finding.to_dict() for finding in verify_folder(folder, progress=step)]
    else:
        with Journal.open(folder, writable=False).view(Sequence(sequence), purpose="extract", verify=True) as view:
            step()
            extract_disk(view, "vda", Path(f"{output}.{number}"), progress=step)
print(json.dumps({"findings": findings}), flush=True)
"""


class HarmedError(AssertionError):
    """A reader got something else than its point holds, or nothing."""


class SteppedReader:
    """An extract of a point's vda, or a scrub. A context manager that kills what is left."""

    def __init__(
        self, what: str, folder: Path, *, sequence: int = 0, output: Path | None = None, rounds: int = 1
    ) -> None:
        self._output = output
        self._rounds = rounds
        self.steps = 0
        self._free = False
        self.result: dict[str, Any] | None = None
        command = [sys.executable, "-c", _STEPPED, what, str(folder), str(sequence), str(output), str(rounds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._await()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                with suppress(BrokenPipeError):
                    stream.close()

    @property
    def running(self) -> bool:
        return self.result is None

    def step(self) -> None:
        """Let it read until it waits again, or has ended."""
        assert self._process.stdin is not None
        if self.running:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            self._await()

    def free(self) -> None:
        """Let it go on by itself; `end` is what may be called then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._free = True

    def end(self) -> list[bytes]:
        """Let it read to its end; return what it wrote, each time."""
        while self.running:
            if self._free:
                self._await()
            else:
                self.step()
        assert self.result is not None
        if self.result["findings"]:
            raise HarmedError(f"the scrub accuses a sound journal: {self.result['findings']}")
        if self._output is None:
            return []
        return [Path(f"{self._output}.{number}").read_bytes() for number in range(self._rounds)]

    def _await(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line == "step\n":
            self.steps += 1
        elif line:
            self.result = json.loads(line)
        else:
            assert self._process.stderr is not None
            said = self._process.stderr.read()
            raise HarmedError(f"a reader failed: {said[-600:]}")


class ViewServer:
    """`python -m secondsite.nbd.view`, as a test failover has it, and a client of it. A context manager that kills what is left."""

    def __init__(self, folder: Path, sequence: int, socket: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "secondsite.nbd.view",
            "--journal",
            str(folder),
            "--socket",
            str(socket),
        ]
        self._process = subprocess.Popen(
            [*command, "--sequence", str(sequence)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["sequence"] == sequence
        self._client = ImageBase(socket, export="vda")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.communicate()

    def check(self, expected: bytes, offset: int = 0, length: int | None = None) -> None:
        """Read through the server and compare with the disk that its point holds."""
        length = len(expected) - offset if length is None else length
        data = bytearray(length)
        try:
            self._client.readinto(offset, memoryview(data))
        except SecondSiteError as error:
            raise HarmedError(f"the view cannot be read at {offset}: {error.message}") from error
        if data != expected[offset : offset + length]:
            raise HarmedError(f"the view reads wrong in [{offset}, {offset + length})")

    def end(self) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        _, said = self._process.communicate(timeout=_PATIENCE_S)
        assert self._process.returncode == 0, said
