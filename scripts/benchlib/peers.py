"""The ways to fork a cluster that are there without pgcowfs."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from .backup import backup
from .disk import LoopDisk, WorkDisk
from .host import NotMeasured, disk_bytes, free_bytes, is_root, mounted, run
from .server import Server
from .system import MAIN, Forked, System


class Copies(System):
    """Every fork is a copy of the directory: of its pages, or on xfs of references to them."""

    checkpoints = True

    def __init__(self, name: str, disk: WorkDisk | LoopDisk, reflink: str = "never", **more: Any):
        super().__init__(name, disk, **more)
        self.reflink, self.shares = reflink, reflink != "never"
        self.about = f"fork = cp -a --reflink={reflink}"

    def prepare(self) -> None:
        self.main = self.home / MAIN
        if isinstance(self.disk, WorkDisk):
            # Nobody writes to it, so there need not be two of it on the same disk.
            self.main = self.setting.template
        else:
            run(["cp", "-a", self.setting.template, self.main])

    def copy(self, sources: list[Path], directory: Path) -> None:
        """Copies files and directories into a directory."""
        run(["cp", "-a", f"--reflink={self.reflink}", "-t", directory, *sources])

    def room(self, forks: int) -> None:
        need = 0 if self.shares else forks * (self.setting.template_bytes + 100_000_000)
        if (free := free_bytes(self.home)) < need + 1_000_000_000:
            raise NotMeasured(f"{forks} copies take {need / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free")

    def make(self, child: str) -> Server:
        self.room(1)
        run(["cp", "-a", f"--reflink={self.reflink}", self.main, self.home / child])
        return self.plain(self.home / child)

    def fork_running(self, parent: str, child: str, checkpoint: bool) -> Forked:
        """The directory of a running server is not copied in one instant; PostgreSQL's own backup makes up for it."""
        if not checkpoint:
            raise NotMeasured("a copy of a running cluster begins with a checkpoint")
        self.room(1)
        self.servers[child] = server = self.plain(self.home / child)
        took = backup(self.servers[parent], self.home / parent, self.home / child, self.copy)
        return Forked(server, took)

    def first_query_ms(self, child: str, query: str) -> float:
        if self.shares:
            return super().first_query_ms(child, query)
        # Of a whole copy it is the start that is compared, of one that was made and stopped before.
        with self.forked(child) as server:
            run(["sync", "-f", self.home])
            begin = time.monotonic()
            server.start(as_shipped=True)
            server.psql(query)
            return (time.monotonic() - begin) * 1000

    def delete(self, child: str) -> None:
        shutil.rmtree(self.home / child, ignore_errors=True)


class Subvolumes(System):
    about = "fork = btrfs subvolume snapshot"

    def prepare(self) -> None:
        main = self.home / MAIN
        run(["btrfs", "subvolume", "create", main])
        run(["cp", "-a", "--reflink=never", f"{self.setting.template}/.", main])
        run(["sync", "-f", self.home])

    def make(self, child: str) -> Server:
        run(["btrfs", "subvolume", "snapshot", self.home / MAIN, self.home / child])
        return self.plain(self.home / child)

    def fork_running(self, parent: str, child: str, checkpoint: bool) -> Forked:
        checkpoint_ms = None
        if checkpoint:
            checkpoint_ms = self.servers[parent].timed_ms("CHECKPOINT")
        self.servers[child] = server = self.plain(self.home / child)
        begin = time.monotonic()
        run(["btrfs", "subvolume", "snapshot", self.home / parent, self.home / child])
        took = (time.monotonic() - begin) * 1000
        (self.home / child / "postmaster.pid").unlink(missing_ok=True)
        return Forked(server, took, checkpoint_ms)

    def delete(self, child: str) -> None:
        if (self.home / child).exists():
            run(["btrfs", "subvolume", "delete", self.home / child])
            # Until its blocks are free again; the next one measured would share the machine with that. The first sync
            # wakes the thread that the second one waits for, which else sleeps for half a minute.
            run(["btrfs", "filesystem", "sync", self.home])
            run(["btrfs", "subvolume", "sync", self.home])


class Overlay(System):
    """The kernel's OverlayFS, or fuse-overlayfs; the lower directory is the stopped main."""

    only_stopped = "a directory that somebody writes to cannot be a lower one: only stopped clusters can be forked"

    def __init__(self, name: str, disk: WorkDisk | LoopDisk, fuse: bool = False):
        super().__init__(name, disk)
        self.fuse = fuse
        self.about = f"fork = {'fuse-overlayfs' if fuse else 'mount -t overlay'}, the parent as lower directory"
        self.mounts: dict[str, contextlib.ExitStack] = {}

    def prepare(self) -> None:
        if not is_root():
            raise NotMeasured("mounting it so that another user can run a server on it needs root")
        if self.fuse and not shutil.which("fuse-overlayfs"):
            raise NotMeasured("there is no fuse-overlayfs; install the package of that name")
        if not self.fuse and "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            raise NotMeasured("this kernel has no overlay file system (modprobe overlay)")

    def make(self, child: str) -> Server:
        home = self.home / child
        home.mkdir(mode=0o755)
        upper, inner, target = home / "upper", home / "work", home / "data"
        upper.mkdir(mode=0o700)
        self.setting.postgres.give(upper)
        inner.mkdir()
        options = f"lowerdir={self.setting.template},upperdir={upper},workdir={inner}"
        command = ["fuse-overlayfs", "-o", options + ",allow_other", target] if self.fuse else ["mount", "-t", "overlay", "overlay", "-o", options, target]
        self.mounts[child] = contextlib.ExitStack()
        self.mounts[child].enter_context(mounted(command, target))
        return self.plain(target)

    def first_query_ms(self, child: str, query: str) -> float:
        """Of the stopped parent, for there is no other way."""
        begin = time.monotonic()
        with self.forked(child) as server:
            server.start(as_shipped=True)
            server.psql(query)
            return (time.monotonic() - begin) * 1000

    def used_bytes(self, child: str) -> int:
        run(["sync", "-f", self.home])
        return disk_bytes(self.home / child / "upper")

    def delete(self, child: str) -> None:
        if mount := self.mounts.pop(child, None):
            mount.close()
        shutil.rmtree(self.home / child, ignore_errors=True)
