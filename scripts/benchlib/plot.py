"""The drawings: `python -m benchlib.plot OUT` draws what OUT/bench.json has, as SVG and PNG.

    tpcb     transactions per second by number of clients
    ratios   every work on every system, compared with the reference in the same round
    forks    time of a fork under load, and what it does to the load's latency
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .figures import TARGETS, Samples, Spread  # noqa: E402
from .systems import REFERENCE  # noqa: E402
from .work import WORKS, Metric  # noqa: E402

# Every system has its colour in all drawings: the reference grey, what is like it in shades of it, pgcowfs in blue.
COLOURS = {
    "ext4": "#7f7f7f", "ext4-loop": "#a9a9a9", "ext4-nofpw": "#cfcfcf", "btrfs": "#d62728", "xfs": "#ff9f4a",
    "overlayfs": "#2ca02c", "fuse-overlayfs": "#98df8a", "pgcowfs": "#1f4e9c", "pgcowfs-loop": "#6fa8ff",
}
# The works of the drawing of ratios, and the figure of each.
COMPARED = [
    ("tpcb-1", "tps"), ("tpcb-8", "tps"), ("tpcb-8-shipped", "tps"), ("tpcb-32", "tps"), ("fresh", "first_tps"), ("fresh", "later_tps"),
    ("select", "tps"), ("select-after-writes", "tps"), ("bulk", "seconds"), ("index", "seconds"), ("scan", "cold_ms"), ("scan", "warm_ms"),
    ("vacuum", "seconds"), ("checkpoint", "checkpoint_ms"),
]


def ends(spreads: list[Spread]) -> list[list[float]]:
    """The distances from the middle to both ends, as matplotlib wants them."""
    return [[s.middle - s.least for s in spreads], [s.most - s.middle for s in spreads]]


def bars(axes: Any, names: list[str], groups: list[str], of: dict[tuple[str, str], Spread | None]) -> None:
    """A group of bars for each of `groups`, in it one per system, with their ends."""
    width = 0.85 / max(1, len(names))
    for position, name in enumerate(names):
        places = [n for n, group in enumerate(groups) if of.get((name, group))]
        spreads = [of[(name, groups[n])] for n in places]
        if spreads:
            at = [n + (position - (len(names) - 1) / 2) * width for n in places]
            axes.bar(at, [s.middle for s in spreads], width * 0.92, yerr=ends(spreads), color=COLOURS[name], label=name, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def legend(figure: Any, names: list[str]) -> None:
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    figure.legend(handles, names, fontsize=8, frameon=False, loc="outside lower center", ncols=len(names))


def tpcb(samples: Samples, names: list[str]) -> Any:
    groups = {"1 client": "tpcb-1", "8 clients": "tpcb-8", "32 clients": "tpcb-32", "8 clients, as shipped": "tpcb-8-shipped"}
    of = {(name, group): samples.spread(name, work, "tps") for name in names for group, work in groups.items()}
    measured = [group for group in groups if any(of[(name, group)] for name in names)]
    if not measured:
        return None
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    bars(axes, names, measured, of)
    axes.set_ylabel("transactions per second")
    axes.set_title("TPC-B on a fork: medians, and from the least to the greatest", fontsize=10, loc="left")
    legend(figure, names)
    return figure


def ratios(samples: Samples, names: list[str]) -> Any:
    rows = [(work, key, metric(work, key)) for work, key in COMPARED]
    of = {(name, work, key): samples.ratio(name, REFERENCE, work, key, about.more_is_better) for name in names for work, key, about in rows}
    rows = [row for row in rows if any(of[(name, row[0], row[1])] for name in names if name != REFERENCE)]
    others = [name for name in names if name != REFERENCE]
    if not rows or not others:
        return None
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(rows) + 1.4), layout="constrained")
    bounds = {(target.work, target.key): target.bound for target in TARGETS if target.against == REFERENCE}
    for position, name in enumerate(others):
        points = [(n + 0.6 * (position / max(1, len(others) - 1) - 0.5), of[(name, work, key)]) for n, (work, key, _) in enumerate(rows)]
        points = [(y, spread) for y, spread in points if spread]
        spreads = [spread for _, spread in points]
        if spreads:
            style = {"fmt": "D" if name.startswith("pgcowfs") else "o", "markersize": 6 if name.startswith("pgcowfs") else 4.5}
            axes.errorbar([s.middle for s in spreads], [y for y, _ in points], xerr=ends(spreads), color=COLOURS[name], label=name, elinewidth=0.8, **style)
    for n, (work, key, _) in enumerate(rows):
        if n % 2:
            axes.axhspan(n - 0.5, n + 0.5, color="#f4f4f4", zorder=0)
        if bound := bounds.get((work, key)):
            axes.plot([bound, bound], [n - 0.45, n + 0.45], color="black", linewidth=1.2, label="target of pgcowfs" if n == 0 else None)
    axes.axvline(1, color=COLOURS[REFERENCE], linewidth=1)
    axes.set_xscale("log")
    # What is off by more than twenty times would leave no room for the others.
    low, high = max(0.05, axes.get_xlim()[0]), min(20, axes.get_xlim()[1])
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), [title(work, about) for work, _, about in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"times as good as {REFERENCE} in the same round (more is better)", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper center", ncols=5)
    return figure


def bound_of(key: str) -> float:
    return next(target.bound for target in TARGETS if target.key == key)


def forks(samples: Samples, names: list[str]) -> Any:
    modes = {"after a checkpoint": "checkpoint", "without one": "never"}
    panels = [
        ("The fork itself, under TPC-B, ms", {(name, mode): samples.spread(name, "fork", f"fork_ms_{key}") for name in names for mode, key in modes.items()}, list(modes), True, bound_of("fork_ms_never")),
        ("p99 of the load around it / normally", {(name, mode): samples.spread(name, "fork", f"p99_times_{key}") for name in names for mode, key in modes.items()}, list(modes), False, bound_of("p99_times_never")),
        ("Fork, start, first answer, ms", {(name, "idle parent"): samples.spread(name, "first-query", "ms") for name in names}, ["idle parent"], False, None),
    ]
    panels = [panel for panel in panels if any(panel[1].values())]
    if not panels:
        return None
    figure, grid = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False)
    for (heading, of, groups, logarithmic, bound), axes in zip(panels, grid[0]):
        bars(axes, names, groups, of)
        axes.set_title(heading, fontsize=10, loc="left")
        if bound is not None:
            axes.axhline(bound, color="black", linewidth=1, linestyle="--")
            axes.annotate("target of pgcowfs", (0.99, bound), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
        # A copy takes thousands of times as long as a snapshot.
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(bottom=1)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    legend(figure, names)
    return figure


def metric(work: str, key: str) -> Metric:
    return next(metric for metric in WORKS[work].metrics if metric.key == key)


def title(work: str, about: Metric) -> str:
    of_work = WORKS[work].title
    return of_work if len([m for m in WORKS[work].metrics if not m.key.startswith("daemon_")]) == 1 else f"{of_work}, {about.title}"


def main() -> None:
    out = Path(sys.argv[1])
    result = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    samples = Samples(result["samples"])
    names = [name for name in COLOURS if name in result["systems"]]
    # Text stays text, and a drawing of the same samples is the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench"})
    for name, draw in (("tpcb", tpcb), ("ratios", ratios), ("forks", forks)):
        figure = draw(samples, names)
        if figure is not None:
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            figure.savefig(out / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
