"""The arithmetic: medians, percentiles, ratios of the same round, targets."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, Iterable


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Spread:
    """The middle of several figures and their ends."""

    middle: float
    least: float
    most: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> "Spread | None":
        known = [value for value in values if not math.isnan(value)]
        return Spread(median(known), min(known), max(known), len(known)) if known else None


class Samples:
    """All samples of a run: one per system, work and round."""

    def __init__(self, samples: list[dict[str, Any]]):
        self.values: dict[tuple[str, str, str], dict[int, float]] = {}
        for sample in samples:
            for key, value in sample["values"].items():
                self.values.setdefault((sample["system"], sample["work"], key), {})[sample["round"]] = value

    def spread(self, system: str, work: str, key: str) -> Spread | None:
        return Spread.of(self.values.get((system, work, key), {}).values())

    def ratio(self, system: str, against: str, work: str, key: str, more_is_better: bool) -> Spread | None:
        """How many times as good a system is as another, from the figures of the same rounds: above 1 is better."""
        ours, theirs = self.values.get((system, work, key), {}), self.values.get((against, work, key), {})
        pairs = [(ours[n], theirs[n]) if more_is_better else (theirs[n], ours[n]) for n in sorted(ours.keys() & theirs.keys())]
        return Spread.of(a / b for a, b in pairs if b)


@dataclass(frozen=True)
class Target:
    """What pgcowfs is to reach: at least so many times as good as another system, or at most so much in itself."""

    title: str
    system: str
    work: str
    key: str
    against: str | None
    bound: float
    unit: str = "x"

    def reached(self, spread: Spread) -> bool:
        """Judged by the middle of the figures."""
        return spread.middle >= self.bound if self.against else spread.middle <= self.bound


def against_ext4(title: str, work: str, key: str, bound: float) -> Target:
    return Target(title, "pgcowfs", work, key, "ext4", bound)


TARGETS = (
    against_ext4("TPC-B, 8 clients, same settings", "tpcb-8", "tps", 0.90),
    against_ext4("TPC-B, 8 clients, as shipped", "tpcb-8-shipped", "tps", 1.00),
    against_ext4("TPC-B, 1 client", "tpcb-1", "tps", 0.90),
    # What has a loop device below it is compared with a store on a loop device.
    Target("TPC-B, 8 clients", "pgcowfs-loop", "tpcb-8", "tps", "btrfs", 2.0),
    Target("TPC-B, 8 clients", "pgcowfs-loop", "tpcb-8", "tps", "xfs", 1.4),
    Target("TPC-B, 8 clients, a fresh fork at first", "pgcowfs", "fresh", "first_tps", "overlayfs", 1.4),
    Target("TPC-B, 8 clients, a fresh fork afterwards", "pgcowfs", "fresh", "later_tps", "overlayfs", 0.90),
    against_ext4("select-only", "select", "tps", 0.98),
    against_ext4("select-only right after writes", "select-after-writes", "tps", 0.85),
    against_ext4("sequential scan, warm", "scan", "warm_ms", 0.98),
    against_ext4("sequential scan, cold", "scan", "cold_ms", 0.90),
    against_ext4("bulk load", "bulk", "seconds", 0.90),
    against_ext4("CREATE INDEX", "index", "seconds", 0.90),
    against_ext4("VACUUM", "vacuum", "seconds", 0.90),
    Target("fork under load, after a checkpoint", "pgcowfs", "fork", "fork_ms_checkpoint", None, 20, "ms"),
    Target("fork under load, without a checkpoint", "pgcowfs", "fork", "fork_ms_never", None, 20, "ms"),
    Target("p99 around a fork / normally, with a checkpoint", "pgcowfs", "fork", "p99_times_checkpoint", None, 2.0),
    Target("p99 around a fork / normally, without one", "pgcowfs", "fork", "p99_times_never", None, 2.0),
)
