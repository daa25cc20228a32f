"""Where a system keeps its clusters: in a directory of the work disk, or on a file system of its own."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from .host import NotMeasured, is_root, loop_device, mounted, run
from .server import Postgres


@dataclass
class Setting:
    """What all systems of one run have in common."""

    postgres: Postgres
    work: Path
    template: Path
    template_bytes: int
    wal_bytes: int
    program: Path | None
    run_dir: Path
    ports: Iterator[int] = field(default_factory=lambda: iter(range(5970, 65536)))


class WorkDisk:
    """A directory on the work disk."""

    def facts(self) -> dict[str, Any]:
        return {"on": "the work disk"}

    @contextlib.contextmanager
    def open(self, setting: Setting, name: str) -> Iterator[Path]:
        home = setting.work / name
        home.mkdir()
        try:
            yield home
        finally:
            shutil.rmtree(home)

    def used_bytes(self, home: Path) -> int | None:
        return None


class LoopDisk:
    """A file system on a loop device with direct I/O."""

    # Nothing is discarded: the image would get holes, and finding room on the disk below be measured again. What ext4
    # puts off until after the first mount is done at once.
    MKFS = {
        "ext4": ["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
        "btrfs": ["mkfs.btrfs", "-q", "--nodiscard"],
        "xfs": ["mkfs.xfs", "-q", "-K", "-m", "reflink=1"],
    }
    MOUNT = {"ext4": "nodiscard", "btrfs": "nodiscard", "xfs": "nodiscard"}

    def __init__(self, kind: str):
        self.kind = kind

    def facts(self) -> dict[str, Any]:
        return {"on": "loop device, direct I/O", "mkfs": " ".join(self.MKFS[self.kind]), "mount": self.MOUNT[self.kind]}

    @contextlib.contextmanager
    def open(self, setting: Setting, name: str) -> Iterator[Path]:
        mkfs = self.MKFS[self.kind]
        if not is_root():
            raise NotMeasured("loop devices need root")
        if not shutil.which(mkfs[0]):
            raise NotMeasured(f"there is no {mkfs[0]}; install {'btrfs-progs' if self.kind == 'btrfs' else 'xfsprogs' if self.kind == 'xfs' else 'e2fsprogs'}")
        home, image = setting.work / name, setting.work / f"{name}.img"
        with loop_device(image, setting.template_bytes * 3 + setting.wal_bytes) as device:
            run([*mkfs, device])
            mount = ["mount", "-t", self.kind, "-o", self.MOUNT[self.kind], device, home]
            try:
                with mounted(mount, home):
                    yield home
            finally:
                home.rmdir()

    def used_bytes(self, home: Path) -> int | None:
        run(["sync", "-f", home])
        return shutil.disk_usage(home).used
