"""Forks for tests, through the pgcowfs program."""

import contextlib
import itertools
import json
import os
import subprocess

_numbers = itertools.count(1)


def _pgcowfs(*arguments):
    command = ["pgcowfs", "--quiet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Database:
    """A running fork."""

    def __init__(self, fork, name):
        self.fork = fork
        # For psycopg.connect(), SQLAlchemy, or the program under test.
        self.url = _pgcowfs("url", fork, "--socket", "--database", name).strip()

    def sql(self, query):
        """The answer to a query, as psql prints it."""
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.url, "-c", query]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextlib.contextmanager
def fork_of(parent, name="postgres"):
    """A throwaway fork of parent, and of it the database of that name. With --ttl it goes also if Python is killed."""
    fork = f"{parent}-test-{os.getpid()}-{next(_numbers)}"
    report = _pgcowfs("fork", parent, fork, "--ephemeral", "--ttl", "1h", "--start", "--json")
    try:
        yield Database(json.loads(report)["name"], name)
    finally:
        _pgcowfs("rm", "--force", fork)
