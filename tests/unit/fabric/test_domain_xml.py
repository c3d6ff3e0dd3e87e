"""Reading domain XML: what is refused, what disks and interfaces there are, what stands in the way of protection."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.fabric.disk_xml import read_disk
from secondsite.fabric.domain_xml import (
    XML_CHARS_MAX,
    agent_connected,
    check_name,
    disk_elements,
    machine_problems,
    parse_domain,
    read_labels,
    read_nics,
)
from secondsite.fabric.inventory import DISKS_MAX, DiskInfo, PowerState, Problem, ProblemCode, VmInfo
from secondsite.model.ids import DiskKey
from support.domains import DESKTOP, LEGACY_UEFI, PLAIN, with_device

GIB = 1 << 30


def disks_of(text: str) -> dict[str, DiskInfo]:
    return {key: read_disk(key, disk, GIB) for key, disk in disk_elements(parse_domain(text))}


def problems_of(text: str) -> list[Problem]:
    return list(machine_problems(parse_domain(text), tuple(disks_of(text).values())))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain>",
        "<network/>",
        "no xml at all",
        "<domain>\x00</domain>",
        '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><domain>&b;</domain>',
        '<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>',
        "<domain>" + " " * XML_CHARS_MAX + "</domain>",
    ],
)
def test_what_is_no_domain_or_could_attack_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_domain(text)


def test_disks_are_read_with_their_format_bus_and_path() -> None:
    disks = disks_of(DESKTOP)
    assert list(disks) == ["vda", "sda", "vdb", "vdc", "vdd", "vde", "sdb", "fda"]
    assert disks["vda"] == DiskInfo(
        key=DiskKey("vda"),
        path=Path("/var/lib/libvirt/images/files01.qcow2"),
        format="qcow2",
        size=GIB,
        bus="virtio",
        device="disk",
    )
    assert disks["fda"].path is None
    assert disks["sdb"].readonly
    assert disks["vde"].shareable


def test_qcow2_files_raw_files_and_raw_block_devices_are_replicable() -> None:
    disks = disks_of(DESKTOP)
    assert [key for key, disk in disks.items() if disk.replicable] == ["vda", "sda", "vdb", "vdc"]
    assert disks["vdc"].path == Path("/dev/vg0/lv0")
    assert {
        key: [problem.code for problem in disk.problems] for key, disk in disks.items() if disk.problems
    } == {
        "vdb": [ProblemCode.DISK_COMPARED],
        "vdc": [ProblemCode.DISK_COMPARED],
        "vdd": [ProblemCode.DISK_NOT_A_FILE],
        "vde": [ProblemCode.DISK_SHAREABLE],
        "sdb": [ProblemCode.DISK_REMOVABLE],
        "fda": [ProblemCode.DISK_REMOVABLE],
    }


@pytest.mark.parametrize(
    ("driver", "kind"), [("vmdk", "file"), ("qcow2", "block")], ids=["other format", "qcow2 on a device"]
)
def test_other_formats_are_refused_by_name(driver: str, kind: str) -> None:
    text = PLAIN.replace("type='qcow2'", f"type='{driver}'")
    if kind == "block":
        text = text.replace("<disk type='file'", "<disk type='block'").replace("source file", "source dev")
    (problem,) = disks_of(text)["vda"].problems
    assert (problem.code, problem.forbids) == (ProblemCode.DISK_FORMAT, True)
    assert driver in problem.message


def test_a_slice_of_an_image_is_not_replicable() -> None:
    slices = "<slices><slice type='storage' offset='512' size='1024'/></slices>"
    text = PLAIN.replace("<source file='/images/web01.qcow2'/>", f"<source file='/i'>{slices}</source>")
    assert text != PLAIN
    assert [problem.code for problem in disks_of(text)["vda"].problems] == [ProblemCode.DISK_FORMAT]


def test_an_encrypted_disk_is_not_replicable() -> None:
    text = PLAIN.replace("<target dev='vda'", "<encryption format='luks'/><target dev='vda'")
    assert [problem.code for problem in disks_of(text)["vda"].problems] == [ProblemCode.DISK_ENCRYPTED]


def test_interfaces_name_what_they_are_connected_to() -> None:
    assert [(nic.mac, nic.network, nic.model) for nic in read_nics(parse_domain(DESKTOP))] == [
        ("52:54:00:aa:00:01", "servers", "virtio"),
        ("52:54:00:aa:00:02", "bridge:br-storage", "e1000e"),
        ("52:54:00:aa:00:03", "direct:eno1", "virtio"),
    ]


@pytest.mark.parametrize(
    ("interface", "network"),
    [
        ("<interface type='user'/>", "user"),
        ("<interface type='user'><link state='down'/></interface>", None),
        ("<interface type='network'/>", None),
        ("<interface type='ethernet'><target dev='tap0'/></interface>", "ethernet"),
    ],
)
def test_other_kinds_of_interfaces(interface: str, network: str | None) -> None:
    assert read_nics(parse_domain(with_device(PLAIN, interface)))[1].network == network


def test_a_plain_machine_has_no_problem() -> None:
    assert problems_of(PLAIN) == []


def test_what_is_left_behind_is_told_but_does_not_forbid() -> None:
    problems = problems_of(DESKTOP)
    assert not any(problem.forbids for problem in problems)
    assert [problem.code for problem in problems] == [
        ProblemCode.NVRAM,
        ProblemCode.TPM,
        ProblemCode.SHARED_FOLDER,
        ProblemCode.DISK_LEFT_OUT,
        ProblemCode.DISK_LEFT_OUT,
    ]
    assert [problem.code for problem in problems_of(LEGACY_UEFI)] == [ProblemCode.NVRAM]


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev mode='subsystem' type='pci' managed='yes'/>",
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'/>",
        "<interface type='hostdev' managed='yes'/>",
        "<tpm model='tpm-tis'><backend type='passthrough'/></tpm>",
        "<memory model='nvdimm'/>",
        "<shmem name='shm'/>",
    ],
)
def test_a_device_of_the_host_forbids_protection(device: str) -> None:
    (problem,) = problems_of(with_device(PLAIN, device))
    assert (problem.code, problem.forbids) == (ProblemCode.PASSTHROUGH, True)
    assert problem.hint


def test_arguments_for_qemu_are_told() -> None:
    arguments = "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>"
    (problem,) = problems_of(PLAIN.replace("</domain>", arguments))
    assert (problem.code, problem.forbids) == (ProblemCode.QEMU_ARGUMENTS, False)


def test_too_many_disks_forbid_protection() -> None:
    disk = "<disk type='file'><driver type='qcow2'/><source file='/i/{0}'/><target dev='sd{0}' bus='scsi'/></disk>"
    names = "abcdefghijklmnopqrstuvwxyz"

    def codes(count: int) -> list[ProblemCode]:
        text = with_device(PLAIN, "".join(disk.format(letter) for letter in names[:count]))
        return [problem.code for problem in problems_of(text)]

    assert codes(DISKS_MAX - 1) == []
    assert codes(DISKS_MAX) == [ProblemCode.TOO_MANY_DISKS]


def test_a_machine_with_no_replicable_disk_is_not_protectable() -> None:
    (problem,) = problems_of(PLAIN.replace("type='qcow2'", "type='vmdk'"))
    assert problem.code is ProblemCode.NO_DISK


def test_labels_that_are_none_of_ours_are_refused() -> None:
    bad = "<metadata><s:machine xmlns:s='urn:secondsite:domain:1'><labels item='../x' epoch='1' role='test'/></s:machine></metadata>"
    with pytest.raises(CorruptError):
        read_labels(parse_domain(PLAIN.replace("<os>", bad + "<os>")))
    assert read_labels(parse_domain(PLAIN)) is None


def test_a_connected_agent_is_seen() -> None:
    assert agent_connected(parse_domain(DESKTOP))
    assert not agent_connected(parse_domain(DESKTOP.replace("state='connected'", "state='disconnected'")))


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "..", "x" * 201])
def test_names_that_libvirt_refuses(name: str) -> None:
    with pytest.raises(InvalidInputError):
        check_name(name)


def test_a_machine_is_protectable_with_a_good_disk_and_nothing_that_forbids() -> None:
    disks = tuple(disks_of(DESKTOP).values())
    vm = VmInfo("u", "n", PowerState.OFF, io_error=False, disks=disks, nics=())
    assert vm.protectable
    assert [disk.key for disk in vm.replicable_disks] == ["vda", "sda", "vdb", "vdc"]
    forbidden = Problem(ProblemCode.TRANSIENT, "m", "h")
    assert not dataclasses.replace(vm, problems=(forbidden,)).protectable
    assert not dataclasses.replace(vm, disks=disks[4:]).protectable


def test_the_reported_form_is_json() -> None:
    disks = tuple(disks_of(DESKTOP).values())
    vm = VmInfo("u", "n", PowerState.RUNNING, False, disks, read_nics(parse_domain(DESKTOP)))
    told = json.loads(json.dumps(vm.to_dict()))
    assert told["disks"][0]["path"] == "/var/lib/libvirt/images/files01.qcow2"
    assert told["disks"][4]["replicable"] is False
    assert told["nics"][1]["network"] == "bridge:br-storage"
