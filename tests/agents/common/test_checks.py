"""Every check names the field, says what it must be and what it was; edges are on the right side."""

import math
from types import SimpleNamespace

import pytest

from engram.agents.common import checks
from engram.errors import BadRequest

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "extra", "good", "bad", "message"),
    [
        (checks.require_at_least, (1,), (1, 2, math.inf), (0, -1, NAN), "must be at least 1"),
        (checks.require_at_least, (2,), (2,), (1,), "must be at least 2"),
        (checks.require_positive, (), (1e-9, 5), (0, -1.0, math.inf, NAN), "must be positive and finite"),
        (checks.require_not_negative, (), (0, 3.5), (-1e-9, math.inf, NAN), "must be finite and at least 0"),
        (checks.require_share, (), (0, 0.5, 1.0), (-0.1, 1.1, NAN), "must lie in [0, 1]"),
        (checks.require_share_below_one, (), (0.0, 0.9), (-0.1, 1.0, NAN), "must lie in [0, 1)"),
        (checks.require_inner_share, (), (0.1, 0.9), (0.0, 1.0, NAN), "must lie in (0, 1)"),
        (checks.require_sizes, (), ((), (1, 64)), ((0,), (64, -1)), "must hold sizes of at least 1"),
        (checks.require_one_of, (("pre", "post"),), ("pre", "post"), ("before", ""), "must be one of pre, post"),
    ],
)
def test_a_fault_is_named_and_nothing_else(check, extra, good, bad, message):
    for value in (*good, None):
        check(SimpleNamespace(field=value), "toy.", *extra, "field")
    for value in bad:
        with pytest.raises(BadRequest) as error:
            check(SimpleNamespace(first=good[0], second=value), "toy.", *extra, "first", "second")
        assert str(error.value) == f"toy.second {message}, got {value!r}"
