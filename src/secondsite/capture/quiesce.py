"""Freezes a guest's file systems while a snapshot begins, so that its point is consistent for the guest's software.

Promises:

- A freeze is bounded (`limit_s`, from the order to freeze to the thaw): a watchdog thaws, whatever the snapshot waits for.
- It is always thawed. Before the order to freeze a marker is written; it goes when the guest has said that it is thawed. Who finds
  a marker thaws (`thaw_leftover`): the node when it starts, and every cycle before it does anything else. And a guard outside of this
  process looks for the marker when the limit has run out, so the guest does not wait for a node that stays dead.
- It costs no point: what fails (no agent, no answer, a hook that says no, a limit that ran out) makes a crash-consistent one.
- Held to the end, or not at all: a point is called application-consistent only if the guest says, when it is thawed,
  that it was still frozen.

Hooks. The guest agent runs its own (`guest-agent --fsfreeze-hook`, mostly /etc/qemu/fsfreeze-hook) around the freeze. Besides, the programs
PRE_FREEZE and POST_THAW in the guest are run if they exist and the agent may run programs: the first before the freeze, and if it
fails or takes longer than HOOK_S nothing is frozen; the second after the thaw, also if the freeze failed.

What it does not do: it takes no snapshot, and it does not say when one is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog

from secondsite.errors import SecondSiteError, TimeoutExceededError, UnavailableError

T = TypeVar("T")

LIMIT_S: Final = 10.0
HOOK_S: Final = 60.0
PRE_FREEZE: Final = "/etc/secondsite/pre-freeze"
POST_THAW: Final = "/etc/secondsite/post-thaw"
_THAW_AGAIN_S: Final = 0.5

log = structlog.get_logger(__name__)


class GuestAgent(Protocol):
    """The agent in one guest. No call waits for longer than some seconds.

    Each raises UnavailableError if the agent does not answer, UnsupportedError if the machine has no channel for one.
    """

    def has_guest(self) -> bool:
        """Whether there is anything to freeze: a machine that is off has no file systems in use."""
        ...

    def freeze(self) -> int:
        """Freeze all file systems; return how many. After an error they may be frozen all the same."""
        ...

    def thaw(self) -> int:
        """Thaw them; return how many were frozen. A machine that is off or gone has none."""
        ...

    def run(self, program: str, timeout_s: float) -> int | None:
        """Run a program in the guest to its end; return its exit code, or None if there is none or it may not be run.

        Raises:
            TimeoutExceededError: it runs still.
        """
        ...


class Guard(Protocol):
    """Thaws if this process cannot any more; see guard.py."""

    def begin(self, marker: Path, limit_s: float) -> None:
        """A freeze begins."""
        ...

    def end(self) -> None:
        """The guest was thawed."""
        ...


class Quiescer:
    """Freezes one guest. `marker`: a file of this guest's alone; its folder exists."""

    def __init__(
        self,
        agent: GuestAgent,
        marker: Path,
        *,
        limit_s: float = LIMIT_S,
        hook_s: float = HOOK_S,
        guard: Guard | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._agent = agent
        self._marker = marker
        self._limit_s = limit_s
        self._hook_s = hook_s
        self._guard = guard
        self._pause = pause

    def has_guest(self) -> bool:
        """Whether the machine runs."""
        return self._agent.has_guest()

    def around(self, begin: Callable[[], T]) -> tuple[T, SecondSiteError | None]:
        """Call `begin` while the guest's file systems are frozen.

        Returns its result, and None or why the guest was not frozen for all of that time. What `begin` raises is
        raised, after the thaw.
        """
        problem, heard = self._prepare()
        if problem is not None:
            if heard:
                self._run_post()
            return begin(), problem
        freeze = _Freeze(self._agent, self._marker, self._limit_s, self._guard, self._pause)
        try:
            freeze.begin()
            if freeze.problem is not None:  # thaw first: what is half frozen helps nobody
                freeze.end()
            result = begin()
        finally:
            freeze.end()
            self._run_post()
        return result, freeze.problem

    def has_leftover(self) -> bool:
        """Whether a freeze was begun whose end nobody saw."""
        return self._marker.exists()

    def thaw_leftover(self) -> bool:
        """Thaw what a process that died left frozen, and return whether there was anything to do. Cheap if not.

        Raises:
            UnavailableError: the guest does not answer; it may still be frozen, and the call is to be repeated.
        """
        if not self.has_leftover():
            return False
        self._agent.thaw()
        self._marker.unlink(missing_ok=True)
        return True

    def _prepare(self) -> tuple[SecondSiteError | None, bool]:
        """Run the hook; return why there can be no freeze, and whether the guest has begun to prepare for one."""
        try:
            code = self._agent.run(PRE_FREEZE, self._hook_s)
        except TimeoutExceededError as error:
            return error, True
        except SecondSiteError as error:
            return error, False
        if code:
            return UnavailableError(
                f"{PRE_FREEZE} in the guest ended with {code}", hint="look at what it says in the guest"
            ), True
        return None, True

    def _run_post(self) -> None:
        """A post-thaw hook cannot make a point wrong any more: what fails is only written down."""
        try:
            code = self._agent.run(POST_THAW, self._hook_s)
            if code:
                log.warning("a hook in the guest failed", hook=POST_THAW, code=code)
        except SecondSiteError as error:
            log.warning("a hook in the guest failed", hook=POST_THAW, error=error.to_dict())


class _Freeze:
    """One freeze: ended by whoever comes first, the caller or the watchdog."""

    def __init__(
        self,
        agent: GuestAgent,
        marker: Path,
        limit_s: float,
        guard: Guard | None,
        pause: Callable[[float], object],
    ) -> None:
        self.problem: SecondSiteError | None = None
        self._agent = agent
        self._marker = marker
        self._limit_s = limit_s
        self._guard = guard
        self._pause = pause
        self._lock = threading.Lock()
        self._ended = False
        self._watchdog = threading.Timer(limit_s, self._too_long)
        self._watchdog.daemon = True

    def begin(self) -> None:
        self._marker.touch()
        if self._guard is not None:
            self._guard.begin(self._marker, self._limit_s)
        self._watchdog.start()
        try:
            if self._agent.freeze() == 0:
                self.problem = UnavailableError("the guest agent found no file system to freeze")
        except SecondSiteError as error:
            self.problem = error

    def end(self, late: SecondSiteError | None = None) -> None:
        """Thaw, if nobody has yet. Returns when that is done, or somebody else goes on trying."""
        self._watchdog.cancel()
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self.problem = self.problem or late
            try:
                thawed = self._agent.thaw()
            except SecondSiteError as error:
                log.warning("the guest does not thaw, trying on", error=error.to_dict())
                self.problem = self.problem or error
                threading.Thread(target=self._try_on, name="thaw", daemon=True).start()
                return
            self._thawed()
            if thawed == 0:
                self.problem = self.problem or UnavailableError(
                    "somebody else thawed the guest before the snapshot had begun"
                )

    def _too_long(self) -> None:
        self.end(
            TimeoutExceededError(
                f"the snapshot had not begun {self._limit_s:g} s after the order to freeze",
                hint="the guest was thawed; the host is very busy, or libvirt waits for something",
            )
        )

    def _try_on(self) -> None:
        """Until the guest says that it is thawed. The marker stays, so that a restart of the node goes on with it."""
        while self._marker.exists():
            try:
                self._agent.thaw()
            except SecondSiteError:
                self._pause(_THAW_AGAIN_S)
            else:
                self._thawed()

    def _thawed(self) -> None:
        self._marker.unlink(missing_ok=True)
        if self._guard is not None:
            self._guard.end()
