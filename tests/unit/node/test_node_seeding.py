"""A fresh journal is filled from images: it holds what they hold, says so, and trusts none of them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from secondsite.capture.parts import Part
from secondsite.errors import SecondSiteError
from secondsite.fabric.fake import FakeImage
from secondsite.fabric.port import PowerState
from secondsite.journal import Journal
from secondsite.model.ids import DiskKey, Epoch
from secondsite.model.units import KIB, MIB
from secondsite.nbd.image import ImageServer
from secondsite.node.executor import CUT_BY_STOP
from secondsite.node.records import Role
from secondsite.node.target import seeding
from support.journals import ITEM, VDA, VDB, Model
from support.power import unsynced
from support.role_world import Killed, killed_at, with_real_images
from support.seeds import (
    CONTENT,
    SIZES,
    SeedSide,
    create_args,
    pattern,
    write_export,
    write_qcow2,
    write_raw,
    write_seed,
)


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def side(short_path: Path) -> Iterator[SeedSide]:
    side = SeedSide(short_path)
    yield side
    side.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that a disk takes several."""
    small = functools.partial(seeding.produce, part_size=64 * KIB)
    monkeypatch.setattr(seeding, "produce", small)


def refusal(side: SeedSide, seed: Path) -> SecondSiteError:
    """Return why `target.create` refuses the seed; afterwards the item can be removed without a trace."""
    outcome = side.run("target.create", **create_args(seed))
    assert "error" in outcome, outcome
    side.done("target.remove")
    assert side.leftovers() == []
    error = outcome["error"]
    return SecondSiteError(f"{error['code']}: {error['message']}", hint=error["hint"] or "")


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list in which the bytes of every part are noted that journals apply from now on."""
    taken: list[int] = []
    real = seeding._take

    def note(journal: Journal, epoch: Epoch, part: Part) -> None:
        real(journal, epoch, part)
        taken.append(part.data_length)

    monkeypatch.setattr(seeding, "_take", note)
    return taken


# -- what a seed makes ---------------------------------------------------------------------------------------


def test_the_base_holds_what_the_images_hold_and_its_table_says_so(side: SeedSide) -> None:
    seed = side.root / "seed"
    images = [write_raw(seed, VDA, CONTENT[VDA]), write_qcow2(seed, VDB, CONTENT[VDB])]
    before = [(image.read_bytes(), image.stat().st_mtime_ns) for image in images]
    result = side.done("target.create", **create_args(seed))
    assert result == {"seeded": {"vda": "vda.raw", "vdb": "vdb.qcow2"}}
    assert side.base() == CONTENT
    assert side.table_is_true()
    assert side.journals.get(ITEM).status().last is None
    assert side.record.role is Role.TARGET
    assert [(image.read_bytes(), image.stat().st_mtime_ns) for image in images] == before
    assert not list(side.folders.run.glob("seed-*"))


def test_a_disk_without_an_image_stays_empty(side: SeedSide) -> None:
    seed = side.root / "seed"
    write_raw(seed, VDA, CONTENT[VDA])
    write_raw(seed, DiskKey("vdz"), b"of another machine")
    assert side.done("target.create", **create_args(seed)) == {"seeded": {"vda": "vda.raw"}}
    assert side.base() == {VDA: CONTENT[VDA], VDB: bytes(SIZES[VDB])}
    assert side.table_is_true()


@pytest.mark.parametrize("size", [64 * KIB, 64 * KIB + 512, 512, 10_000])
def test_an_image_from_before_the_disk_grew_leaves_zeros_behind_its_end(side: SeedSide, size: int) -> None:
    seed = side.root / "seed"
    write_raw(seed, VDA, CONTENT[VDA][:size])
    side.done("target.create", **create_args(seed))
    assert side.base()[VDA] == CONTENT[VDA][:size] + bytes(SIZES[VDA] - size)
    assert side.table_is_true()


@pytest.mark.parametrize("size", [64 * KIB, 66 * KIB, 512])
def test_a_smaller_image_in_the_place_of_another_leaves_nothing_of_that(side: SeedSide, size: int) -> None:
    seed = side.root / "seed"
    write_raw(seed, VDA, pattern(SIZES[VDA], 8))
    side.done("target.create", **create_args(seed))
    write_raw(seed, VDA, CONTENT[VDA][:size])
    side.done("target.create", **create_args(seed))
    assert side.base()[VDA] == CONTENT[VDA][:size] + bytes(SIZES[VDA] - size)
    assert side.table_is_true()


def test_what_an_export_says_is_compared_with_what_is_read(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    side.done("target.create", **create_args(seed))
    assert side.base() == CONTENT


def test_a_replaced_image_beside_an_old_export_is_taken_as_it_is(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    (seed / "vda.raw").unlink()
    write_qcow2(seed, VDA, pattern(SIZES[VDA], 9))
    side.done("target.create", **create_args(seed))
    assert side.base() == {VDA: pattern(SIZES[VDA], 9), VDB: CONTENT[VDB]}


# -- what is refused -----------------------------------------------------------------------------------------


def test_an_image_that_is_larger_than_its_disk_is_refused_by_name(side: SeedSide) -> None:
    seed = side.root / "seed"
    write_raw(seed, VDA, CONTENT[VDA] + bytes(512))
    error = refusal(side, seed)
    assert error.message.startswith(f"invalid_input: {seed}/vda.raw has 328192 bytes, its disk only 327680")
    assert "Remove it" in error.hint


def test_an_overlay_is_refused(side: SeedSide) -> None:
    seed = side.root / "seed"
    base = write_qcow2(seed, DiskKey("base"), CONTENT[VDA])
    command = ["qemu-img", "create", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(seed / "vda.qcow2")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert "vda.qcow2 is an overlay of another image" in refusal(side, seed).message


def test_what_is_no_qcow2_is_refused(side: SeedSide) -> None:
    seed = side.root / "seed"
    seed.mkdir()
    (seed / "vda.qcow2").write_bytes(b"a letter")
    assert "vda.qcow2 is not a qcow2 image" in refusal(side, seed).message


def test_two_images_of_a_disk_are_refused(side: SeedSide) -> None:
    seed = side.root / "seed"
    write_qcow2(seed, VDA, CONTENT[VDA])
    write_raw(seed, VDA, CONTENT[VDA])
    assert refusal(side, seed).message == f"invalid_input: {seed} holds two images of disk vda"


def test_a_folder_without_an_image_is_refused(side: SeedSide) -> None:
    seed = side.root / "seed"
    write_raw(seed, DiskKey("web-vda"), CONTENT[VDA])
    error = refusal(side, seed)
    assert error.message == f"not_found: {seed} holds no image of a disk of this machine"
    assert "vda.qcow2 or vda.raw" in error.hint


def test_a_folder_that_is_not_mounted_here_is_refused(side: SeedSide) -> None:
    error = refusal(side, side.root / "nowhere")
    assert error.message == f"not_found: there is no folder {side.root}/nowhere on this host"
    assert "the target node's host" in error.hint


def test_a_folder_that_cannot_be_looked_at_is_no_bug(side: SeedSide) -> None:
    error = refusal(side, side.root / ("x" * 300))
    assert error.message.startswith("unavailable: cannot read")
    assert error.message.endswith("File name too long")


def test_a_link_to_an_image_is_followed(side: SeedSide) -> None:
    image = write_qcow2(side.root / "backup", DiskKey("web-1-system"), CONTENT[VDA])
    seed = side.root / "seed"
    seed.mkdir()
    (seed / "vda.qcow2").symlink_to(image)
    side.done("target.create", **create_args(seed))
    assert side.base()[VDA] == CONTENT[VDA]


def test_a_relative_path_is_refused(side: SeedSide) -> None:
    assert refusal(side, Path("seed")).message.startswith("invalid_input: ")


def test_an_image_that_a_running_machine_uses_is_refused(
    side: SeedSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeImage, "read", with_real_images(FakeImage.read))
    seed = side.root / "seed"
    vm = side.fabric.add_vm("other", {VDA: (seed / "vda.qcow2", SIZES[VDA])})
    write_qcow2(seed, VDA, CONTENT[VDA])
    assert "vda.qcow2 is in use by the running machine other" in refusal(side, seed).message
    side.fabric.power_off(vm.uuid)
    assert side.fabric.power(vm.uuid) is PowerState.OFF
    side.done("target.create", **create_args(seed))
    assert side.base()[VDA] == CONTENT[VDA]


def test_one_flipped_bit_of_an_export_is_found_and_the_table_stays_true(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    damaged = bytearray(CONTENT[VDB])
    damaged[5000] ^= 1
    (seed / "vdb.raw").write_bytes(damaged)
    outcome = side.run("target.create", **create_args(seed))
    assert outcome["error"]["code"] == "corrupt"
    assert f"{seed}/vdb.raw does not hold what was exported" in outcome["error"]["message"]
    assert "leave this file out" in outcome["error"]["hint"]
    # Should somebody go on regardless, the source learns from the table what the base really holds.
    assert side.base() == {VDA: CONTENT[VDA], VDB: bytes(damaged)}
    assert side.table_is_true()


def test_a_half_copied_export_is_refused_before_anything_is_read(
    side: SeedSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = write_seed(side.root / "seed")
    (seed / "vdb.raw").write_bytes(CONTENT[VDB][:10_001])
    taken = written(monkeypatch)
    assert refusal(side, seed).message == f"corrupt: {seed}/vdb.raw has 10001 bytes, but 71680 were exported"
    assert taken == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "corrupt: "),
        ("[]", "corrupt: "),
        ('{"format": "secondsite-export/2", "disks": {}}', "unsupported: "),
        ('{"format": "secondsite-export/1", "disks": {"../x": {}}}', "corrupt: "),
    ],
)
def test_an_export_json_that_is_not_understood_is_refused(side: SeedSide, text: str, said: str) -> None:
    seed = write_seed(side.root / "seed")
    (seed / "export.json").write_text(text)
    assert refusal(side, seed).message.startswith(said)


# -- cuts ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_a_stop_in_the_middle_is_no_outcome_and_the_next_run_writes_only_what_is_missing(
    side: SeedSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pattern(4 * MIB)
    seed, sizes = write_seed(side.root / "seed", {VDA: content}), {VDA: len(content)}
    command = side.command("target.create", **create_args(seed, sizes))
    taken = written(monkeypatch)
    object.__setattr__(side.target, "stopping", lambda: len(taken) > 2)
    with pytest.raises(SecondSiteError) as caught:
        side.target.create(command, lambda *_args, **_fields: None)
    assert caught.value.code in CUT_BY_STOP
    side.reopen()
    assert side.submit(command)["result"] == {"seeded": {"vda": "vda.raw"}}
    assert side.base() == {VDA: content}
    assert side.table_is_true()
    data = len(content) - sum(not any(content[at : at + 4096]) for at in range(0, len(content), 4096)) * 4096
    assert sum(taken) == data, "every block was written once"


@pytest.mark.every_step
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("then", ["told again", "disabled"])
def test_killed_at_any_step_it_goes_on_when_told_again_and_leaves_nothing_when_disabled(
    short_path: Path, then: str
) -> None:
    content = CONTENT[VDA][: 128 * KIB]
    seed = write_seed(short_path / "seed", {VDA: content})
    for at in range(100):
        side = SeedSide(short_path / f"{at}")
        try:
            with killed_at(side, at) as steps, suppress(Killed):
                side.act("target.create", **create_args(seed))
            side.reopen()
            if then == "disabled":
                side.done("target.remove")
                assert side.leftovers() == [], at
            else:
                side.done("target.create", **create_args(seed))
                assert side.base()[VDA] == content + bytes(SIZES[VDA] - len(content)), at
                assert side.table_is_true(), at
        finally:
            side.close()
        if steps.done <= at:
            break
    assert 10 < at < 99


def test_the_server_of_a_killed_run_is_ended_by_the_next_run_and_by_a_disable(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    socket = side.folders.run / f"{seeding._prefix(ITEM)}vda.sock"
    for kind, args in (("target.create", create_args(seed)), ("target.remove", {})):
        left = ImageServer(seed / "vda.raw", "raw", socket, writable=False)
        left.start()
        side.done(kind, **args)
        assert left.process is None
    assert side.leftovers() == []


def test_a_cancelled_seeding_is_removed_without_a_trace(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    side.answers.cancel = True
    outcome = side.run("target.create", **create_args(seed))
    assert outcome["error"]["code"] == "cancelled"
    side.answers.cancel = False
    side.done("target.remove")
    assert side.leftovers() == []
    assert (seed / "vda.raw").read_bytes() == CONTENT[VDA], "the images are not ours to remove"


def test_a_damaged_record_is_removed_with_the_server_that_a_killed_seeding_left(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    side.done("target.create", **create_args(seed))
    left = ImageServer(
        seed / "vda.raw", "raw", side.folders.run / f"{seeding._prefix(ITEM)}vda.sock", writable=False
    )
    left.start()
    (side.items.folder(ITEM) / "record.json").write_text("{")
    side.reopen()
    side.done("target.remove")
    assert left.process is None
    assert side.leftovers() == []


def test_a_seed_does_nothing_to_a_journal_that_has_a_point(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    side.done("target.create", **create_args(seed))
    journal = side.journals.get(ITEM)
    journal.seal(side.record.epoch, Model(SIZES).manifest({}).to_bytes())
    (seed / "vda.raw").write_bytes(bytes(SIZES[VDA]))
    (seed / "export.json").unlink()
    assert side.done("target.create", **create_args(seed)) == {"seeded": {}}
    assert side.base() == CONTENT


def test_progress_tells_the_image_and_its_bytes(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    told: list[tuple[float | None, str, int | None, int | None]] = []

    def tell(
        fraction: float | None = None,
        text: str = "",
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
    ) -> None:
        told.append((fraction, text, bytes_done, bytes_total))

    side.target.create(side.command("target.create", **create_args(seed)), tell)
    assert told[0][1] == "seeding from vda.raw"
    fraction, text, done, total = told[-1]
    assert (fraction, text) == (1.0, "seeding from vdb.raw")
    assert done == total
    assert total is not None
    assert 0 < total <= SIZES[VDB]


def test_the_folder_of_a_seed_may_hold_more_than_the_machine_has(side: SeedSide) -> None:
    seed = write_seed(side.root / "seed")
    write_export(seed, {**CONTENT, DiskKey("vdz"): b"of a disk that is left out"})
    side.done("target.create", **create_args(seed))
    assert side.base() == CONTENT
