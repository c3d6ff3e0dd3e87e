"""How long the service waits for nodes, by kind of command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds until a command must be fetched, and until it must be answered.

    `withdraw`: a command that was not fetched or not answered in time is ended, so that it is never delivered (again);
    else it stands, and is fetched when the node is back, until it is done or an order that undoes it is given.
    """

    delivery_s: float = 1 * MINUTE
    total_s: float = 10 * MINUTE
    withdraw: bool = True


SHIP_LAST: Final = Limit(20.0, 10 * MINUTE)
"""For the last changes before an unplanned failover: it goes on without them, so it waits less."""
STEP_DOWN: Final = Limit(60.0, 60.0, withdraw=False)
"""For a source that is alive to step down before the other side starts; then a person is asked."""
SEEDED: Final = Limit(total_s=7 * DAY)
"""For a journal that is filled from images on the target's host: it reads whole disks."""
FOREVER: Final = Limit(math.inf, math.inf, withdraw=False)

LIMITS: Final[Mapping[str, Limit]] = {
    "target.create": Limit(),
    "source.start": Limit(),
    "target.test_start": Limit(),
    "target.test_cleanup": Limit(),
    # The last changes can be many; the guest is down meanwhile, but giving up would lose the work.
    "source.prepare": Limit(total_s=12 * HOUR),
    "target.failover": Limit(total_s=30 * MINUTE),
    # Nothing may go on before the target has said that no replica runs: after this a person is asked, too.
    "target.abandon": Limit(2 * MINUTE, 10 * MINUTE, withdraw=False),
    "source.release": Limit(2 * MINUTE, 15 * MINUTE, withdraw=False),
    # The old side may be down, that is no failure; it gets the order when it is back.
    "source.demote": Limit(10.0, 2 * MINUTE, withdraw=False),
    # Away is no failure either; pause and resume are told again until they are done.
    "source.pause": Limit(10.0, 1 * MINUTE, withdraw=False),
    "source.resume": Limit(10.0, 1 * MINUTE, withdraw=False),
    "source.resync": Limit(30.0, 2 * MINUTE),
    "target.drop_diverged": Limit(10.0, 10 * MINUTE, withdraw=False),
    "target.commit": Limit(total_s=7 * DAY),  # waits until the replica has copied all that it reads
    "target.adopt": Limit(total_s=2 * HOUR),
    "source.stop": Limit(total_s=1 * HOUR),
    "target.remove": Limit(total_s=7 * DAY),  # like commit, if the replica runs
    "standby.remove": Limit(total_s=1 * HOUR),
}
