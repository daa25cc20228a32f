"""All systems, in the order of the report."""

from .disk import LoopDisk, WorkDisk
from .peers import Copies, Overlay, Subvolumes
from .pgcowfs import Pgcowfs
from .system import System

# What all others are compared with.
REFERENCE = "ext4"


def catalogue() -> dict[str, System]:
    every = [
        Copies("ext4", WorkDisk()),
        Copies("ext4-loop", LoopDisk("ext4")),
        Copies("ext4-nofpw", WorkDisk(), full_page_writes=False),
        Subvolumes("btrfs", LoopDisk("btrfs")),
        Copies("xfs", LoopDisk("xfs"), reflink="always"),
        Overlay("overlayfs", WorkDisk()),
        Overlay("fuse-overlayfs", WorkDisk(), fuse=True),
        Pgcowfs("pgcowfs", WorkDisk()),
        Pgcowfs("pgcowfs-loop", LoopDisk("ext4")),
    ]
    return {system.name: system for system in every}
