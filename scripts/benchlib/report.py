"""The report: Markdown from the record of a run."""

import math
from typing import Any

from .figures import TARGETS, Samples, Spread, Target
from .systems import REFERENCE
from .work import WORKS, Metric, Work


def number(value: float) -> str:
    """Three digits or all before the point: 0.912, 14.5, 2937."""
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def with_ends(spread: Spread | None) -> str:
    """middle (least - most)"""
    if spread is None:
        return "-"
    if spread.count == 1:
        return number(spread.middle)
    return f"{number(spread.middle)} ({number(spread.least)} - {number(spread.most)})"


def ratio_text(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.count == 1:
        return f"{spread.middle:.2f}"
    return f"{spread.middle:.2f} ({spread.least:.2f} - {spread.most:.2f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(result: dict[str, Any]) -> str:
    samples = Samples(result["samples"])
    lines = ["# Forks side by side", "", *machine(result), *targets(result, samples)]
    for work in WORKS.values():
        lines += work_table(result, samples, work)
    lines += [*requests(result), *settings(result), *not_measured(result), *systems(result)]
    return "\n".join(lines).rstrip() + "\n"


def machine(result: dict[str, Any]) -> list[str]:
    facts, options = result["machine"], result["options"]
    commit = (facts["commit"] or "unknown")[:12] + (" with changes" if facts["changed_since_commit"] else "")
    journal = {True: ", with a journal", False: ", without a journal", None: ""}[facts["work_journal"]]
    order = "one system after the other" if options["one_at_a_time"] else "all systems in turn in every round"
    return [
        f"A cluster of {result['size_bytes'] / 1e9:.2f} GB (pgbench scale {options['scale']}), {options['rounds']} round{'s' if options['rounds'] > 1 else ''}, runs of {options['seconds']:g} s, {order}; {facts['date']}.",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, Linux {facts['kernel']}, disk {facts['disk_model'] or 'unknown'}, work directory on {facts['work_file_system']} ({facts['work_mount_options']}){journal}.",
        f"PostgreSQL {result['postgres']}, {result['pgcowfs'] or 'no pgcowfs'}, commit {commit}; load of the machine {facts['load_at_start']:.1f} at the start, {facts.get('load_at_end', math.nan):.1f} at the end.",
        "Settings: " + ", ".join(line.replace(" = ", "=") for line in result["settings"]) + ".",
        "",
        "Figures are medians, in brackets the least and the greatest. A ratio is that of the same round, and above 1 always means better.",
        "",
    ]


def targets(result: dict[str, Any], samples: Samples) -> list[str]:
    rows = []
    for target in TARGETS:
        spread = measured(target, samples)
        who = f"{target.system} / {target.against}" if target.against else target.system
        bound = f"{'>=' if target.against else '<='} {target.bound:.2f}" if target.unit == "x" else f"<= {target.bound:g} {target.unit}"
        if spread is None:
            rows.append([target.title, who, bound, "-", f"not measured: {reason(result, target)}"])
        else:
            rows.append([target.title, who, bound, ratio_text(spread) if target.unit == "x" else with_ends(spread), "met" if target.reached(spread) else "**not met**"])
    return ["## Targets", "", *table(["what", "of what", "target", "measured", ""], rows)]


def measured(target: Target, samples: Samples) -> Spread | None:
    if target.against is None:
        return samples.spread(target.system, target.work, target.key)
    return samples.ratio(target.system, target.against, target.work, target.key, metric(target.work, target.key).more_is_better)


def metric(work: str, key: str) -> Metric:
    return next(metric for metric in WORKS[work].metrics if metric.key == key)


def reason(result: dict[str, Any], target: Target) -> str:
    """Why there is no figure for a target."""
    for entry in result["not_measured"]:
        if entry["system"] in (target.system, target.against) and entry["work"] in (None, target.work) and entry["key"] in (None, target.key):
            return f"{entry['system']}: {one_line(entry['reason'])}"
    return "not asked for"


def one_line(text: str) -> str:
    """A reason as a cell of a table; all of it is in the JSON."""
    line = "; ".join(text.splitlines()).replace("|", "/")
    return line if len(line) <= 300 else line[:300] + " ..."


def work_table(result: dict[str, Any], samples: Samples, work: Work) -> list[str]:
    names = [name for name in result["systems"] if any(samples.spread(name, work.name, metric.key) for metric in work.metrics)]
    if not names:
        return []
    columns = [metric for metric in work.metrics if any(samples.spread(name, work.name, metric.key) for name in names)]
    head = ["system"]
    for column in columns:
        head.append(f"{column.title}, {column.unit}")
        if compared(column):
            head.append(f"to {REFERENCE}")
    rows = []
    for name in names:
        row = [name]
        for column in columns:
            row.append(with_ends(samples.spread(name, work.name, column.key)))
            if compared(column):
                row.append(ratio_text(samples.ratio(name, REFERENCE, work.name, column.key, column.more_is_better)))
        rows.append(row)
    return [f"## {work.title[0].upper()}{work.title[1:]}", "", f"`--what {work.name}`", "", *table(head, rows)]


def compared(metric: Metric) -> bool:
    """What only some systems have, or is a comparison already, has no ratio."""
    return not metric.key.startswith("daemon_") and metric.unit not in ("x", "MB", "B")


def requests(result: dict[str, Any]) -> list[str]:
    """Requests per transaction of the last round of each work that counts them."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for sample in result["samples"]:
        if counts := sample["notes"].get("requests_per_transaction"):
            found[(sample["system"], sample["work"])] = counts
    if not found:
        return []
    rows = [[system, work, ", ".join(f"{kind} {n:.3g}" for kind, n in sorted(counts.items(), key=lambda item: -item[1]) if n >= 0.001)] for (system, work), counts in found.items()]
    return ["## Requests to the daemon per transaction", "", *table(["system", "work", "requests"], rows)]


def settings(result: dict[str, Any]) -> list[str]:
    """Where servers run with something else than those on the reference, and what they said of full_page_writes."""
    rows = [[system, name, str(theirs[0]), str(theirs[1])] for system, names in result["setting_differences"].items() for name, theirs in names.items()]
    lines = ["## Settings that differ", "", *(table(["system", "setting", REFERENCE, "there"], rows) if rows else ["None that matter.", ""])]
    said: dict[str, dict[str, list[str]]] = {}
    for sample in result["samples"]:
        if value := sample["notes"].get("full_page_writes"):
            said.setdefault(value, {}).setdefault(sample["system"], []).append(sample["work"])
    off = [f"{system} ({', '.join(sorted(set(works)))})" for system, works in said.get("off", {}).items()]
    return [*lines, f"Servers that ran with full_page_writes=off, by their own word: {'; '.join(off) or 'none'}.", ""]


def not_measured(result: dict[str, Any]) -> list[str]:
    rows = [[entry["system"], entry["work"] or "everything", entry["key"] or "", one_line(entry["reason"])] for entry in result["not_measured"]]
    return ["## Not measured", "", *(table(["system", "work", "figure", "reason"], rows) if rows else ["Nothing is missing.", ""])]


def systems(result: dict[str, Any]) -> list[str]:
    rows = [[name, *(str(facts.get(key, "")) for key in ("about", "on", "mkfs", "mount", "full_page_writes"))] for name, facts in result["systems"].items()]
    return ["## Systems", "", *table(["system", "fork", "on", "made with", "mounted with", "full_page_writes"], rows)]
