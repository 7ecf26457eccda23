"""Runs of a few updates compile for longer than they train."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def every_script_quickly_compiled(quickly_compiled):
    """Asked for here, for all of the folder's files."""
