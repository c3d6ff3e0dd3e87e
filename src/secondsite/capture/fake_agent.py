"""A guest agent in memory, for tests of everything above the port."""

from __future__ import annotations

from dataclasses import dataclass, field

from secondsite.errors import SecondSiteError, TimeoutExceededError, UnavailableError


@dataclass
class FakeAgent:
    """`GuestAgent` by structure. `hooks`: exit codes of the programs that the guest has; `slow`: those that never end."""

    file_systems: int = 2
    present: bool = True
    running: bool = True
    frozen: bool = False
    fail_freeze: SecondSiteError | None = None
    """Raised by `freeze` after it has frozen."""
    fail_thaws: int = 0
    """So many thaws are not answered."""
    hooks: dict[str, int] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def has_guest(self) -> bool:
        """See the port."""
        return self.running

    def freeze(self) -> int:
        """See the port."""
        self._call("freeze")
        self.frozen = self.file_systems > 0
        if self.fail_freeze is not None:
            raise self.fail_freeze
        return self.file_systems

    def thaw(self) -> int:
        """See the port."""
        self._call("thaw")
        if self.fail_thaws:
            self.fail_thaws -= 1
            raise UnavailableError("the agent does not answer")
        count = self.file_systems if self.frozen else 0
        self.frozen = False
        return count

    def run(self, program: str, timeout_s: float) -> int | None:
        """See the port."""
        if program not in self.hooks:
            self._require()
            return None
        self._call(program)
        if program in self.slow:
            raise TimeoutExceededError(f"{program} has not ended after {timeout_s:g} s")
        return self.hooks[program]

    def _call(self, name: str) -> None:
        self._require()
        self.calls.append(name)

    def _require(self) -> None:
        if not self.present:
            raise UnavailableError("the guest has no agent")
