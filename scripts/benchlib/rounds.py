"""Which work on which system in which order, and the record of it."""

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .disk import Setting
from .host import BenchError, NotMeasured, say
from .pgcowfs import EXPECTED_DIFFERENCES
from .system import System
from .systems import REFERENCE
from .work import Run, Work


@dataclass
class Plan:
    systems: list[System]
    works: list[Work]
    rounds: int
    scale: int
    seconds: float
    first_seconds: float
    one_at_a_time: bool


@dataclass
class Record:
    """Everything a run has found; written after each sample, so that an interrupted run keeps what it has."""

    file: Path
    about: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    not_measured: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: bool = False

    def missing(self, system: str, work: str | None, key: str | None, reason: str) -> None:
        entry = {"system": system, "work": work, "key": key, "reason": reason}
        if entry not in self.not_measured:
            self.not_measured.append(entry)
            say(f"{system}{f', {work}' if work else ''}{f', {key}' if key else ''}: not measured: {reason}")
            self.write()

    def failure(self, system: str, work: str | None, error: Exception) -> None:
        """What went wrong first; that its server could not be stopped afterwards follows from it."""
        self.failed = True
        first: BaseException = error
        while isinstance(first.__context__, (BenchError, OSError)):
            first = first.__context__
        self.missing(system, work, None, f"failed: {first}")

    def differences(self) -> dict[str, dict[str, list[str | None]]]:
        """Settings in which servers differ from those of the reference, other than they must."""
        reference = self.settings.get(REFERENCE, {})
        found = {}
        for system, settings in self.settings.items():
            names = sorted(set(reference) | set(settings)) if reference else []
            differing = {name: [reference.get(name), settings.get(name)] for name in names if name not in EXPECTED_DIFFERENCES and reference.get(name) != settings.get(name)}
            if differing:
                found[system] = differing
        return found

    def result(self) -> dict[str, Any]:
        return {**self.about, "setting_differences": self.differences(), "not_measured": self.not_measured, "samples": self.samples}

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.result(), indent=1) + "\n", encoding="utf-8")


def measure(plan: Plan, setting: Setting, record: Record) -> None:
    groups = [[system] for system in plan.systems] if plan.one_at_a_time else [plan.systems]
    for group in groups:
        with contextlib.ExitStack() as opened:
            ready = [system for system in group if made_ready(system, setting, opened, record)]
            for n in range(plan.rounds):
                for position, work in enumerate(plan.works):
                    for system in rotated(ready, n + position):
                        one(plan, setting, record, system, work, n)


def rotated(systems: list[System], by: int) -> list[System]:
    """Nobody is always the first, or always after the same one."""
    by = by % len(systems) if systems else 0
    return systems[by:] + systems[:by]


def made_ready(system: System, setting: Setting, opened: contextlib.ExitStack, record: Record) -> bool:
    say(f"{system.name}: {system.about}")
    try:
        opened.enter_context(system.open(setting))
        with system.forked("settings") as server:
            server.start()
            record.settings[system.name] = server.settings()
    except NotMeasured as reason:
        record.missing(system.name, None, None, str(reason))
        return False
    except (BenchError, OSError) as error:
        record.failure(system.name, None, error)
        return False
    record.about["systems"][system.name] = system.facts()
    return True


def one(plan: Plan, setting: Setting, record: Record, system: System, work: Work, n: int) -> None:
    run = Run(system, setting, f"{work.name}-{n}", plan.scale, plan.seconds, plan.first_seconds)
    try:
        work.measure(run)
    except NotMeasured as reason:
        record.missing(system.name, work.name, None, str(reason))
        return
    except (BenchError, OSError) as error:
        record.failure(system.name, work.name, error)
        with contextlib.suppress(BenchError):  # what could not be stopped shows again when the system is closed
            system.clear()
        return
    for key, reason in run.missing.items():
        record.missing(system.name, work.name, key, reason)
    values = {key: value for key, value in run.values.items() if not math.isnan(value)}
    record.samples.append({"system": system.name, "work": work.name, "round": n, "values": values, "notes": run.notes})
    record.write()
    figures = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
    say(f"round {n + 1} of {plan.rounds}: {work.name} on {system.name}: {figures}")
