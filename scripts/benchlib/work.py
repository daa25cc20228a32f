"""What is measured. Each work has a fork of its own, of the same stopped cluster, on every system."""

import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

from .figures import median, percentile
from .host import NotMeasured, drop_caches, family, page_cache_bytes, read_in, shared_out_bytes
from .server import Server
from .disk import Setting
from .system import System

CLIENTS = 8
TOGETHER = 20


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    unit: str
    more_is_better: bool


@dataclass
class Run:
    """One work on one system in one round, and what came of it."""

    system: System
    setting: Setting
    child: str
    scale: int
    seconds: float
    first_seconds: float
    values: dict[str, float] = field(default_factory=dict)
    # Values that this system cannot have, with the reason.
    missing: dict[str, str] = field(default_factory=dict)
    # What the server said of itself, and what a daemon used.
    notes: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def fork(self, as_shipped: bool = False, warm: bool = True) -> Iterator[Server]:
        """A fork with its server running and its files in the kernel's cache."""
        with self.system.forked(self.child) as server:
            # What making the fork has left to be written is not to be written during the work.
            os.sync()
            if warm:
                read_in(server.data / "base")
            server.start(as_shipped)
            self.note(server)
            yield server

    def note(self, server: Server) -> None:
        self.notes["full_page_writes"] = server.psql("SHOW full_page_writes")

    def tps(self, server: Server, clients: int, seconds: float, *script: Any) -> float:
        """Transactions per second, and what a daemon used for each of them."""
        before = self.system.counters()
        rate, count = server.tps(clients, seconds, *script)
        after = self.system.counters()
        if before and count:
            used = {kind: (n - before["requests"].get(kind, 0)) / count for kind, n in after["requests"].items()}
            self.values["daemon_cpu_us"] = (after["cpu_seconds"] - before["cpu_seconds"]) * 1e6 / count
            self.values["daemon_resident_mb"] = after["resident_bytes"] / 1e6
            self.notes["requests_per_transaction"] = {kind: round(n, 4) for kind, n in used.items() if n > 0}
        return rate


@dataclass(frozen=True)
class Work:
    name: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Run], None]


# ------------------------------------------------------------------------------------------------ transactions


def tpcb(clients: int, as_shipped: bool = False) -> Callable[[Run], None]:
    def measure(run: Run) -> None:
        if as_shipped and not run.system.full_page_writes:
            raise NotMeasured("its settings are not those that anything is shipped with")
        with run.fork(as_shipped) as server:
            # The same state everywhere: pages written once, nothing left to write.
            server.tps(clients, run.seconds / 4)
            server.psql("CHECKPOINT")
            run.values["tps"] = run.tps(server, clients, run.seconds)

    return measure


def fresh(run: Run) -> None:
    """No warm-up by writes: what the first write to each file and page of a fork costs is in it."""
    with run.fork() as server:
        run.values["first_tps"] = run.tps(server, CLIENTS, run.first_seconds)
        run.values["later_tps"] = run.tps(server, CLIENTS, run.seconds)


def select(run: Run) -> None:
    with run.fork() as server:
        server.tps(CLIENTS, run.seconds / 4, "-S")
        run.values["tps"] = run.tps(server, CLIENTS, run.seconds, "-S")


def select_after_writes(run: Run) -> None:
    with run.fork() as server:
        server.tps(CLIENTS, run.seconds)
        run.values["tps"] = run.tps(server, CLIENTS, run.seconds, "-S")


# ------------------------------------------------------------------------------------------------ single statements


def bulk(run: Run) -> None:
    with run.fork() as server:
        server.psql("CREATE DATABASE bulk")
        server.psql("CHECKPOINT")
        scale = max(1, min(20, run.scale // 2))
        run.notes["bulk_scale"] = scale
        begin = time.monotonic()
        server.pgbench("-i", "-q", "-s", scale, database="bulk")
        run.values["seconds"] = time.monotonic() - begin
        run.values["checkpoint_seconds"] = server.timed_ms("CHECKPOINT") / 1000


def index(run: Run) -> None:
    with run.fork() as server:
        run.values["seconds"] = server.timed_ms("CREATE INDEX ON pgbench_accounts (abalance, aid)") / 1000


def scan(run: Run) -> None:
    statements = ("SET max_parallel_workers_per_gather = 0", "SELECT sum(abalance) FROM pgbench_accounts")
    with run.fork(warm=False) as server:
        try:
            drop_caches()
            run.values["cold_ms"] = server.timed_ms(*statements)
        except NotMeasured as reason:
            run.missing["cold_ms"] = str(reason)
            server.timed_ms(*statements)
        run.values["warm_ms"] = median([server.timed_ms(*statements) for _ in range(3)])


def vacuum(run: Run) -> None:
    with run.fork() as server:
        server.psql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 10 = 0")
        server.psql("CHECKPOINT")
        run.values["seconds"] = server.timed_ms("VACUUM pgbench_accounts") / 1000


def checkpoint(run: Run) -> None:
    with run.fork() as server:
        server.tps(CLIENTS, run.seconds / 4)
        with server.load(CLIENTS, run.seconds * 4 + 600, run.setting.work / "load") as load:
            time.sleep(max(2, run.seconds / 2))
            begin = time.time()
            run.values["checkpoint_ms"] = server.timed_ms("CHECKPOINT")
            end = time.time()
            time.sleep(1)
        latencies = load.latencies()
        run.values["p99_before_ms"] = percentile([ms for at, ms in latencies if at < begin], 99)
        run.values["p99_during_ms"] = percentile([ms for at, ms in latencies if begin <= at <= end], 99)


# ------------------------------------------------------------------------------------------------ forks


def fork_under_load(run: Run) -> None:
    """Forks of a cluster under TPC-B, and what that makes of the load's latency in the second around them."""
    system, parent, times = run.system, f"{run.child}-parent", 3
    if system.only_stopped:
        raise NotMeasured(system.only_stopped)
    spans: dict[str, list[tuple[float, float]]] = {"checkpoint": [], "never": []}
    with system.forked(parent) as server:
        os.sync()
        read_in(server.data / "base")
        server.start()
        run.note(server)
        made: list[str] = []
        try:
            with server.load(CLIENTS, run.seconds * 4 + 3600, run.setting.work / "load") as load:
                time.sleep(max(2, run.seconds / 2))
                for mode in spans:
                    forks = []
                    for n in range(times):
                        time.sleep(2.6)
                        child = f"{run.child}-{mode}-{n}"
                        begin = time.time()
                        try:
                            fork = system.fork_running(parent, child, mode == "checkpoint")
                        except NotMeasured as reason:
                            run.missing |= {f"fork_ms_{mode}": str(reason), f"p99_times_{mode}": str(reason)}
                            break
                        end = time.time()
                        if system.shares:
                            made.append(child)
                        else:  # there is no room for many copies
                            system.remove(child)
                        forks.append(fork)
                        spans[mode].append((max(begin, end - fork.fork_ms / 1000), end))
                    if forks:
                        run.values[f"fork_ms_{mode}"] = median([fork.fork_ms for fork in forks])
                        run.notes[f"forks_{mode}"] = [{"fork_ms": f.fork_ms, "checkpoint_ms": f.checkpoint_ms, "stall_ms": f.stall_ms} for f in forks]
                time.sleep(2.6)
        finally:
            for child in made:
                system.remove(child)
        latencies = load.latencies()
    every = [span for of_mode in spans.values() for span in of_mode]
    normal = percentile([ms for at, ms in latencies if not any(begin - 0.5 <= at <= end + 2 for begin, end in every)], 99)
    run.values["p99_normal_ms"] = normal
    for mode, of_mode in spans.items():
        around = [percentile([ms for at, ms in latencies if begin - 0.5 <= at <= end + 0.5], 99) for begin, end in of_mode]
        if around:
            run.values[f"p99_times_{mode}"] = median(around) / normal
            run.notes[f"p99_around_{mode}_ms"] = around


def first_query(run: Run) -> None:
    run.values["ms"] = run.system.first_query_ms(run.child, "SELECT count(*) FROM pgbench_branches")


def together(run: Run) -> None:
    """Twenty forks at once: all made, then all started, then all asked."""
    from concurrent.futures import ThreadPoolExecutor

    system = run.system
    system.room(TOGETHER)
    names = [f"{run.child}-{n}" for n in range(TOGETHER)]
    with contextlib.suppress(NotMeasured):
        drop_caches()
    cached, daemon = page_cache_bytes(), system.daemon_pid()
    daemon_before = shared_out_bytes(daemon) if daemon else 0

    def begin_work(server: Server) -> None:
        server.start()
        server.psql("SELECT sum(abalance) FROM pgbench_accounts WHERE aid <= 100000")

    try:
        with ThreadPoolExecutor(TOGETHER) as pool:
            begin = time.monotonic()
            servers = list(pool.map(system.fork, names))
            made = time.monotonic()
            list(pool.map(begin_work, servers))
            run.values["make_ms"] = (made - begin) * 1000
            run.values["answer_ms"] = (time.monotonic() - begin) * 1000
        processes = [pid for server in servers for pid in family(server.pid())]
        run.values["servers_mb"] = sum(map(shared_out_bytes, processes)) / 1e6
        run.values["page_cache_mb"] = (page_cache_bytes() - cached) / 1e6
        if daemon:
            run.values["daemon_mb"] = (shared_out_bytes(daemon) - daemon_before) / 1e6
    finally:
        for name in names:
            if name in system.servers:
                system.remove(name)


def pages(run: Run) -> None:
    """Space for single pages changed at random, by programs other than a server, so that there is no WAL in it."""
    if not run.system.shares:
        raise NotMeasured("a copy has pages of its own from the beginning")
    with run.system.forked(run.child) as server:
        file = max((path for path in (server.data / "base").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        blocks = file.stat().st_size // 8192
        changed = random.Random(1).sample(range(blocks), min(2000, blocks // 4))
        before = run.system.used_bytes(run.child)
        change(file, changed)
        run.values["bytes_per_page"] = (run.system.used_bytes(run.child) - before) / len(changed)
        run.notes["pages"] = len(changed)


def change(file: Path, blocks: list[int]) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        for block in blocks:
            page = bytearray(os.pread(descriptor, 8192, block * 8192))
            page[-8:] = b"changed!"
            os.pwrite(descriptor, page, block * 8192)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ the list of them

TPS = Metric("tps", "transactions", "/s", True)
DAEMON = (Metric("daemon_cpu_us", "the daemon's processor time per transaction", "µs", False), Metric("daemon_resident_mb", "the daemon's resident memory", "MB", False))


def less(key: str, title: str, unit: str) -> Metric:
    return Metric(key, title, unit, False)


WORKS = {
    work.name: work
    for work in (
        Work("tpcb-8", "TPC-B, 8 clients", (TPS, *DAEMON), tpcb(8)),
        Work("tpcb-8-shipped", "TPC-B, 8 clients, as shipped", (TPS, *DAEMON), tpcb(8, as_shipped=True)),
        Work("tpcb-1", "TPC-B, 1 client", (TPS, *DAEMON), tpcb(1)),
        Work("tpcb-32", "TPC-B, 32 clients", (TPS, *DAEMON), tpcb(32)),
        Work("fresh", "TPC-B, 8 clients, a fresh fork", (Metric("first_tps", "at first", "/s", True), Metric("later_tps", "afterwards", "/s", True)), fresh),
        Work("select", "select-only, 8 clients", (TPS,), select),
        Work("select-after-writes", "select-only right after writes", (TPS,), select_after_writes),
        Work("bulk", "bulk load (pgbench -i)", (less("seconds", "load", "s"), less("checkpoint_seconds", "the checkpoint after it", "s")), bulk),
        Work("index", "CREATE INDEX", (less("seconds", "time", "s"),), index),
        Work("scan", "sequential scan", (less("cold_ms", "cold", "ms"), less("warm_ms", "warm", "ms")), scan),
        Work("vacuum", "VACUUM", (less("seconds", "time", "s"),), vacuum),
        Work(
            "checkpoint",
            "CHECKPOINT under TPC-B",
            (less("checkpoint_ms", "time", "ms"), less("p99_before_ms", "p99 of the load before it", "ms"), less("p99_during_ms", "p99 of the load meanwhile", "ms")),
            checkpoint,
        ),
        Work(
            "fork",
            "fork under TPC-B",
            (
                less("fork_ms_checkpoint", "fork, after a checkpoint", "ms"),
                less("fork_ms_never", "fork, without a checkpoint", "ms"),
                less("p99_normal_ms", "p99 of the load normally", "ms"),
                less("p99_times_checkpoint", "p99 around the fork / normally, with a checkpoint", "x"),
                less("p99_times_never", "p99 around the fork / normally, without a checkpoint", "x"),
            ),
            fork_under_load,
        ),
        Work("first-query", "from the fork to the first answer", (less("ms", "time", "ms"),), first_query),
        Work(
            "together",
            f"{TOGETHER} forks at once",
            (
                less("make_ms", "all made", "ms"),
                less("answer_ms", "all made, started and asked", "ms"),
                less("servers_mb", "memory of the servers", "MB"),
                less("page_cache_mb", "page cache", "MB"),
                less("daemon_mb", "memory of the daemon", "MB"),
            ),
            together,
        ),
        Work("pages", "space per random page of 8192 bytes changed", (less("bytes_per_page", "space", "B"),), pages),
    )
}
