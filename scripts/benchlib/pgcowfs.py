"""pgcowfs through its command line, as everybody uses it."""

import json
import os
import time
from pathlib import Path
from typing import Any

from .host import BenchError, NotMeasured, clean_env, cpu_seconds, resident_bytes, run
from .server import Postgres, Server
from .system import MAIN, Forked, System

# Settings that must differ between two servers, or that pgcowfs sets for every fork, and that say nothing about speed.
EXPECTED_DIFFERENCES = {
    "port", "unix_socket_directories", "listen_addresses", "data_directory", "config_file", "hba_file", "ident_file",
    "external_pid_file", "cluster_name", "archive_mode", "archive_command", "max_logical_replication_workers",
    "log_destination", "primary_conninfo", "primary_slot_name",
}


class Store:
    def __init__(self, program: Path, directory: Path):
        self.program, self.dir = program, directory

    def run(self, *args: Any, check: bool = True) -> str:
        return run([self.program, "--store", self.dir, *args], check=check, env=clean_env())

    def json(self, *args: Any) -> dict[str, Any]:
        return json.loads(self.run(*args, "--json"))


class ForkServer(Server):
    """The server of a fork, started by pgcowfs."""

    def __init__(self, postgres: Postgres, store: Store, name: str):
        super().__init__(postgres)
        self.store, self.name = store, name
        self.data = store.dir / "mnt" / name

    def start(self, as_shipped: bool = False) -> None:
        self.running = True
        self.reach(self.store.json("start", self.name, *([] if as_shipped else ["--full-page-writes", "on"])))

    def reach(self, started: dict[str, Any]) -> None:
        self.running = True
        self.at = ["-h", started["socket_dir"], "-p", started["port"], "-U", "postgres"]
        self.postmaster = started["pid"]

    def stop(self) -> None:
        if self.running:
            self.store.run("stop", self.name, "--mode", "fast", "--timeout", "600")
            self.running = False

    def pid(self) -> int:
        return self.postmaster


class Pgcowfs(System):
    about = "fork = pgcowfs fork"

    def prepare(self) -> None:
        if not self.setting.program:
            raise NotMeasured("there is no pgcowfs; build it, or name it with --pgcowfs")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise NotMeasured("there is no /dev/fuse that this user may open (modprobe fuse)")
        self.store = Store(self.setting.program, self.home / "store")
        # Away from the default range: other stores of this machine may be in use.
        self.store.run("init", "--port-range", "7000-7999")
        self.store.run("create", MAIN, "--from", self.setting.template, "--listen", "")

    def end(self) -> None:
        # There is no store if there was no program.
        if store := getattr(self, "store", None):
            store.run("umount", "--force", check=False)
            if os.path.ismount(store.dir / "mnt"):
                raise BenchError(f"{store.dir}/mnt is still mounted; end what uses it, then umount it")

    def make(self, child: str) -> Server:
        self.store.run("fork", MAIN, child, "--listen", "")
        return ForkServer(self.setting.postgres, self.store, child)

    def fork_running(self, parent: str, child: str, checkpoint: bool) -> Forked:
        report = self.store.json("fork", parent, child, "--listen", "", "--checkpoint", "always" if checkpoint else "never")
        self.servers[child] = server = ForkServer(self.setting.postgres, self.store, child)
        return Forked(server, report["fork_ms"], report["checkpoint_ms"], report["stall_ms"])

    def first_query_ms(self, child: str, query: str) -> float:
        """One command makes and starts the fork."""
        parent = f"{child}-parent"
        with self.forked(parent) as server:
            server.start()
            server.psql("CHECKPOINT")
            self.servers[child] = fork = ForkServer(self.setting.postgres, self.store, child)
            begin = time.monotonic()
            try:
                fork.reach(self.store.json("fork", parent, child, "--listen", "", "--checkpoint", "never", "--start"))
                fork.psql(query)
                return (time.monotonic() - begin) * 1000
            finally:
                self.remove(child)

    def delete(self, child: str) -> None:
        self.store.run("rm", "--force", child)
        # Until its space is free again; the next one measured would share the machine with that.
        self.store.run("gc", "--wait")

    def used_bytes(self, child: str) -> int:
        return self.store.json("status")["store_bytes"]

    def counters(self) -> dict[str, Any]:
        status = self.store.json("status")
        pid = status["pid"]
        return {"cpu_seconds": cpu_seconds(pid), "resident_bytes": resident_bytes(pid), "requests": status["requests"]}

    def daemon_pid(self) -> int | None:
        return self.store.json("status")["pid"]
