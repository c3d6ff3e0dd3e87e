"""Locks and displaced definitions: they carry the older one to the letter."""

from __future__ import annotations

import pytest

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError
from secondsite.fabric.domain_xml import Kept, disk_elements, is_lock_disk, parse_domain, read_kept, to_text
from secondsite.fabric.inventory import Labels, NetworkInfo, PowerState, ReplicaRole
from secondsite.fabric.kept_xml import (
    definition_text,
    displaced_by,
    displacing_xml,
    locked_xmls,
    standalone_xml,
    unlocked_xml,
)
from secondsite.fabric.port import LIBVIRT_FORMAT, ReplicaSpec, VmDefinition
from secondsite.fabric.replica_rules import Existing, check_networks, may_keep_mac, place
from secondsite.model.ids import Epoch, ItemId
from support.domains import DESKTOP, PLAIN

LABELS = Labels(ItemId("11111111-2222-3333-4444-555555555555"), Epoch(2), ReplicaRole.REPLICA)


def lock(text: str, reason: str = "failed over", *, autostart: bool = True, candidate: int = 0) -> str:
    return list(locked_xmls(text, reason=reason, autostart=autostart))[candidate]


@pytest.mark.parametrize("text", [PLAIN, DESKTOP])
def test_unlocking_gives_back_the_text_to_the_letter(text: str) -> None:
    assert unlocked_xml(lock(text)) == Kept(text, autostart=True, reason="failed over")
    assert definition_text(lock(text)) == text
    assert unlocked_xml(text) is None
    assert definition_text(text) == text


def test_locking_a_locked_one_keeps_what_the_first_lock_kept() -> None:
    twice = lock(lock(PLAIN), "another", autostart=False)
    assert unlocked_xml(twice) == Kept(PLAIN, autostart=True, reason="another")
    assert sum(is_lock_disk(disk) for disk in parse_domain(twice).iterfind("devices/disk")) == 1


def test_the_lock_is_one_disk_whose_missing_image_tells_the_reason() -> None:
    for candidate, bus in enumerate(["virtio", "scsi", "sata", "usb"]):
        root = parse_domain(lock(DESKTOP, 'to "B": ../x', candidate=candidate))
        (disk,) = [disk for disk in root.iterfind("devices/disk") if is_lock_disk(disk)]
        source, target = disk.find("source"), disk.find("target")
        assert source is not None
        assert target is not None
        assert source.get("file") == "/LOCKED-by-Second-Site/to -B-: ..-x"
        assert target.get("bus") == bus
        assert target.get("dev") not in {key for key, _disk in disk_elements(root)}
        assert root.findtext("title") == 'files01 (to "B": ../x, locked by Second Site)'


def test_console_passwords_are_not_kept_in_metadata_and_come_back() -> None:
    secret = PLAIN.replace("type='vnc'", "type='vnc' passwd='geheim'")
    secure = next(locked_xmls(PLAIN, reason="failed over", autostart=False, secure_text=secret))
    assert secure.count("geheim") == 1  # on the console itself, not in what is kept
    locked = secure.replace(' passwd="geheim"', "")
    kept = unlocked_xml(locked, secure_text=secure)
    assert kept is not None
    graphics = parse_domain(kept.text).find("devices/graphics")
    assert graphics is not None
    assert graphics.get("passwd") == "geheim"


def test_a_machine_without_a_free_disk_name_is_refused() -> None:
    full = "".join(f"<disk><target dev='vd{letter}'/></disk>" for letter in "abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(InvalidInputError):
        lock(f"<domain><name>x</name><devices>{full}</devices></domain>")


def test_a_displaced_definition_is_carried_and_dropped_when_the_replica_stands_alone() -> None:
    root = parse_domain(DESKTOP)
    displacing_xml(root, Kept(lock(PLAIN), autostart=False, reason="failed over"))
    text = to_text(root)
    kept = displaced_by(text)
    assert kept is not None
    assert unlocked_xml(kept.text) == Kept(PLAIN, autostart=True, reason="failed over")
    assert displaced_by(definition_text(text)) is None
    alone = parse_domain(standalone_xml(text))
    assert read_kept(alone, "displaced") is None
    assert all(len(backing) == 0 for backing in alone.iterfind("devices/disk/backingStore"))


# -- what a replica may replace ------------------------------------------------------------------------------


def spec(*, new_identity: bool = False, networks: dict[str, str | None] | None = None) -> ReplicaSpec:
    return ReplicaSpec(
        "web01", VmDefinition(LIBVIRT_FORMAT, PLAIN), {}, networks or {}, LABELS, new_identity=new_identity
    )


def existing(text: str, power: PowerState = PowerState.OFF) -> Existing:
    root = parse_domain(text)
    return Existing(root.findtext("uuid", ""), root.findtext("name", ""), power, text)


def test_a_free_place_is_taken() -> None:
    assert place(spec(), None, None) == (None, None)


def test_a_foreign_machine_keeps_its_place() -> None:
    for same_name, same_identity in (
        (existing(DESKTOP), None),
        (existing(PLAIN), existing(PLAIN)),
        (None, existing(PLAIN)),
    ):
        with pytest.raises(ConflictError) as refused:
            place(spec(), same_name, same_identity)
        assert refused.value.hint
    with pytest.raises(ConflictError):
        place(spec(new_identity=True), existing(PLAIN), None)


def test_a_test_does_not_mind_its_original_beside_it() -> None:
    assert place(spec(new_identity=True), None, existing(PLAIN, PowerState.RUNNING)) == (None, None)


def test_a_locked_original_gives_its_place_only_when_it_is_off() -> None:
    locked = existing(lock(PLAIN))
    replaced, displaced = place(spec(), locked, locked)
    assert replaced == locked
    assert displaced == Kept(locked.text, autostart=False, reason="failed over")
    running = existing(lock(PLAIN), PowerState.RUNNING)
    with pytest.raises(ConflictError):
        place(spec(), running, running)


NETWORKS = [NetworkInfo("dr", isolated=False, active=True), NetworkInfo("bubble", isolated=True, active=True)]


def test_networks_must_be_there_and_active() -> None:
    check_networks(spec(networks={"a": "dr", "b": None, "c": "user", "d": "bridge:br0"}), NETWORKS)
    with pytest.raises(NotFoundError):
        check_networks(spec(networks={"a": "drr"}), NETWORKS)
    with pytest.raises(ConflictError):
        check_networks(spec(networks={"a": "off"}), [NetworkInfo("off", isolated=True, active=False)])


def test_a_tests_mac_address_is_kept_only_where_its_original_cannot_be_met() -> None:
    test, replica = spec(new_identity=True), spec()
    assert [may_keep_mac(test, NETWORKS, name) for name in ("dr", "bubble", "user", "bridge:br0")] == [
        False,
        True,
        True,
        False,
    ]
    assert all(may_keep_mac(replica, NETWORKS, name) for name in ("dr", "bubble", "user", "bridge:br0"))
