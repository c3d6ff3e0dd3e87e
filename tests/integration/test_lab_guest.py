"""The lab's guest: it boots, writes, goes down, and what it leaves can be judged."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from secondsite.lab.capabilities import default_cache
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.layout import BLOCK, RECORDS_OFFSET
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import check_records, last_record
from support.guests import running_guest
from support.other_user import reads_this_checkout

pytestmark = pytest.mark.integration


def test_records_are_a_strict_prefix_after_a_crash_and_go_on_where_they_ended(
    hypervisor: Hypervisor, guest_files: GuestFiles
) -> None:
    with running_guest(hypervisor, guest_files, "lab-crash", rate=200, churn=8) as guest:
        assert guest.console is not None
        told = guest.console.record()
        guest.domain.destroy()
        after_crash = check_records(guest.disks)
        assert after_crash.problems == ()
        assert after_crash.last >= told
        assert all(after_crash.records)
        for image in guest.disks:
            checked = check_filesystem(image)
            assert checked.problems == ()
            assert checked.needed_recovery
        assert guest.start().first_record() == after_crash.last + 1
        last = guest.shut_down()
        after_shutdown = check_records(guest.disks)
        assert after_shutdown.problems == ()
        assert after_shutdown.last == last
        for image in guest.disks:
            checked = check_filesystem(image)
            assert checked.problems == ()
            assert not checked.needed_recovery
            assert checked.files > 0


def test_a_guest_in_check_mode_judges_its_disks_and_writes_nothing(
    hypervisor: Hypervisor, guest_files: GuestFiles
) -> None:
    with running_guest(hypervisor, guest_files, "lab-writer", image_format="raw", count=1) as writer:
        last = writer.shut_down()
        with running_guest(hypervisor, guest_files, "lab-judge", disks=writer.disks, check=True) as judge:
            assert judge.console is not None
            assert f"SS-CHECK ok n={last} bad=0" in judge.console.lines
            judge.domain.destroy()
        assert last_record(writer.disks) == last
        with writer.disks[0].open("r+b") as disk:
            disk.seek(RECORDS_OFFSET + 7 * BLOCK + 4000)
            byte = disk.read(1)[0]
            disk.seek(-1, os.SEEK_CUR)
            disk.write(bytes([byte ^ 1]))
        assert check_records(writer.disks).bad_slots == 1
        with running_guest(hypervisor, guest_files, "lab-judge", disks=writer.disks, check=True) as judge:
            assert judge.console is not None
            assert any(
                line.startswith("SS-CHECK bad") and line.endswith("bad=1") for line in judge.console.lines
            )


def test_a_guest_gets_an_address_on_the_isolated_network(
    hypervisor: Hypervisor, guest_files: GuestFiles
) -> None:
    if not hypervisor.has_networks:
        assert hypervisor.define_networks() == []
        return
    with running_guest(hypervisor, guest_files, "lab-net", count=1, networks=["lab-prod"]) as guest:
        assert guest.console is not None
        assert guest.console.wait_for(r"SS-NET (.*)")[1].startswith("ip=192.168.177.")


def test_the_agent_freezes_thaws_and_shuts_down(hypervisor: Hypervisor, guest_files: GuestFiles) -> None:
    with running_guest(hypervisor, guest_files, "lab-agent", agent=True) as guest:
        assert guest.console is not None
        guest.wait_for_agent()
        assert guest.domain.fsFreeze() == 2
        guest.console.wait_for(r"SS-FREEZE file-systems=2")
        frozen = [check_filesystem(image) for image in guest.disks]
        assert guest.domain.fsThaw() == 2
        # Frozen file systems have nothing in their journals, although the guest runs.
        assert [(found.needed_recovery, found.problems) for found in frozen] == [(False, ())] * 2
        guest.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        last = int(guest.console.wait_for(r"SS-LAST n=(\d+)")[1])
        guest.console.wait_for_end()
        assert check_records(guest.disks).last == last


_AS_USER = """
import json, sys
from pathlib import Path
from secondsite.lab.guest.layout import BLOCK, RECORDS_OFFSET
from secondsite.lab.hypervisor import Hypervisor
from support.guests import built_guest, running_guest
from secondsite.lab.records import check_records

folder = Path(sys.argv[1])
with Hypervisor(folder / "h", "h") as hypervisor:
    with running_guest(hypervisor, built_guest(folder), "plain", count=1) as guest:
        last = guest.shut_down()
        check = check_records(guest.disks)
        print(json.dumps([hypervisor.mode, hypervisor.define_networks(), last, check.last, check.ok]))
"""


@pytest.mark.skipif(not reads_this_checkout(), reason="an ordinary user cannot read this checkout")
def test_an_ordinary_user_runs_a_guest(short_path: Path, guest_files: GuestFiles) -> None:
    # The cache of whoever runs the tests is lent, so that no kernel is fetched again.
    cache = short_path / "cache" / "secondsite"
    shutil.copytree(default_cache(), cache, ignore=shutil.ignore_patterns("tmp-*", "*.tmp-*"))
    command = [sys.executable, "-c", _AS_USER, str(short_path)]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in [short_path, *short_path.rglob("*")]:
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        command = [
            "setpriv",
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            *command,
        ]
    tests = Path(__file__).parents[1]
    environment = os.environ | {
        "HOME": str(short_path),
        "XDG_CACHE_HOME": str(short_path / "cache"),
        "PYTHONPATH": f"{tests}:{tests.parent / 'src'}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # What it found out about QEMU serves the next run.
    shutil.copytree(cache / "libvirt", default_cache() / "libvirt", dirs_exist_ok=True)
    mode, networks, last, checked, ok = json.loads(done.stdout.splitlines()[-1])
    assert mode == "session"
    assert networks == []
    assert (checked, ok) == (last, True)
