"""Commands, and what has to be taken away again: loop devices, mounts, processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

MB = 1_000_000


class BenchError(Exception):
    """There can be no figures at all: the thing, the reason, the next step."""


class NotMeasured(Exception):
    """One figure cannot be had here; the text is the reason, as the report gives it."""


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(command: list, check: bool = True, **more: Any) -> str:
    """Runs a command to its end and gives its standard output.

    In a session of its own, so that Ctrl-C ends this program, which then cleans up, and not the clean-up's commands.
    """
    words = [str(part) for part in command]
    try:
        done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True, **more)
    except FileNotFoundError as error:
        raise BenchError(f"{words[0]}: not found; install it") from error
    if check and done.returncode != 0:
        raise BenchError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def clean_env() -> dict[str, str]:
    """The environment without what would lead PostgreSQL's programs or pgcowfs elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG") or name == "PGCOWFS_LOG"}


def is_root() -> bool:
    return os.geteuid() == 0


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def disk_bytes(path: Path) -> int:
    """What the files below a directory take on the disk."""
    return int(run(["du", "-s", "--block-size=1", path]).split()[0])


def drop_caches() -> None:
    """So that what is read next comes from the disk."""
    if not is_root():
        raise NotMeasured("dropping the kernel's caches needs root")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def read_in(directory: Path) -> None:
    """Reads all files once, so that they are in the kernel's cache as far as it has room."""
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        with open(file, "rb", buffering=0) as data:
            while data.read(1 << 20):
                pass


# ------------------------------------------------------------------------------------------------ file systems


@contextlib.contextmanager
def mounted(command: list, target: Path) -> Iterator[None]:
    """A mount, for as long as the context lasts."""
    target.mkdir(parents=True, exist_ok=True)
    run(command)
    try:
        yield
    finally:
        unmount(target)


def unmount(target: Path) -> None:
    """A process that is just ending may keep a mount busy for a moment."""
    for _ in range(50):
        done = subprocess.run(["umount", str(target)], capture_output=True, text=True, start_new_session=True, check=False)
        if done.returncode == 0 or not os.path.ismount(target):
            return
        time.sleep(0.1)
    raise BenchError(f"{target} is still mounted: {done.stderr.strip()}; end what uses it (fuser -vm {target}), then umount it")


@contextlib.contextmanager
def loop_device(image: Path, size_bytes: int) -> Iterator[str]:
    """A loop device with direct I/O on a file that is written in full beforehand, so that finding room on the disk
    below is no part of what is measured."""
    if not is_root():
        raise NotMeasured("loop devices need root")
    if (free := free_bytes(image.parent)) < size_bytes + 1000 * MB:
        raise NotMeasured(f"its image takes {size_bytes / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free (a smaller --scale, or another --work-dir)")
    try:
        run(["dd", "if=/dev/zero", f"of={image}", "bs=16M", f"count={size_bytes >> 24}", "oflag=direct"])
        device = run(["losetup", "--find", "--show", "--direct-io=on", image]).strip()
        try:
            if Path(f"/sys/block/{Path(device).name}/loop/dio").read_text(encoding="ascii").strip() != "1":
                raise NotMeasured(f"{device} does no direct I/O: the disk below the work directory cannot")
            yield device
        finally:
            run(["losetup", "--detach", device])
    finally:
        image.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ processes


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def shared_out_bytes(pid: int) -> int:
    """Memory of a process, of what it shares with others its part (PSS); 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split())
    return found


def page_cache_bytes() -> int:
    """What the kernel caches of files, without shared memory, which it counts there as well."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()}
    return values["Cached"] - values["Shmem"]


@contextlib.contextmanager
def ends_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does: through every clean-up, which a second one does not disturb."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def interrupt(*_: Any) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        say("interrupted; cleaning up")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
