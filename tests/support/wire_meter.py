"""Counts what a lab's nodes send each other, outside of the nodes: whatever is killed, no byte is missed.

Each node's listener moves to another address of the loopback interface, and a relay takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from secondsite.node.config import NodeConfig
from support.lab_story import LabStory, until
from support.toxic_link import ToxicLink

_BEHIND: Final = "127.0.0.2"


@dataclass
class WireMeter:
    """The relays in front of both nodes."""

    links: list[ToxicLink]

    def total(self) -> int:
        """Bytes that went over the links so far, both ways, with TLS and all answers."""
        return sum(link.up + link.down for link in self.links)


def _in_front_of(config: NodeConfig) -> ToxicLink | None:
    try:
        return ToxicLink((_BEHIND, config.listen_port), port=config.listen_port)
    except OSError:
        return None  # its threads are not all gone yet


@contextmanager
def metered(lab: LabStory) -> Iterator[WireMeter]:
    """Put the meter into a lab that is up, for the rest of its life: its nodes can be reached by nobody afterwards, so it must be one's own."""
    with ExitStack() as stack:
        links = []
        for site in ("primary", "secondary"):
            lab.kill(site)
            state = lab.lab.node_state(site)
            config = NodeConfig.load(state)
            replace(config, listen_host=_BEHIND).save(state)
            link = until(lambda config=config: _in_front_of(config), "the killed node's port", 10)
            links.append(stack.enter_context(link))
            lab.start(site)
        yield WireMeter(links)
