"""A fork of a running server where the file system cannot take a directory at one instant: PostgreSQL's own backup.

`pg_backup_start`, the copy, `pg_backup_stop`, and then the WAL that was written meanwhile. The function belongs to one
session from its start to its stop, so psql is kept open.
"""

import subprocess
import time
from pathlib import Path
from typing import Callable

from .host import BenchError, NotMeasured
from .server import Server

# Not in the first copy: the WAL comes at the end, and the others belong to the server that runs.
LATER = {"pg_wal", "postmaster.pid", "postmaster.opts"}
END = "---end of answer---"


def backup(server: Server, source: Path, target: Path, copy: Callable[[list[Path], Path], None]) -> float:
    """Copies a running cluster with `copy`; milliseconds from after its checkpoint to the end."""
    if int(server.postgres.version.split(".")[0]) < 15:
        raise NotMeasured("pg_backup_start is there since PostgreSQL 15")
    command = [str(word) for word in [server.postgres.bin / "psql", *server.at, "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **server.postgres.as_owner()) as psql:

        def ask(sql: str) -> str:
            assert psql.stdin and psql.stdout
            psql.stdin.write(f"{sql};\n\\echo {END}\n")
            psql.stdin.flush()
            lines = []
            while (line := psql.stdout.readline()) != END + "\n":
                if not line:
                    raise BenchError(f"psql ended during {sql!r}; see what it said above")
                lines.append(line)
            return "".join(lines)

        ask("SET client_min_messages = error")
        ask("SELECT pg_backup_start('bench', true)")
        begin = time.monotonic()
        target.mkdir(mode=0o700)
        server.postgres.give(target)
        copy([entry for entry in source.iterdir() if entry.name not in LATER], target)
        label = ask("SELECT labelfile FROM pg_backup_stop(false)").rstrip("\n") + "\n"
        copy([source / "pg_wal"], target)
        (target / "backup_label").write_text(label, encoding="utf-8")
        server.postgres.give(target / "backup_label")
        assert psql.stdin
        psql.stdin.close()
        return (time.monotonic() - begin) * 1000
