"""A PostgreSQL server on a data directory, and the programs that run on it."""

import contextlib
import os
import pwd
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from .host import BenchError, clean_env, run

# What all servers run with: the template's postgresql.conf, which every fork inherits.
SETTINGS = """
# what all systems run with
shared_buffers = 128MB
max_wal_size = 4GB
checkpoint_timeout = 15min
max_connections = 100
autovacuum = off
logging_collector = off
"""


class Postgres:
    """PostgreSQL's programs and the user they run as."""

    def __init__(self, directory: Path):
        self.bin = directory
        for program in ("postgres", "initdb", "pg_ctl", "psql", "pgbench"):
            if not (directory / program).exists():
                raise BenchError(f"no {program} in {directory}: install PostgreSQL, or say where it is with --pg-bin")
        self.user = None
        if os.geteuid() == 0:
            try:
                self.user = pwd.getpwnam("postgres")
            except KeyError:
                raise BenchError("there is no user postgres, who runs the servers when this is run as root; make one") from None
        self.version = run([directory / "postgres", "--version"]).split()[2]

    def as_owner(self) -> dict[str, Any]:
        """The arguments of subprocess that make a command run as the owner of clusters."""
        if not self.user:
            return {"env": clean_env(), "cwd": "/"}
        env = {**clean_env(), "HOME": "/tmp"}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": [], "env": env, "cwd": "/"}

    def owned(self, program: str, *args: Any) -> str:
        return run([self.bin / program, *args], **self.as_owner())

    def give(self, path: Path) -> Path:
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path


@dataclass
class Load:
    """A pgbench in the background that logs every transaction."""

    process: subprocess.Popen
    prefix: Path

    def latencies(self) -> list[tuple[float, float]]:
        """(end of the transaction, its latency in ms), in the order of their ends."""
        found = []
        for file in sorted(self.prefix.parent.glob(self.prefix.name + "*")):
            # The last line of a log may be half written.
            for line in file.read_text(encoding="ascii").splitlines(keepends=True):
                fields = line.split()
                if line.endswith("\n") and len(fields) >= 6:
                    found.append((int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1000))
        if not found:
            raise BenchError(f"pgbench logged no transaction in {self.prefix}*: the load did not run")
        return sorted(found)


class Server:
    """A server that runs, or can be started. What differs between systems is in `start` and `stop`."""

    data: Path

    def __init__(self, postgres: Postgres):
        self.postgres = postgres
        self.at: list[Any] = []
        self.running = False

    def start(self, as_shipped: bool = False) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def psql(self, *statements: str, database: str = "postgres") -> str:
        words = [word for statement in statements for word in ("-c", statement)]
        return self.postgres.owned("psql", *self.at, "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, *words).strip()

    def timed_ms(self, *statements: str, database: str = "postgres") -> float:
        """Milliseconds of the last statement, as psql measures them."""
        *before, last = statements
        times = [line.split()[1] for line in self.psql(*before, r"\timing on", last, database=database).splitlines() if line.startswith("Time:")]
        return float(times[-1])

    def pgbench(self, *args: Any, database: str = "postgres") -> str:
        return self.postgres.owned("pgbench", *self.at, *args, database)

    def tps(self, clients: int, seconds: float, *script: Any) -> tuple[float, int]:
        """Transactions per second, and how many there were."""
        words = ["-n", "-c", clients, "-j", min(clients, os.cpu_count() or 1), "-T", max(1, round(seconds)), *script]
        output = self.pgbench(*words)
        rates = [float(line.split()[2]) for line in output.splitlines() if line.startswith("tps =")]
        counts = [int(line.split(":")[1].split("/")[0]) for line in output.splitlines() if line.startswith("number of transactions actually processed")]
        if not rates or not counts:
            raise BenchError(f"pgbench ended no transaction in {seconds:g} s: the machine or the system stood still; take more --seconds")
        return rates[0], counts[0]

    def settings(self) -> dict[str, str]:
        rows = self.psql("SELECT name || '=' || setting FROM pg_settings").splitlines()
        return dict(row.split("=", 1) for row in rows if "=" in row)

    @contextlib.contextmanager
    def load(self, clients: int, seconds: float, logs: Path) -> Iterator[Load]:
        """TPC-B in the background, for at most `seconds`; ended with the context."""
        logs.mkdir(exist_ok=True)
        self.postgres.give(logs)
        prefix = logs / f"load-{time.monotonic_ns()}"
        words = ["-n", "-c", clients, "-j", min(clients, os.cpu_count() or 1), "-T", round(seconds), "-l", "--log-prefix", prefix]
        command = [str(word) for word in [self.postgres.bin / "pgbench", *self.at, *words, "postgres"]]
        with open(f"{prefix}.out", "w", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **self.postgres.as_owner())
        try:
            yield Load(process, prefix)
        finally:
            # It ends at once, and what it has not written to its log yet (4 KiB at most) is lost.
            process.terminate()
            process.wait()


class PlainServer(Server):
    """A server on a directory, started with pg_ctl."""

    def __init__(self, postgres: Postgres, data: Path, run_dir: Path, port: int, full_page_writes: bool = True):
        super().__init__(postgres)
        self.data, self.run_dir, self.port, self.full_page_writes = data, run_dir, port, full_page_writes

    def start(self, as_shipped: bool = False, more_options: str = "") -> None:
        options = f"-c listen_addresses= -p {self.port} -k '{self.run_dir}' {more_options}"
        if not self.full_page_writes:
            options += " -c full_page_writes=off"
        elif not as_shipped:
            options += " -c full_page_writes=on"
        self.running = True
        log = self.run_dir / f"log-{self.port}"
        self.postgres.owned("pg_ctl", "start", "-w", "-t", "600", "-s", "-D", self.data, "-l", log, "-o", options)
        self.at = ["-h", self.run_dir, "-p", self.port, "-U", "postgres"]

    def stop(self) -> None:
        if self.running:
            self.postgres.owned("pg_ctl", "stop", "-w", "-t", "600", "-s", "-m", "fast", "-D", self.data)
            self.running = False

    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text(encoding="ascii").split()[0])


def make_template(postgres: Postgres, data: Path, run_dir: Path, scale: int) -> int:
    """The cluster that every system gets a copy of, stopped; the size of its database in bytes."""
    postgres.owned("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")
    with open(data / "postgresql.conf", "a", encoding="utf-8") as conf:
        conf.write(SETTINGS)
    server = PlainServer(postgres, data, run_dir, 5969)
    try:
        # Little WAL: what is kept of it would be copied with every cluster.
        server.start(more_options="-c max_wal_size=256MB")
        server.pgbench("-i", "-q", "-s", scale)
        server.psql("CHECKPOINT")
        return int(server.psql("SELECT pg_database_size('postgres')"))
    finally:
        server.stop()
