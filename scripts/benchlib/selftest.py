"""The arithmetic of the report on known figures: scripts/bench --self-test."""

import math

from . import report, rounds
from .figures import TARGETS, Samples, Spread, Target, percentile
from .systems import catalogue
from .work import WORKS


def sample(system: str, n: int, tps: float, work: str = "tpcb-8", key: str = "tps") -> dict:
    return {"system": system, "work": work, "round": n, "values": {key: tps}, "notes": {}}


def percentiles() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert percentile(hundred, 99) == 99
    assert percentile(hundred, 50) == 50
    assert percentile(hundred, 100) == 100
    assert percentile([7.0], 99) == 7
    assert percentile([1.0, 2.0], 50) == 1
    assert math.isnan(percentile([], 99))


def spreads() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2, 1, 3, 3)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1, 2, 2)
    assert Spread.of([math.nan, 4.0]) == Spread(4, 4, 4, 1)
    assert Spread.of([]) is None


def ratios() -> None:
    # A slow second round must not count against anybody: the median of 0.5, 0.9, 0.8, not 90 / 100.
    samples = Samples([sample("ext4", 0, 100), sample("ext4", 1, 10), sample("ext4", 2, 200), sample("a", 0, 50), sample("a", 1, 9), sample("a", 2, 160)])
    assert samples.ratio("a", "ext4", "tpcb-8", "tps", True) == Spread(0.8, 0.5, 0.9, 3)
    # Half the time is twice as good.
    times = Samples([sample("ext4", 0, 10, "index", "seconds"), sample("a", 0, 5, "index", "seconds")])
    assert times.ratio("a", "ext4", "index", "seconds", False) == Spread(2, 2, 2, 1)
    # Rounds that only one of them has are no pairs.
    alone = Samples([sample("ext4", 0, 100), sample("a", 1, 50)])
    assert alone.ratio("a", "ext4", "tpcb-8", "tps", True) is None


def judgements() -> None:
    at_least = Target("t", "a", "tpcb-8", "tps", "ext4", 0.9)
    assert at_least.reached(Spread(0.9, 0.5, 1, 3)) and not at_least.reached(Spread(0.89, 0.5, 1, 3))
    at_most = Target("t", "a", "fork", "fork_ms_never", None, 20, "ms")
    assert at_most.reached(Spread(20, 1, 90, 3)) and not at_most.reached(Spread(20.1, 1, 90, 3))
    for target in TARGETS:
        assert {target.system, target.against or "ext4"} <= set(catalogue()), target
        report.metric(target.work, target.key)


def rotation() -> None:
    names: list = ["a", "b", "c"]
    assert [rounds.rotated(names, n)[0] for n in range(4)] == ["a", "b", "c", "a"]
    assert rounds.rotated([], 3) == []


def tables() -> None:
    assert report.number(2937.4) == "2937" and report.number(14.53) == "14.5" and report.number(0.9123) == "0.912" and report.number(0) == "0"
    assert report.with_ends(Spread(2, 1, 3, 3)) == "2.00 (1.00 - 3.00)" and report.with_ends(None) == "-"
    assert report.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |", ""]
    machine = {"commit": "0123456789abcdef", "changed_since_commit": False, "date": "d", "cpu": "c", "cores": 2, "memory_gb": 1, "kernel": "6.1"}
    machine |= {"disk_model": None, "work_file_system": "ext4", "work_mount_options": "rw", "work_journal": False, "load_at_start": 0.0}
    result = {
        "machine": machine,
        "options": {"scale": 1, "rounds": 1, "seconds": 1, "one_at_a_time": False},
        "settings": [],
        "size_bytes": 1,
        "postgres": "15",
        "pgcowfs": "p",
        "systems": {"ext4": {}, "pgcowfs": {}},
        "setting_differences": {"pgcowfs": {"fsync": ["on", "off"]}},
        "not_measured": [{"system": "btrfs", "work": None, "key": None, "reason": "loop devices need root"}],
        "samples": [sample("ext4", 0, 1000), sample("pgcowfs", 0, 800)],
    }
    text = report.markdown(result)
    for line in (
        "| TPC-B, 8 clients, same settings | pgcowfs / ext4 | >= 0.90 | 0.80 | **not met** |",
        "| TPC-B, 8 clients | pgcowfs-loop / btrfs | >= 2.00 | - | not measured: btrfs: loop devices need root |",
        "| VACUUM | pgcowfs / ext4 | >= 0.90 | - | not measured: not asked for |",
        "| pgcowfs | 800 | 0.80 |",
        "| pgcowfs | fsync | on | off |",
        "| btrfs | everything |  | loop devices need root |",
    ):
        assert line in text.splitlines(), f"{line}\nis not in\n{text}"


def names() -> None:
    for name, work in WORKS.items():
        assert name == work.name and work.metrics, name
        assert len({metric.key for metric in work.metrics}) == len(work.metrics), name


def run_all() -> int:
    for test in (percentiles, spreads, ratios, judgements, rotation, tables, names):
        test()
        print(f"bench --self-test: {test.__name__}: ok")
    return 0
