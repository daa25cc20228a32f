"""What every system does: hold a copy of the same stopped cluster, named `main`, which is never started, and fork it.

A fork is a directory that a server can be started on.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from .disk import LoopDisk, Setting, WorkDisk
from .host import disk_bytes
from .server import PlainServer, Server

MAIN = "main"


@dataclass
class Forked:
    """A fork of a running cluster: its server, which does not run yet, and what the fork took."""

    server: Server
    fork_ms: float
    checkpoint_ms: float | None = None
    stall_ms: float | None = None


class System:
    """One way to fork a cluster. `open` makes it ready, and takes everything away again at the end."""

    about = ""
    # Forks share pages, so that many of them fit where one does.
    shares = True
    # Why a cluster that runs cannot be forked, if it cannot.
    only_stopped = ""
    # A fork of a running cluster begins with a checkpoint in any case.
    checkpoints = False

    def __init__(self, name: str, disk: WorkDisk | LoopDisk, full_page_writes: bool = True):
        self.name, self.disk, self.full_page_writes = name, disk, full_page_writes
        self.servers: dict[str, Server] = {}

    @contextlib.contextmanager
    def open(self, setting: Setting) -> Iterator[None]:
        self.setting = setting
        with self.disk.open(setting, self.name) as self.home:
            self.home.chmod(0o755)
            try:
                self.prepare()
                yield
            finally:
                try:
                    self.clear()
                finally:
                    self.end()

    def clear(self) -> None:
        """Stops and removes whatever a work that failed has left behind."""
        for child in list(self.servers):
            self.remove(child)

    def end(self) -> None:
        """Ends what the system itself runs."""

    def room(self, forks: int) -> None:
        """Whether there is room for so many forks."""

    def remove(self, child: str) -> None:
        server = self.servers.pop(child)
        try:
            server.stop()
        finally:
            self.delete(child)

    @contextlib.contextmanager
    def forked(self, child: str) -> Iterator[Server]:
        """A fork of the stopped main, for as long as the context lasts."""
        server = self.fork(child)
        try:
            yield server
        finally:
            self.remove(child)

    def fork(self, child: str) -> Server:
        self.servers[child] = server = self.make(child)
        return server

    def fork_running(self, parent: str, child: str, checkpoint: bool) -> Forked:
        """A fork of a running cluster; the checkpoint before it is not part of its time."""
        raise NotImplementedError

    def first_query_ms(self, child: str, query: str) -> float:
        """From the fork of an idle cluster with nothing unwritten to the first answer."""
        parent = f"{child}-parent"
        with self.forked(parent) as server:
            server.start()
            server.psql("CHECKPOINT")
            begin = time.monotonic()
            forked = self.fork_running(parent, child, checkpoint=self.checkpoints)
            try:
                forked.server.start(as_shipped=True)
                forked.server.psql(query)
                return (time.monotonic() - begin) * 1000
            finally:
                self.remove(child)

    def facts(self) -> dict[str, Any]:
        return {"about": self.about, "full_page_writes": "as the work says" if self.full_page_writes else "off", **self.disk.facts()}

    def used_bytes(self, child: str) -> int:
        used = self.disk.used_bytes(self.home)
        return disk_bytes(self.home / child) if used is None else used

    def counters(self) -> dict[str, Any]:
        """What a daemon of the system has used until now; empty without one."""
        return {}

    def daemon_pid(self) -> int | None:
        return None

    # What differs.
    def prepare(self) -> None:
        raise NotImplementedError

    def make(self, child: str) -> Server:
        raise NotImplementedError

    def delete(self, child: str) -> None:
        raise NotImplementedError

    def plain(self, data: Path) -> PlainServer:
        return PlainServer(self.setting.postgres, data, self.setting.run_dir, next(self.setting.ports), self.full_page_writes)
