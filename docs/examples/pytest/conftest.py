"""Fixtures: a database for each test, or one that the tests of a module share."""

import os

import pytest

from database import fork_of

PARENT = os.environ.get("PARENT", "main")


@pytest.fixture
def database():
    with fork_of(PARENT, "shop") as database:
        yield database


@pytest.fixture(scope="module")
def shared_database():
    with fork_of(PARENT, "shop") as database:
        yield database
