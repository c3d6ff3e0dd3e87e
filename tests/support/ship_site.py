"""A target over real TLS for tests: an authority, a listener on a free port, a fake receiver, senders."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId, Sequence
from secondsite.model.manifest import Consistency, DiskPoint, FileRef, Manifest, PointKind, VmDefinition
from secondsite.ship.backoff import QuickRetries
from secondsite.ship.client import Endpoint, JsonClient, Trust
from secondsite.ship.fake import MemoryReceiver
from secondsite.ship.identity import CertificateAuthority, Credentials, utc_now
from secondsite.ship.kerberos import KerberosAcceptor, KerberosTrust
from secondsite.ship.listener import Listener, Receiver
from secondsite.ship.protocol import PartKind
from secondsite.ship.sender import Outgoing, Sender
from support.private_kdc import REALM, PrivateKdc

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa")
SOURCE, TARGET, STRANGER = NodeId("node-source"), NodeId("node-target"), NodeId("node-stranger")
EPOCH = Epoch(3)
FAST = QuickRetries(attempts=4, base_s=0.001, cap_s=0.001)


@dataclass
class ShipSite:
    """What a test needs around a listener."""

    folder: Path
    authority: CertificateAuthority
    receiver: MemoryReceiver
    listener: Listener
    source: Credentials
    senders: list[Sender] = field(default_factory=list)

    @property
    def endpoint(self) -> Endpoint:
        host, port = self.listener.address
        return Endpoint(host, port, TARGET)

    def sender(self, *, trust: Trust | None = None, epoch: Epoch = EPOCH, **options: Any) -> Sender:
        """Return a sender that the site closes."""
        options.setdefault("retries", FAST)
        sender = Sender(options.pop("endpoint", self.endpoint), trust or self.source, ITEM, epoch, **options)
        self.senders.append(sender)
        return sender

    def part(self, data: bytes, kind: PartKind = PartKind.LOG) -> Outgoing:
        """Write a part into the spool."""
        digest = Digest(blake3(data).hexdigest())
        path = self.folder / f"{digest}.{kind.value}"
        path.write_bytes(data)
        return Outgoing(digest, kind, path, len(data))

    def stored(self) -> dict[Digest, bytes]:
        """Return what the receiver holds."""
        return {ref.digest: data for ref, data in self.receiver.items[ITEM].parts.items()}


@contextmanager
def ship_site(folder: Path, receiver: Receiver | None = None, **options: Any) -> Iterator[ShipSite]:
    """Run a target; `receiver` defaults to a MemoryReceiver that knows ITEM from SOURCE at EPOCH."""
    authority = CertificateAuthority.create("vault")
    memory = MemoryReceiver()
    memory.add(ITEM, SOURCE, EPOCH)
    options.setdefault("threads", 6)
    credentials = authority.issue_credentials(TARGET, folder / "target")
    with Listener(("127.0.0.1", 0), credentials, receiver or memory, **options) as listener:
        source = authority.issue_credentials(SOURCE, folder / "source")
        site = ShipSite(folder, authority, memory, listener, source)
        yield site
        for sender in site.senders:
            sender.close()


@dataclass
class KerberosSite:
    """A target that takes tickets instead of certificates, and a KDC around it. `names` says who is which node."""

    site: ShipSite
    kdc: PrivateKdc
    service: str
    names: dict[str, NodeId]

    def trust(self, principal: str, **changes: Any) -> KerberosTrust:
        """Return what a client with this principal (in VAULT.TEST, unless its name says otherwise) dials with."""
        principal = principal if "@" in principal else f"{principal}@{REALM}"
        cache = self.site.folder / f"tickets-{secrets.token_hex(4)}"
        fields = {"keytab": self.kdc.keytab(principal), "service": self.service, "ccache": cache, **changes}
        ca = self.site.folder / "target" / "ca.pem"
        return KerberosTrust(ca, principal, **fields)

    def client(self, trust: Trust) -> JsonClient:
        """Return a client of the listener."""
        return JsonClient(self.site.endpoint, trust, timeout_s=30)


@contextmanager
def kerberos_site(folder: Path, kdc: PrivateKdc, **options: Any) -> Iterator[KerberosSite]:
    """Run a target with a ticket listener on the KDC's first realm."""
    service = f"HTTP/target-{secrets.token_hex(4)}.test@{REALM}"
    names: dict[str, NodeId] = {}
    acceptor = KerberosAcceptor(
        service, kdc.keytab(service), names.get, folder / "replay", clock=options.get("clock", utc_now)
    )
    with kdc.using(), ship_site(folder, negotiator=acceptor, **options) as site:
        yield KerberosSite(site, kdc, service, names)


def manifest(
    parts: list[Outgoing], sequence: int = 1, previous: Digest | None = None, epoch: Epoch = EPOCH
) -> bytes:
    """Return the bytes of a point that names these parts."""
    return Manifest(
        item=ITEM,
        name="vm",
        epoch=epoch,
        sequence=Sequence(sequence),
        time=datetime(2026, 11, 23, 5, 0, tzinfo=UTC),
        consistency=Consistency.CRASH,
        kind=PointKind.DELTA,
        previous=previous,
        disks={
            DiskKey("vda"): DiskPoint(
                size=1 << 20, logs=tuple(FileRef(part.digest, part.length) for part in parts)
            )
        },
        vm=VmDefinition("libvirt", "<domain/>"),
    ).to_bytes()


class FakeClock:
    """A monotonic clock that only sleeping moves. Thread-safe."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        with self._lock:
            self.now += seconds
