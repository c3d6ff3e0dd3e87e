"""The QEMU guest agent of a libvirt machine. Every call is bounded by a time of its own, whatever others set for the machine.

The commands are sent as they are (qemuAgentCommand): libvirt's own fsFreeze waits for as long as `agentSetResponseTimeout` says,
which holds for everybody who talks to that agent. While file systems are frozen the agent answers only to thaw, status and sync.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import libvirt
import libvirt_qemu

from secondsite.capture.machine import Machine, is_active, translated
from secondsite.errors import NotFoundError, TimeoutExceededError, UnavailableError, UnsupportedError

ANSWER_S: Final = 5
_POLL_S: Final = 0.1


class LibvirtAgent:
    """`GuestAgent` of a machine; see quiesce.py."""

    def __init__(
        self,
        machine: Machine,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._machine = machine
        self._monotonic = monotonic
        self._sleep = sleep

    def has_guest(self) -> bool:
        """See the port."""
        return is_active(self._machine.domain())

    def freeze(self) -> int:
        """See the port."""
        return int(self._ask(self._machine.domain(), "guest-fsfreeze-freeze"))

    def thaw(self) -> int:
        """See the port."""
        try:
            domain = self._machine.domain()
        except NotFoundError:
            return 0
        try:
            return int(self._ask(domain, "guest-fsfreeze-thaw"))
        except UnsupportedError:
            return 0  # it runs without a channel, so it has been off since anybody froze it
        except _RefusedError:
            if self._is_frozen(domain):
                raise
            return 0
        except UnavailableError:
            if not is_active(domain):
                return 0
            raise

    def _is_frozen(self, domain: Any) -> bool:
        try:
            return bool(self._ask(domain, "guest-fsfreeze-status") != "thawed")
        except _RefusedError:
            return False  # an agent that may not freeze has not frozen

    def run(self, program: str, timeout_s: float) -> int | None:
        """See the port."""
        domain = self._machine.domain()
        try:
            started = self._ask(domain, "guest-exec", path=program)
        except _RefusedError:
            return None  # no such program, or the agent may not run any
        deadline = self._monotonic() + timeout_s
        while True:
            status = self._ask(domain, "guest-exec-status", pid=int(started["pid"]))
            if status["exited"]:
                # A program that a signal ended has no exit code.
                return int(status.get("exitcode", 128 + int(status.get("signal", 0))))
            if self._monotonic() >= deadline:
                raise TimeoutExceededError(
                    f"{program} in the guest has not ended after {timeout_s:g} s", hint="make it quicker"
                )
            self._sleep(_POLL_S)

    def _ask(self, domain: Any, command: str, **arguments: Any) -> Any:
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), ANSWER_S, 0)
            return json.loads(answer)["return"]
        except libvirt.libvirtError as error:
            what = f"the guest agent of {self._machine.name} did not do {command}"
            if error.get_error_code() in {libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_NO_SUPPORT}:
                raise _RefusedError(f"{what}: {error.get_error_message()}") from error
            raise translated(error, what) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"the guest agent of {self._machine.name} talks nonsense: {error}"
            ) from error


class _RefusedError(UnavailableError):
    """The agent is there and said no."""
