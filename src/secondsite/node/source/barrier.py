"""A stand-still: several machines of this host suspended at once, looked at, and resumed, whatever happens in between.

What it promises: no machine stays suspended because of us. A watchdog resumes all when the stand-still lasts too long; a
resume that fails is repeated until it succeeds; and a note, durable before the first suspend, tells a guard outside of this
process, and the next process, which machines to resume after a kill. An operator's pause has no note and is left alone.

    <folder>/<group>-<number>.paused    {"boot": id of the host's boot, "machines": [UUIDs that ran and are about to be suspended]}
             ...-left.paused            the same, of those that are still to be resumed
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import structlog

from secondsite import durable
from secondsite.errors import NotFoundError, SecondSiteError
from secondsite.fabric.port import Fabric, PowerState
from secondsite.node.source.resume_guard import ResumeGuard

PAUSE_MAX_S: Final = 2.0
"""How long machines stand still at most before the watchdog resumes them."""
RETRY_S: Final = 1.0
_WORKERS: Final = 8
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SUFFIX: Final = ".paused"
_LEFT: Final = "-left.paused"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Pausing:
    """What the stand-stills of a node share, and the resumes that are owed."""

    def __init__(
        self,
        fabric: Fabric,
        folder: Path,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
        *,
        pause_max_s: float = PAUSE_MAX_S,
        guard: ResumeGuard | None = None,
        boot_id: Callable[[], str] = _BOOT_ID.read_text,
    ) -> None:
        self.fabric = fabric
        self.folder = folder
        self.clock = clock
        self.monotonic = monotonic
        self.pause_max_s = pause_max_s
        self._guard = guard
        self._boot_id = boot_id
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def note(self, name: str) -> Path:
        """Return where the note of a stand-still lies."""
        return self.folder / f"{name}{_SUFFIX}"

    def write(self, path: Path, machines: Collection[str]) -> None:
        """Write a note, durably, and have it watched over."""
        if self._guard is not None:
            with self._lock:
                self._guard.watch(self.folder)
        note = {"boot": _plain(self._boot_id()), "machines": sorted(machines)}
        durable.write_atomic(path, json.dumps(note).encode())

    def resume_left(self) -> None:
        """Resume at once what a process that died left suspended; who cannot be resumed is tried again and again."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            if not path.name.endswith(_LEFT):
                path.rename(path.with_name(f"{path.name.removesuffix(_SUFFIX)}{_LEFT}"))
        if not self._resume_left():
            self._keep_trying()

    def owe(self, name: str, machines: Collection[str]) -> None:
        """These could not be resumed: note it, and try until they are."""
        self.write(self.folder / f"{name}{_LEFT}", machines)
        self._keep_trying()

    def close(self) -> None:
        """End the attempts; what is owed stays noted for the next start."""
        self._ending.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        if self._guard is not None:
            self._guard.close()

    def _keep_trying(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._try, name="resume", daemon=True)
                self._thread.start()

    def _try(self) -> None:
        while not self._ending.wait(RETRY_S):
            if self._resume_left():
                with self._lock:
                    if not self._left():
                        self._thread = None
                        return

    def _resume_left(self) -> bool:
        # Every one of them, also after one that failed.
        return all([self._resume_noted(path) for path in self._left()])  # noqa: C419

    def _left(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_LEFT}"))

    def _resume_noted(self, path: Path) -> bool:
        try:
            note = json.loads(path.read_text())
            machines = [str(vm) for vm in note["machines"]]
            if note["boot"] != _plain(self._boot_id()):
                machines = []  # nobody has been suspended since; who stands still now was paused by somebody else
        except FileNotFoundError:
            return True  # the guard was faster
        except (ValueError, KeyError, TypeError):
            # Written atomically, so this is damage; nobody can say any more which machines it named.
            log.exception("a note of suspended machines is damaged: look for paused machines", path=str(path))
            _remove_note(path)
            return True
        if machines:
            log.warning("resuming machines that were suspended for a common point", machines=machines)
        done = all([resumed(self.fabric, vm) for vm in machines])  # noqa: C419 - every one
        if done:
            _remove_note(path)
        return done


def resumed(fabric: Fabric, vm: str) -> bool:
    """Resume a machine; true if it does not stand still any more (it runs, is off, or is gone)."""
    try:
        fabric.resume(vm)
        return fabric.power(vm) is not PowerState.PAUSED
    except NotFoundError:
        return True
    except SecondSiteError as error:
        log.warning("a machine could not be resumed", vm=vm, error=error.to_dict())
        return False


def _plain(boot_id: str) -> str:
    """The boot's id without dashes: what looks like a UUID in a note is a machine (the guard reads it so)."""
    return boot_id.strip().replace("-", "")


def _remove_note(path: Path) -> None:
    """Remove a note, durably: one that came back after a power cut would undo an operator's pause."""
    path.unlink(missing_ok=True)
    durable.fsync_dir(path.parent)


class StandStill:
    """One stand-still. `begin` once, then `end` (which may be called in spite of a failed `begin`).

    machines: UUIDs; those that run are suspended, and the others must stay as they are for the cut to hold.
    expired: called in the watchdog's thread before it resumes everybody.
    """

    def __init__(
        self, pausing: Pausing, name: str, machines: Collection[str], expired: Callable[[], None]
    ) -> None:
        self._pausing = pausing
        self._name = name
        self._note = pausing.note(name)
        self._machines = tuple(machines)
        self._expired = expired
        self._lock = threading.Lock()
        self._before: dict[str, PowerState] = {}
        self._ours: set[str] = set()
        self._released = False
        self._broken = False
        self._began = 0.0
        self._watchdog = threading.Timer(pausing.pause_max_s, self._expire)
        self._watchdog.daemon = True
        self.pause_s = 0.0
        """How long the machines stood still, once they run again."""

    def begin(self) -> datetime:
        """Suspend what runs; return the time, read when all stood still.

        Raises:
            SecondSiteError: a machine could not be suspended. What was suspended runs again.
        """
        fabric = self._pausing.fabric
        self._before = self._each(self._machines, fabric.power)
        running = [vm for vm, power in self._before.items() if power is PowerState.RUNNING]
        self._pausing.write(self._note, running)
        self._began = self._pausing.monotonic()
        self._watchdog.start()
        try:
            self._each(running, self._suspend)
        except BaseException:
            self._broken = True
            self.end()
            raise
        return self._pausing.clock()

    def end(self) -> bool:
        """Resume everybody; true if all stood still from `begin` to now."""
        held = not self._broken and self._still_stand()
        self._watchdog.cancel()
        self._release()
        return held and not self._broken

    # -- parts -----------------------------------------------------------------------------------------------

    def _suspend(self, vm: str) -> None:
        try:
            ours = self._pausing.fabric.suspend(vm)
        except NotFoundError:
            raise
        except SecondSiteError:
            with self._lock:
                self._ours.add(vm)  # nobody knows: it may stand still in a moment
                late = self._released
            if late:
                self._resume([vm])
            raise
        with self._lock:
            if ours:
                self._ours.add(vm)
            late = self._released
        if late:
            self._resume([vm])

    def _still_stand(self) -> bool:
        """Whether each machine is as it was when all stood still: nobody resumed or started one meanwhile."""
        wanted = {
            vm: PowerState.PAUSED if power is PowerState.RUNNING else power
            for vm, power in self._before.items()
        }
        try:
            return self._each(self._machines, self._pausing.fabric.power) == wanted
        except SecondSiteError as error:
            log.warning("nobody knows whether all stood still", error=error.to_dict())
            return False

    def _expire(self) -> None:
        self._broken = True
        log.warning("a common pause lasted too long and was ended", machines=sorted(self._ours))
        self._expired()
        self._release()

    def _release(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            ours = sorted(self._ours)
        self._resume(ours)
        self.pause_s = self._pausing.monotonic() - self._began
        _remove_note(self._note)

    def _resume(self, machines: Collection[str]) -> None:
        """Resume; who cannot be resumed now is owed it."""
        outcome = self._each(machines, lambda vm: resumed(self._pausing.fabric, vm))
        failed = sorted(vm for vm, done in outcome.items() if not done)
        if failed:
            self._pausing.owe(self._name, failed)

    def _each(self, machines: Collection[str], call: Callable[[str], T]) -> dict[str, T]:
        if len(machines) < 2:
            return {vm: call(vm) for vm in machines}
        with ThreadPoolExecutor(min(_WORKERS, len(machines)), thread_name_prefix="still") as pool:
            return dict(zip(machines, pool.map(call, machines), strict=True))
