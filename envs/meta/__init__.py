"""Families of tasks for learning in context, in trials of several episodes: see `envs.meta.trials`."""

from collections.abc import Callable
from functools import partial

from envs.base import Environment, VectorEnvironment
from envs.meta import brax_control, control, mixture
from envs.meta.bandits import BernoulliBandit, GaussianBandit
from envs.meta.trials import Trials, constructor

TRIALS: dict[str, Callable[..., Trials]] = {
    "Bandit": constructor(BernoulliBandit, pulls=100),
    "GaussianBandit": constructor(GaussianBandit, pulls=100),
    **{body: constructor(partial(control.Control, body), episodes=8) for body in control.BODIES},
    **{
        f"brax-{body}": constructor(partial(brax_control.BraxControl, body), episodes=4) for body in brax_control.BODIES
    },
}
"""Trials by the names of their families."""

NAMES: dict[str, Callable[..., Environment | Callable[[int], VectorEnvironment]]] = {
    **TRIALS,
    "Mixture": mixture.constructor(TRIALS),
}
"""Public names of the family `meta`."""
