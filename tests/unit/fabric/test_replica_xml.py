"""The replica's definition: what of the source's stays, what goes, what is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from secondsite.errors import InvalidInputError, UnsupportedError
from secondsite.fabric.domain_xml import parse_domain, read_labels, to_text
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    DiskSource,
    Labels,
    NbdBacking,
    ReplicaRole,
    ReplicaSpec,
    VmDefinition,
)
from secondsite.fabric.replica_xml import TargetHost, replica_xml
from secondsite.model.ids import DiskKey, Epoch, ItemId
from support.domains import DESKTOP, DIRECT_BOOT, LEGACY_UEFI, PLAIN, with_device

UUID = "99999999-aaaa-4bbb-8ccc-dddddddddddd"
ITEM = ItemId("11111111-2222-3333-4444-555555555555")
REPLICA = Labels(ITEM, Epoch(2), ReplicaRole.REPLICA)
TEST = Labels(ITEM, Epoch(1), ReplicaRole.TEST)
EVERYTHING = TargetHost({("x86_64", "kvm"): {"pc-q35-7.2", "pc"}, ("x86_64", "qemu"): {"pc-q35-7.2", "pc"}})
NO_KVM = TargetHost({("x86_64", "qemu"): {"pc-q35-7.2", "pc"}})
VIEW = NbdBacking(Path("/run/view.sock"), "vda")


def spec(text: str, keys: str = "vda", **changes: object) -> ReplicaSpec:
    base = ReplicaSpec(
        name="files01",
        definition=VmDefinition(LIBVIRT_FORMAT, text),
        disks={
            DiskKey(key): DiskSource(Path(f"/here/{key}.qcow2"), replace(VIEW, export=key))
            for key in keys.split()
        },
        networks={},
        labels=REPLICA,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def transform(
    wanted: ReplicaSpec,
    *,
    host: TargetHost = EVERYTHING,
    exists: Callable[[str], bool] = lambda _path: True,
    keep_mac: Callable[[str], bool] = lambda _network: True,
) -> ET.Element:
    root = replica_xml(wanted, host, exists=exists, uuid=UUID, keep_mac=keep_mac)
    return parse_domain(to_text(root))


def desktop(**changes: object) -> ET.Element:
    return transform(spec(DESKTOP, "vda sda", **changes))


def one(root: ET.Element, path: str) -> ET.Element:
    (found,) = root.findall(path)
    return found


# -- disks ---------------------------------------------------------------------------------------------------


def test_a_disk_becomes_an_overlay_on_its_view_that_pauses_on_errors() -> None:
    disk = one(desktop(), "devices/disk/target[@dev='vda']/..")
    assert one(disk, "source").attrib == {"file": "/here/vda.qcow2"}
    assert one(disk, "driver").attrib == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "discard": "unmap",
        "queues": "4",
        "error_policy": "stop",
        "rerror_policy": "stop",
    }
    backing = one(disk, "backingStore")
    assert backing.get("type") == "network"
    assert one(backing, "source").attrib == {"protocol": "nbd", "name": "vda"}
    assert one(backing, "source/host").attrib == {"transport": "unix", "socket": "/run/view.sock"}
    assert len(one(backing, "backingStore")) == 0
    assert disk.findtext("serial") == "ROOT-0001"
    assert one(disk, "address").get("bus") == "0x04"
    assert one(disk, "boot").get("order") == "1"


def test_a_disk_without_a_view_says_that_it_has_no_backing() -> None:
    sources = {DiskKey("vda"): DiskSource(Path("/here/vda.qcow2"), None)}
    backing = one(transform(spec(PLAIN, disks=sources)), "devices/disk/backingStore")
    assert (backing.attrib, len(backing)) == ({}, 0)


def test_disks_that_are_not_named_do_not_exist_on_the_replica() -> None:
    devices = {disk.get("dev") for disk in desktop().iterfind("devices/disk/target")}
    assert devices == {"vda", "sda", "sdb", "fda"}


def test_a_missing_medium_is_ejected_and_one_that_is_here_stays() -> None:
    gone = transform(spec(DESKTOP, "vda sda"), exists=lambda path: "iso" not in path)
    assert one(gone, "devices/disk[@device='cdrom']").find("source") is None
    here = one(desktop(), "devices/disk[@device='cdrom']/source")
    assert here.get("file") == "/iso/debian-12.iso"


def test_a_disk_that_the_definition_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="vdz"):
        transform(spec(PLAIN, "vda vdz"))


# -- identity ------------------------------------------------------------------------------------------------


def test_a_failover_keeps_the_identity() -> None:
    root = desktop()
    assert root.findtext("uuid") == "6f0f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c11"
    assert root.findtext("title") == "File server"
    assert read_labels(root) == REPLICA


def test_a_test_gets_a_fresh_identity_also_in_its_smbios_tables() -> None:
    root = desktop(name="files01 - Test", labels=TEST, new_identity=True)
    assert root.findtext("name") == "files01 - Test"
    assert root.findtext("uuid") == root.findtext("sysinfo/system/entry") == UUID
    assert root.findtext("title") == "files01 (test failover of Second Site)"
    assert read_labels(root) == TEST


def test_a_uuid_is_made_for_a_test_of_a_definition_that_has_none() -> None:
    text = PLAIN.replace("<uuid>0d3f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c11</uuid>", "")
    assert transform(spec(text, new_identity=True)).findtext("uuid") == UUID


def test_the_guest_is_told_that_it_went_back_in_time() -> None:
    assert not one(desktop(), "genid").text


def test_foreign_metadata_stays_and_the_source_sides_own_goes() -> None:
    root = desktop()
    assert one(root, "metadata/{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo") is not None
    again = transform(spec(to_text(root), "vda sda", labels=replace(REPLICA, epoch=Epoch(9))))
    assert read_labels(again) == replace(REPLICA, epoch=Epoch(9))
    assert len(again.findall("metadata/{urn:secondsite:domain:1}machine")) == 1


@pytest.mark.parametrize("name", ["a/b", ""])
def test_a_name_that_libvirt_refuses_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        desktop(name=name)


# -- the host ------------------------------------------------------------------------------------------------


def test_nothing_of_the_sources_host_is_left() -> None:
    text = to_text(desktop())
    for trace in (
        "/var/lib/libvirt",
        "/var/log",
        "/golden",
        "/scratch",
        "/srv/share",
        "/usr/libexec",
        "10.0.0.4",
        "5901",
        "5950",
        "5700",
        "renderD128",
        "vnet3",
        "virbr1",
        "seclabel",
        "cpuset",
        "nodeset",
        "partition",
        "hugepages",
        "portid",
        "interfaceid",
        'id="7"',
        "virtio-disk0",
        "4711",
    ):
        assert trace not in text, trace


def test_what_the_guest_sees_of_its_machine_stays() -> None:
    root = desktop()
    assert one(root, "os/type").get("machine") == "pc-q35-7.2"
    assert one(root, "cpu").get("mode") == "host-model"
    assert one(root, "vcpu").attrib == {"current": "2"}
    assert one(root, "cputune/shares").text == "2048"
    assert one(root, "memoryBacking/access").get("mode") == "shared"
    assert one(root, "devices/rng/backend").text == "/dev/urandom"
    assert one(root, "devices/vsock/cid").attrib == {"auto": "yes"}
    assert one(root, "devices/tpm/backend").get("type") == "emulator"


def test_consoles_channels_and_graphics_are_chosen_anew() -> None:
    root = desktop()
    assert one(root, "devices/serial").get("type") == "pty"
    assert one(root, "devices/console").get("type") == "pty"
    assert [channel.get("type") for channel in root.iterfind("devices/channel")] == ["unix", "spicevmc"]
    agent = one(root, "devices/channel[@type='unix']/target")
    assert agent.get("name") == "org.qemu.guest_agent.0"
    assert [graphics.attrib for graphics in root.iterfind("devices/graphics")] == [
        {"type": "spice", "autoport": "yes"},
        {"type": "vnc", "autoport": "yes"},
        {"type": "egl-headless"},
    ]


@pytest.mark.parametrize("device", ["<hostdev mode='subsystem' type='pci'/>", "<interface type='hostdev'/>"])
def test_a_device_of_the_sources_host_is_refused(device: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        transform(spec(with_device(PLAIN, device)))
    assert refused.value.hint


# -- boot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["/boot/guest/vmlinuz", "/boot/guest/initrd"])
def test_a_kernel_that_is_not_here_is_refused(missing: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        transform(spec(DIRECT_BOOT), exists=lambda path: path != missing)
    assert refused.value.attributes["path"] == missing
    assert "copy it" in refused.value.hint
    assert one(transform(spec(DIRECT_BOOT)), "os/kernel").text == "/boot/guest/vmlinuz"


def test_uefi_variables_start_fresh_from_the_template_of_this_host() -> None:
    nvram = one(desktop(), "os/nvram")
    assert not nvram.text
    assert nvram.get("template") == "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"


def test_firmware_that_libvirt_can_choose_is_left_to_it() -> None:
    root = transform(spec(DESKTOP, "vda sda"), exists=lambda path: "OVMF" not in path)
    assert one(root, "os").get("firmware") == "efi"
    assert root.find("os/loader") is None
    assert root.find("os/nvram") is None


def test_firmware_that_nobody_can_choose_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="firmware"):
        transform(spec(LEGACY_UEFI), exists=lambda path: "OVMF" not in path)


# -- what the target runs ------------------------------------------------------------------------------------


def test_a_machine_for_kvm_is_refused_without_it_unless_emulation_is_allowed() -> None:
    with pytest.raises(UnsupportedError, match="KVM"):
        transform(spec(DESKTOP, "vda sda"), host=NO_KVM)
    root = transform(spec(DESKTOP, "vda sda", allow_emulation=True), host=NO_KVM)
    assert root.get("type") == "qemu"
    assert root.find("cpu") is None
    assert root.find("features/hyperv") is None
    assert root.find("features/kvm") is None
    assert [timer.get("name") for timer in root.iterfind("clock/timer")] == ["rtc"]


def test_kvm_is_kept_where_there_is_kvm() -> None:
    assert transform(spec(DESKTOP, "vda sda", allow_emulation=True)).get("type") == "kvm"


@pytest.mark.parametrize("kind", ["xen", "lxc"])
def test_another_hypervisors_machine_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind):
        transform(spec(PLAIN.replace("'qemu'", f"'{kind}'", 1), allow_emulation=True))


def test_a_machine_type_that_is_too_new_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="pc-q35-9"):
        transform(spec(DESKTOP.replace("pc-q35-7.2", "pc-q35-9.1"), "vda sda"))


def test_a_definition_of_another_fabric_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        transform(spec(PLAIN, definition=VmDefinition("vmware-vmx", "...")))


def test_capabilities_tell_machine_types_by_architecture_and_kind() -> None:
    host = TargetHost.from_capabilities(
        "<capabilities><guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc-q35-7.2</machine>"
        "<machine canonical='pc-i440fx-7.2'>pc</machine><domain type='qemu'/>"
        "<domain type='kvm'><machine>pc-q35-6.2</machine></domain></arch></guest></capabilities>"
    )
    assert {key: set(value) for key, value in host.machines.items()} == {
        ("x86_64", "qemu"): {"pc-q35-7.2", "pc", "pc-i440fx-7.2"},
        ("x86_64", "kvm"): {"pc-q35-6.2"},
    }


# -- interfaces ----------------------------------------------------------------------------------------------


def interfaces(networks: Mapping[str, str | None], **options: Callable[[str], bool]) -> list[ET.Element]:
    return transform(spec(DESKTOP, "vda sda", networks=networks), **options).findall("devices/interface")  # type: ignore[arg-type]


def test_interfaces_without_a_mapping_stay_in_place_but_lead_nowhere() -> None:
    found = interfaces({"servers": None})
    assert [interface.get("type") for interface in found] == ["user"] * 3
    assert all(one(interface, "link").get("state") == "down" for interface in found)
    assert [one(interface, "mac").get("address") for interface in found] == [
        "52:54:00:aa:00:01",
        "52:54:00:aa:00:02",
        "52:54:00:aa:00:03",
    ]
    assert [one(interface, "model").get("type") for interface in found] == ["virtio", "e1000e", "virtio"]
    assert one(found[0], "address").get("bus") == "0x01"
    assert one(found[0], "driver").attrib == {}
    for tag in ("source", "filterref", "vlan", "virtualport", "target"):
        assert all(interface.find(tag) is None for interface in found)


def test_mapped_interfaces_are_connected_and_keep_their_filter_and_vlan() -> None:
    first, second, third = interfaces(
        {"servers": "dr-servers", "bridge:br-storage": "bridge:br-dr", "direct:eno1": "user"}
    )
    assert first.get("type") == "network"
    assert one(first, "source").attrib == {"network": "dr-servers", "portgroup": "web"}
    assert one(first, "filterref").get("filter") == "clean-traffic"
    assert one(first, "driver").get("queues") == "4"
    assert second.get("type") == "bridge"
    assert one(second, "source").attrib == {"bridge": "br-dr"}
    assert one(second, "vlan/tag").get("id") == "42"
    assert third.get("type") == "user"
    assert all(interface.find("link") is None for interface in (first, second, third))


def test_a_mac_address_that_may_not_be_kept_is_made_anew() -> None:
    first, second, _third = interfaces(
        {"servers": "dr-servers"}, keep_mac=lambda network: network != "dr-servers"
    )
    assert first.find("mac") is None
    assert second.find("mac") is not None  # disconnected: nobody meets it


@pytest.mark.parametrize("target", ["direct:eno2", "bridge:", ":x", "ethernet:tap0"])
def test_a_target_that_is_no_network_is_refused(target: str) -> None:
    with pytest.raises(InvalidInputError):
        interfaces({"servers": target})
