"""Power of libvirt domains: start, shut down, cut, resume after I/O errors, lock and unlock. Every wait is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import libvirt

from secondsite.errors import (
    ConflictError,
    OperationRefusedError,
    SecondSiteError,
    TimeoutExceededError,
    UnsupportedError,
)
from secondsite.fabric.connection import Connection, translate
from secondsite.fabric.domain_xml import agent_connected, parse_domain, read_kept
from secondsite.fabric.inventory import PowerState
from secondsite.fabric.kept_xml import locked_xmls, unlocked_xml
from secondsite.fabric.libvirt_inventory import inactive_xml, power_state, secure_xml
from secondsite.fabric.port import Cancelled, CancelledError, HypervisorError, never_cancelled

POLL_S: Final = 0.1
_OBSERVE_S: Final = 30.0
"""How long a change that libvirt has accepted may take to show."""
_ASK_AGAIN_S: Final = 10.0
"""A guest that still boots drops a power button; so it is pressed again."""
_NOTICED_S: Final = 3.0
"""So long libvirt may need to tell that a machine is off whose QEMU has ended."""
_RESUME_ATTEMPTS: Final = 3
_RESUME_STEADY_S: Final = 0.5
"""After a view came back the first resume may pause again at once (measured); then the next one holds."""


@dataclass
class Waiting:
    """How waits are done; tests put in a clock of their own."""

    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    poll_s: float = field(default=POLL_S)

    def until(
        self, happened: Callable[[], bool], timeout_s: float, cancelled: Cancelled = never_cancelled
    ) -> bool:
        """Return true once `happened`, false when time ran out. Raises CancelledError."""
        end = self.monotonic() + timeout_s
        while not happened():
            if cancelled():
                raise CancelledError("the wait was cancelled")
            if self.monotonic() >= end:
                return False
            self.pause(self.poll_s)
        return True


class Power:
    """See `Fabric` for what the methods promise."""

    def __init__(self, connection: Connection, waiting: Waiting) -> None:
        self._connection = connection
        self._waiting = waiting

    def state(self, vm: str) -> PowerState:
        """Return the power state."""
        with self._connection.domain(vm, "look at") as domain:
            return power_state(domain)[0]

    def start(self, vm: str) -> None:
        """See `Fabric.start`."""
        with self._connection.domain(vm, "start") as domain:
            state, _io_error = power_state(domain)
            if state is PowerState.OFF:
                _refuse_locked(domain, vm)
                _create(domain)
            elif state is PowerState.PAUSED:
                _ignoring_state(domain.resume)
            elif state is PowerState.CRASHED:
                raise ConflictError(f"{vm} has crashed and was preserved", hint="power it off first", vm=vm)
            if not self._waiting.until(lambda: power_state(domain)[0] is PowerState.RUNNING, _OBSERVE_S):
                raise TimeoutExceededError(
                    f"{vm} was started but does not run: it is {power_state(domain)[0].value}",
                    hint="QEMU's log on the host says why",
                    vm=vm,
                )

    def shutdown(self, vm: str, *, timeout_s: float, cancelled: Cancelled) -> bool:
        """See `Fabric.shutdown`."""
        with self._connection.domain(vm, "shut down") as domain:
            if power_state(domain)[0] is PowerState.PAUSED:
                # A paused guest hears no button.
                _ignoring_state(domain.resume)
            end = self._waiting.monotonic() + timeout_s
            while not _is_off(domain):
                left = end - self._waiting.monotonic()
                if left <= 0:
                    return False
                try:
                    _press_button(domain)
                except libvirt.libvirtError:
                    # Its QEMU may have died under the finger, which libvirt tells a moment later.
                    if not self._waiting.until(lambda: _is_off(domain), min(left, _NOTICED_S), cancelled):
                        raise
                self._waiting.until(lambda: _is_off(domain), min(left, _ASK_AGAIN_S), cancelled)
            return True

    def power_off(self, vm: str) -> None:
        """See `Fabric.power_off`."""
        with self._connection.domain(vm, "power off") as domain:
            end = self._waiting.monotonic() + _OBSERVE_S
            failure: libvirt.libvirtError | None = None
            while not _is_off(domain):
                if self._waiting.monotonic() >= end:
                    if failure is not None:
                        raise failure
                    raise TimeoutExceededError(f"{vm} does not power off", vm=vm)
                try:
                    domain.destroy()
                except libvirt.libvirtError as error:
                    # QEMU may need longer to end than libvirt waits ("Device or resource busy").
                    failure = error
                    self._waiting.pause(self._waiting.poll_s)

    def suspend(self, vm: str) -> bool:
        """See `Fabric.suspend`. QEMU waits for requests in flight and flushes before it says that it stands still."""
        with self._connection.domain(vm, "suspend") as domain:
            if power_state(domain)[0] is not PowerState.RUNNING:
                return False
            _ignoring_state(domain.suspend)
            return self._waiting.until(
                lambda: power_state(domain)[0] is not PowerState.RUNNING, _OBSERVE_S
            ) and (power_state(domain)[0] is PowerState.PAUSED)

    def resume(self, vm: str) -> bool:
        """See `Fabric.resume`."""
        with self._connection.domain(vm, "resume") as domain:
            if power_state(domain)[0] is PowerState.PAUSED:
                _ignoring_state(domain.resume)
                self._waiting.until(lambda: power_state(domain)[0] is not PowerState.PAUSED, _OBSERVE_S)
            return power_state(domain)[0] is PowerState.RUNNING

    def resume_if_io_error(self, vm: str) -> bool:
        """See `Fabric.resume_if_io_error`."""
        with self._connection.domain(vm, "resume") as domain:
            if not power_state(domain)[1]:
                return False
            for _attempt in range(_RESUME_ATTEMPTS):
                _ignoring_state(domain.resume)
                if not self._waiting.until(lambda: power_state(domain)[1], _RESUME_STEADY_S):
                    return power_state(domain)[0] is PowerState.RUNNING
            return False

    # -- with its host -------------------------------------------------------------------------------------

    def autostart(self, vm: str) -> bool:
        """See `Fabric.autostart`."""
        with self._connection.domain(vm, "look at") as domain:
            return bool(domain.isPersistent()) and bool(domain.autostart())

    def set_autostart(self, vm: str, *, on: bool) -> None:
        """See `Fabric.set_autostart`."""
        with self._connection.domain(vm, "set the autostart of") as domain:
            if not domain.isPersistent():
                raise UnsupportedError(f"{vm} is transient: it ends with its host", vm=vm)
            domain.setAutostart(int(on))
            if bool(domain.autostart()) is not on:
                raise HypervisorError(f"the autostart of {vm} was set but does not show it", vm=vm)

    # -- the lock ------------------------------------------------------------------------------------------

    def lock(self, vm: str, reason: str) -> None:
        """See `Fabric.lock_power`; how it is done stands in kept_xml.py."""
        reason = " ".join(reason.split()) or "locked"
        with self._connection.domain(vm, "lock") as domain:
            if not domain.isPersistent():
                raise UnsupportedError(f"{vm} is transient: there is no definition to lock", vm=vm)
            if domain.hasManagedSaveImage():
                raise ConflictError(
                    f"{vm} is saved: its saved state would start in spite of a lock",
                    hint="start it and shut it down, or give the state up: virsh managedsave-remove",
                    vm=vm,
                )
            connection = domain.connect()
            failure: SecondSiteError | None = None
            candidates = locked_xmls(
                inactive_xml(domain),
                reason=reason,
                autostart=bool(domain.autostart()),
                secure_text=secure_xml(domain),
            )
            for text in candidates:
                try:
                    connection.defineXML(text)
                except libvirt.libvirtError as error:
                    failure = translate(error, f"lock {vm}")
                    continue
                break
            else:
                assert failure is not None
                raise failure
            domain.setAutostart(0)
            if locked(domain) != reason or domain.autostart():
                raise HypervisorError(f"{vm} was locked but its definition does not show it", vm=vm)

    def unlock(self, vm: str, *, autostart: bool) -> None:
        """See `Fabric.unlock_power`."""
        with self._connection.domain(vm, "unlock") as domain:
            kept = unlocked_xml(inactive_xml(domain), secure_text=secure_xml(domain))
            if kept is None:
                return
            domain.connect().defineXML(kept.text)
            domain.setAutostart(int(kept.autostart and autostart))
            if locked(domain) is not None:
                raise HypervisorError(f"{vm} was unlocked but its definition does not show it", vm=vm)

    def locked(self, vm: str) -> str | None:
        """See `Fabric.locked`."""
        with self._connection.domain(vm, "look at") as domain:
            return locked(domain)


def locked(domain: Any) -> str | None:
    """Return the reason of a domain's lock, None if it has none."""
    kept = read_kept(parse_domain(inactive_xml(domain)), "lock")
    return None if kept is None else kept.reason


def _refuse_locked(domain: Any, vm: str) -> None:
    reason = locked(domain)
    if reason is not None:
        raise OperationRefusedError(
            f"{vm} is locked: {reason}", hint="start the side that is active, or fail back first", vm=vm
        )


def _create(domain: Any) -> None:
    try:
        domain.create()
    except libvirt.libvirtError:
        if power_state(domain)[0] is PowerState.OFF:
            raise  # else someone was faster


def _is_off(domain: Any) -> bool:
    try:
        return power_state(domain)[0] is PowerState.OFF
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return True  # a transient one is gone when it is off
        raise


def _press_button(domain: Any) -> None:
    """Ask by the agent if one is connected, else (or if it fails) by ACPI."""
    try:
        if agent_connected(parse_domain(domain.XMLDesc(0))):
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            return
    except libvirt.libvirtError:
        if _is_off(domain):
            return
    _ignoring_state(lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))


def _ignoring_state(call: Callable[[], object]) -> None:
    """Run a call whose refusal "in this state" means that someone was faster; the caller observes the outcome."""
    try:
        call()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
