"""What somebody needs to know of the machine to judge the figures."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from .host import is_root, run


def facts(work: Path, top: Path) -> dict[str, Any]:
    """What somebody needs to judge the figures."""
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
    source, kind, options = run(["findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "-T", work]).split(None, 2)
    disk = Path(source).name
    journal = any(path.name.split("-")[0] == disk for path in Path("/proc/fs/jbd2").glob("*")) if Path("/proc/fs/jbd2").is_dir() else False
    # The checkout may be another user's than root.
    git = ["git", "-c", "safe.directory=*", "-C", top]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": run([*git, "rev-parse", "HEAD"], check=False).strip() or None,
        "changed_since_commit": bool(run([*git, "status", "--porcelain"], check=False).strip()),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(info["MemTotal"].split()[0]) * 1024 / 1e9, 1),
        "kernel": platform.release().split("-")[0],
        "disk_model": disk_model(disk),
        "work_file_system": kind,
        "work_mount_options": options.strip(),
        "work_journal": journal if kind.startswith("ext") else None,
        "root": is_root(),
        "load_at_start": os.getloadavg()[0],
    }


def disk_model(name: str) -> str | None:
    for sys_block in (Path("/sys/class/block") / name, (Path("/sys/class/block") / name).resolve().parent):
        for model in (sys_block / "device" / "model", sys_block / "device" / "driver"):
            if model.is_file():
                return model.read_text(encoding="utf-8").strip()
            if model.is_symlink():
                return model.resolve().name
    return None
