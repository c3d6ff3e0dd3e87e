"""The workloads of the crash-point sweep: short lives of a journal, each by its name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from blake3 import blake3

from secondsite.blocks import DigestTable, block_digests
from secondsite.errors import NotFoundError
from secondsite.hrl.zeros import encode_zeros
from secondsite.journal import verify_folder
from secondsite.model import ids
from secondsite.model.manifest import PointKind
from secondsite.model.policy import Policy
from support.crash_story import Presence, Story, open_images
from support.crash_sweep import Workload
from support.journals import KEY, START, VDA, VDB, digest_of, log_bytes

# -- what was there before ---------------------------------------------------------------------------------


def nothing(story: Story) -> None:
    story.path.parent.mkdir()
    story.promises_now(presence=Presence.MAY)


def no_store(story: Story) -> None:
    story.promises_now(presence=Presence.MAY)


def a_cut_create(story: Story) -> None:
    nothing(story)
    story.created().close()
    story.path.rename(story.path.with_name("j.tmp-0123456789ab"))


def empty(story: Story) -> None:
    story.create()


def received(story: Story) -> None:
    """Two parts of the initial replication are here and not applied."""
    story.create()
    story.model.send(story.journal, parts_of_the_initial(story))


def some(story: Story) -> None:
    points(story, 3)


def small(story: Story) -> None:
    points(story, 5)


def points(story: Story, count: int) -> None:
    story.create()
    story.initially({VDA: [(0, b"A" * 8192)], VDB: [(8192, b"B" * 1024)]})
    story.seal({})
    for number in range(2, count + 1):
        fill = bytes([64 + number])
        story.seal({VDA: [(number * 2048, fill * 2560), (512, 512)], VDB: [(number * 512, fill * 512)]})


def zeroed(story: Story) -> None:
    """Points of lists of zeros, over data and over each other."""
    story.create()
    story.initially({VDA: [(0, b"A" * 16384)], VDB: [(0, b"B" * 9216)]})
    story.seal({})
    for number in range(2, 6):
        story.seal({VDA: [(number * 2048, 4096)], VDB: [(number * 512, 512)]})


def pinned(story: Story) -> None:
    small(story)
    story.pin(2, "a test failover")
    story.pin(3, "another")


def turned(story: Story, *, kind: PointKind = PointKind.INITIAL, unknown: bool = False) -> None:
    """Images and tables of a failover, about to become the base of the other side's journal."""
    story.path.parent.mkdir()
    (story.place / "images").mkdir()
    model = story.model
    model.disks[VDA][4096:16384] = b"F" * 12288
    model.disks[VDB][8192:] = b"G" * 1024
    for disk, data in model.disks.items():
        image = story.place / "images" / f"{disk}.img"
        image.write_bytes(data)
        with DigestTable.create(image.with_suffix(".tbl"), len(data), KEY) as table:
            table.put(0, block_digests(data, KEY))
            if unknown:
                table.mark_unknown(1, 1)
    story.cut_point({}, kind=kind)
    assert story.pending is not None
    story.adoption = story.pending.to_bytes()
    model.sealed(story.pending, ids.Digest(blake3(story.adoption).hexdigest()))
    story.make_again = Story.adopt_again
    story.promises_now(presence=Presence.MAY)


def taken_over(story: Story) -> None:
    turned(story)
    story.adopt()


def diverged(story: Story) -> None:
    turned(story, kind=PointKind.DIVERGED)
    story.adopt()
    story.pin(1, "diverged")
    story.seal({VDA: [(512, b"d" * 1024)]})
    story.seal({VDA: [(8192, b"e" * 4096)], VDB: [(0, b"e" * 512)]})


def damaged(story: Story) -> None:
    """One bit of a log has flipped, and the source is going to send it again."""
    small(story)
    data = max((story.path / "logs").glob("*.hrl"), key=lambda path: path.stat().st_size)
    sound = data.read_bytes()
    data.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    story.promises_now(damaged=(("hrl", sound),))


def lost(story: Story) -> None:
    """A list of zeros was lost, and the source is going to send it again."""
    zeroed(story)
    gone = next(iter(sorted((story.path / "logs").glob("*.zeros"))))
    story.promises_now(damaged=(("zeros", gone.read_bytes()),))
    gone.unlink()


# -- what is done ------------------------------------------------------------------------------------------


def seal_both(story: Story) -> None:
    story.seal({VDA: [(0, b"n" * 4096), (4096, 4096)], VDB: [(0, b"n" * 512)]})


def seal_large(story: Story) -> None:
    story.seal({VDA: [(0, bytes(range(1, 129)) * 160)]})


def seal_twice(story: Story) -> None:
    story.seal({VDA: [(512, b"n" * 1024)]})
    story.seal({VDA: [(1024, b"o" * 1024)]})


def seal_and_ask_again(story: Story) -> None:
    seal_both(story)
    story.send_and_seal()


def seal_what_is_here(story: Story) -> None:
    """The point names a list of zeros that an earlier one names too."""
    story.seal({VDA: [(512, 512)]})


def raise_twice(story: Story) -> None:
    story.raise_epoch(2)
    story.raise_epoch(5)


def seal_in_a_new_epoch(story: Story) -> None:
    story.raise_epoch(2)
    seal_both(story)


def replicate(story: Story) -> None:
    story.initially({VDA: [(0, b"I" * 6144), (8192, 4096)], VDB: [(1024, b"J" * 8192)]})
    story.seal({})


def create_and_replicate(story: Story) -> None:
    story.create()
    replicate(story)


def replicate_over(story: Story) -> None:
    """A part is applied over another, and one arrives twice."""
    model = story.model
    story.initially({VDA: [(0, b"I" * 8192)]})
    parts = model.parts(VDA, [(2048, b"K" * 4096), (6144, 512)])
    for _ in range(2):
        story.journal.apply_initial(model.epoch, VDA, model.send(story.journal, parts))
    story.seal({})


def seal_first_with_files(story: Story) -> None:
    story.seal({VDA: [(0, b"I" * 6144), (8192, 4096)]})


def apply_received(story: Story) -> None:
    parts = parts_of_the_initial(story)
    try:
        story.journal.apply_initial(story.model.epoch, VDA, [digest_of(data) for _, data in parts])
    except NotFoundError:  # a crash took them: the source sends them again
        story.journal.apply_initial(story.model.epoch, VDA, story.model.send(story.journal, parts))
    story.seal({})


def grow(story: Story) -> None:
    story.grow(VDA, 32 << 10)
    story.seal({VDA: [(28 << 10, b"g" * 4096)]})


def grow_within_a_block(story: Story) -> None:
    """The old end cuts through a block, and so does the new one."""
    story.grow(VDB, 13 << 10)
    story.seal({VDB: [(9 << 10, b"g" * 512)]})


def grow_both_while_replicating(story: Story) -> None:
    story.grow(VDA, 28 << 10)
    story.grow(VDB, 10 << 10)
    story.initially({VDA: [(24 << 10, b"g" * 4096)], VDB: [(0, b"h" * 10240)]})
    story.seal({})


def fold(story: Story) -> None:
    story.maintain(2, given_up=(1, 2, 3))


def fold_far(story: Story) -> None:
    seal_both(story)
    story.maintain(2, given_up=(1, 2, 3, 4))
    seal_both(story)
    story.maintain(2, given_up=(5,))


def fold_beside_a_view(story: Story) -> None:
    with story.journal.view(ids.Sequence(4), purpose="view"):
        story.maintain(2, given_up=(1, 2, 3))


def fold_below_a_view(story: Story) -> None:
    with story.journal.view(ids.Sequence(3), purpose="view"):
        story.maintain(2, given_up=(1, 2))
    story.maintain(2, given_up=(3,))


def fold_to_a_pin(story: Story) -> None:
    story.maintain(2, given_up=(1,))
    story.unpin("a test failover")
    story.maintain(2, given_up=(2,))


def thin_beside_a_view(story: Story) -> None:
    with story.journal.view(ids.Sequence(4), purpose="view"):
        story.thin(2, 3)


def thin_by_age(story: Story) -> None:
    """Of the first hour one point is kept, and later ones are of the next hour."""
    for minutes in (61, 62, 130):
        story.seal({VDA: [(minutes * 16 // 512 * 512, b"h" * 512)]}, time=START + timedelta(minutes=minutes))
    policy = Policy(keep_all_hours=0.1, retention_hours=24.0)
    story.maintain(policy=policy, given_up=(2, 3, 5), now=START + timedelta(minutes=131))


def thin_and_fold(story: Story) -> None:
    story.thin(3)
    story.maintain(2, given_up=(1, 2))


def thin_what_was_thinned(story: Story) -> None:
    story.thin(2)
    story.thin(3)


def collect_what_nobody_names(story: Story) -> None:
    model = story.model
    model.send(story.journal, [("hrl", log_bytes(model.sizes[VDA], [(0, b"x" * 512)], unique=99))])
    model.send(story.journal, [("zeros", encode_zeros([(1536, 512)]))])
    seal_twice(story)
    story.maintain(5, given_up=(1, 2))


def pin_and_unpin(story: Story) -> None:
    story.pin(2, "a test failover")
    story.pin(3, "another")
    story.unpin("a test failover")


def look(story: Story) -> None:
    with story.journal.view(ids.Sequence(2), purpose="view", verify=True):
        seal_both(story)
    assert list(verify_folder(story.path, open_images)) == []


def adopt_and_go_on(story: Story) -> None:
    story.adopt()
    story.seal({VDA: [(0, b"p" * 4608)], VDB: [(512, 1024)]})
    story.seal({VDA: [(8192, b"q" * 512)]})
    story.maintain(2, given_up=(1,))


def fold_into_images(story: Story) -> None:
    seal_twice(story)
    story.maintain(2, given_up=(1,))


def drop_diverged(story: Story) -> None:
    story.unpin("diverged")
    story.maintain(2, given_up=(1,))


def delete_with_images(story: Story) -> None:
    story.make_again = Story.create_again
    story.delete(remove_images=True)


def repair(story: Story) -> None:
    if story.promise.damaged:
        story.model.send(story.journal, story.promise.damaged)
    story.promises_now(damaged=())


def a_day(story: Story) -> None:
    seal_both(story)
    story.pin(4, "a test failover")
    story.thin(2)
    story.maintain(2, given_up=(1, 2, 3))
    story.raise_epoch(2)
    story.unpin("a test failover")
    seal_twice(story)
    story.maintain(2, given_up=(4, 5, 6))


def _of(run: Callable[..., None], **options: object) -> Callable[[Story], None]:
    return lambda story: run(story, **options)


PLAIN: Final = [
    Workload("create", nothing, Story.create),
    Workload("create in a new store", no_store, Story.create),
    Workload("create after a cut create", a_cut_create, Story.create),
    Workload("create and replicate", nothing, create_and_replicate),
    Workload("replicate", empty, replicate),
    Workload("replicate over", empty, replicate_over),
    Workload("apply received", received, apply_received),
    Workload("first seal with files", empty, seal_first_with_files),
    Workload("first seal of zeros", empty, lambda story: story.seal({})),
    Workload("seal", small, seal_both),
    Workload("seal data", some, lambda story: story.seal({VDA: [(0, b"n" * 4096)]})),
    Workload("seal zeros", some, lambda story: story.seal({VDA: [(0, 8192)], VDB: [(512, 512)]})),
    Workload("seal nothing", some, lambda story: story.seal({})),
    Workload("seal a large log", some, seal_large),
    Workload("seal twice", some, seal_twice),
    Workload("seal and ask again", some, seal_and_ask_again),
    Workload("seal what is here", some, seal_what_is_here),
    Workload("seal in a new epoch", some, seal_in_a_new_epoch),
    Workload("resync", some, lambda story: story.seal({VDA: [(1024, b"r" * 6144)]}, kind=PointKind.RESYNC)),
    Workload("raise the epoch", some, raise_twice),
    Workload("grow", some, grow),
    Workload("grow within a block", some, grow_within_a_block),
    Workload("grow while replicating", empty, grow_both_while_replicating),
    Workload("fold one point", some, lambda story: story.maintain(2, given_up=(1,))),
    Workload("fold", small, fold),
    Workload("fold zeros", zeroed, fold),
    Workload("fold far", small, fold_far),
    Workload("fold beside a view", small, fold_beside_a_view),
    Workload("fold below a view", small, fold_below_a_view),
    Workload("fold to a pin", pinned, fold_to_a_pin),
    Workload("thin one point", small, lambda story: story.thin(3)),
    Workload("thin", small, lambda story: story.thin(2, 3)),
    Workload("thin zeros", zeroed, lambda story: story.thin(2, 3)),
    Workload("thin two runs", _of(points, count=6), lambda story: story.thin(2, 4)),
    Workload("thin beside a view", small, thin_beside_a_view),
    Workload("thin by age", some, thin_by_age),
    Workload("thin and fold", small, thin_and_fold),
    Workload("thin what was thinned", small, thin_what_was_thinned),
    Workload("collect garbage", some, collect_what_nobody_names),
    Workload("pin and unpin", small, pin_and_unpin),
    Workload("view, seal, scrub", some, look),
    Workload("adopt", turned, Story.adopt),
    Workload("adopt with unknown cells", _of(turned, unknown=True), Story.adopt),
    Workload("adopt and go on", turned, adopt_and_go_on),
    Workload("fold into images", taken_over, fold_into_images),
    Workload("drop a diverged point", diverged, drop_diverged),
    Workload("delete", some, Story.delete),
    Workload("delete with images", taken_over, delete_with_images),
    Workload("extract", some, lambda story: story.extract("out.raw", 2)),
    Workload("extract all", some, lambda story: story.extract_all("out", 3)),
    Workload("digests at a point", some, lambda story: story.write_digests("vda.tbl", 2)),
    Workload("digests of a base", received, lambda story: story.write_initial_table("vda.tbl")),
    Workload("repair a damaged log", damaged, repair),
    Workload("repair a lost list of zeros", lost, repair),
    Workload("a day", small, a_day),
]


def parts_of_the_initial(story: Story) -> list[tuple[str, bytes]]:
    story.model.unique = 77  # the same parts each time
    return story.model.parts(VDA, [(0, b"I" * 6144), (8192, 4096)])
