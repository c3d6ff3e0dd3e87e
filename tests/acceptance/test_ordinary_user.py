"""The lab, and protection with it, work for somebody who is not root: libvirt's session mode, nothing privileged."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from support.guests import built_guest
from support.lab_story import MIB, LabStory, until
from support.leftovers import short_folder
from support.other_user import reads_this_checkout

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(200)]

NOBODY = pwd.getpwnam("nobody")


@pytest.mark.skipif(not reads_this_checkout(), reason="an ordinary user cannot read this checkout")
def test_an_ordinary_user_protects_a_machine() -> None:
    prefix: list[str] = []
    with short_folder() as folder:
        if os.geteuid() == 0:
            prefix = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
            os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": "", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
        lab = LabStory(folder, prefix=prefix, environment=home)
        try:
            lab.up()
            protect(lab, folder, prefix)
        finally:
            lab.down()


def protect(lab: LabStory, folder: Path, prefix: list[str]) -> None:
    primary = lab.facts["sites"]["primary"]
    assert "/session?" in primary["libvirt_uri"]
    disks = create_disks(Path(primary["storage"]), "mine", count=2, size=96 * MIB, record_area=4 * MIB)
    if prefix:
        for disk in disks:
            shutil.chown(disk, NOBODY.pw_uid, NOBODY.pw_gid)
    definition = folder / "mine.xml"
    definition.write_text(domain_xml("mine", built_guest(folder), disks))
    for command in (["define", str(definition)], ["start", "mine"]):
        subprocess.run(
            [*prefix, "virsh", "-q", "-c", primary["libvirt_uri"], *command], check=True, timeout=60
        )
    lab.protect("mine")
    lab.wait_for_points("mine", 2)
    # Nobody waited for its boot, which may take longer than two points.
    assert until(lambda: lab.check_point("mine", lab.newest("mine")).last > 0, "records in a point")
    user = Path(f"/proc/{lab.pid('primary')}").stat().st_uid
    assert user != 0
    lab.cli("item", "disable", "mine")
