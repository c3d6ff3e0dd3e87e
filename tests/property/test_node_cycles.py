"""Whatever is written and whatever breaks: every point that the target keeps is what the source held at its time.

The power is cut at any step of any file operation of both nodes, calls fail before or after their effect, records are
torn or lost, the hypervisor forgets what changed, retention folds points away. After each success the last point is
the machine, and the source's digest tables say exactly what the target holds.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from secondsite.errors import UnavailableError
from support.cycle_world import ITEM, POLICY, SIZES, World
from support.power import AFTERMATHS, PowerCutError, power, unsynced

WRITES = st.lists(
    st.tuples(
        st.sampled_from(sorted(SIZES)),
        st.integers(0, 639),
        st.integers(1, 200),
        st.sampled_from([0, 1, 2, 255]),
    ),
    max_size=3,
)


class Replication(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="ss-"))
        self._guards: list[Any] = [unsynced()]
        for guard in self._guards:
            guard.__enter__()
        self.generation = 0
        self.acknowledged = 0

    @initialize()
    def begin(self) -> None:
        self.world = World.create(self.place / "0" / "w")
        self.write([("vda", 0, 390, 97), ("vdb", 136, 4, 98)])

    def teardown(self) -> None:
        self.world.close()
        for guard in reversed(self._guards):
            guard.__exit__(None, None, None)
        shutil.rmtree(self.place)

    def write(self, writes: list[Any]) -> None:
        """The guest writes; `fill` 0 is a discard."""
        for disk, sector, sectors, fill in writes:
            offset = sector * 512 % SIZES[disk]
            length = min(sectors * 512, SIZES[disk] - offset)
            self.world.machine.capture.write(disk, offset, bytes([fill]) * length)

    @rule(writes=WRITES)
    def cycle(self, writes: list[Any]) -> None:
        self.write(writes)
        self.world.run()
        self.world.check_latest()
        self._note()

    @rule(writes=WRITES, at=st.integers(0, 25), restart=st.booleans())
    def cycle_with_a_failure(self, writes: list[Any], at: int, restart: bool) -> None:
        """A call fails; the nodes go on with what they have in memory, or from their files."""
        self.write(writes)
        self.world.calls, self.world.fail_at = 0, at
        try:
            self.world.run()
        except UnavailableError:
            pass
        else:
            self.world.check_latest()
        self.world.fail_at = None
        self._note()
        if restart:
            self.world.restart()

    @rule(writes=WRITES, step=st.integers(0, 250), kind=st.sampled_from(AFTERMATHS))
    def cycle_with_a_power_cut(self, writes: list[Any], step: int, kind: str) -> None:
        """Both nodes lose power at a step; the machine's disks, of course, go on."""
        self.write(writes)
        with power(self.world.root, step) as supply, suppress(PowerCutError):
            self.world.run()
        self._note()
        self.generation += 1
        root = supply.aftermath(kind, self.place / str(self.generation))
        supply.close()
        self.world.close()
        shutil.rmtree(self.place / str(self.generation - 1))
        (root / "t" / "journals").mkdir(exist_ok=True)
        self.world = World(root, self.world.machine)

    @rule(disk=st.sampled_from(sorted(SIZES)), sectors=st.integers(1, 639))
    def cut_and_bring_back(self, disk: Any, sectors: int) -> None:
        """An administrator makes a disk smaller, notices, and gives it its old size back: its end is lost, and no mark tells."""
        cut = self.world.machine.capture.disks[disk]
        cut.resize(sectors * 512 % SIZES[disk] or 512)
        cut.resize(SIZES[disk])

    @rule()
    def lose_tracking(self) -> None:
        self.world.machine.capture.lose_tracking()

    @precondition(lambda self: (self.world.folder / "pending").exists())
    @rule(cut=st.integers(0, 100))
    def tear_the_pending_record(self, cut: int) -> None:
        pending = self.world.folder / "pending"
        pending.write_bytes(pending.read_bytes()[:cut])
        self.world.restart()

    @rule()
    def maintain(self) -> None:
        self.world.journal.maintain(POLICY, self.world.machine.time)

    @invariant()
    def points_are_right_and_none_was_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.check_points()
            last = self.world.journal.status().last
            assert self.acknowledged <= (0 if last is None else last.sequence), (
                "an acknowledged point is gone"
            )

    def _note(self) -> None:
        acked = self.world.items.get(ITEM).acked
        self.acknowledged = max(self.acknowledged, 0 if acked is None else acked.sequence)


Replication.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestReplication = Replication.TestCase
