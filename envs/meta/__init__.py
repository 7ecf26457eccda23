"""Families of tasks for learning in context, in trials of several episodes: see `engram.envs.meta.trials`."""

from collections.abc import Callable
from functools import partial

from engram.envs.base import Environment, VectorEnvironment
from engram.envs.meta import brax_control, control, craftax_worlds, mixture
from engram.envs.meta.bandits import BernoulliBandit, GaussianBandit
from engram.envs.meta.dark_room import DarkKeyToDoor, DarkRoom
from engram.envs.meta.maze import MetaMaze
from engram.envs.meta.naming import constructor
from engram.envs.meta.tabular import TabularMDP
from engram.envs.meta.trials import Trials
from engram.envs.meta.xland import XLand

TRIALS: dict[str, Callable[..., Trials]] = {
    "Bandit": constructor(BernoulliBandit, pulls=100),
    "GaussianBandit": constructor(GaussianBandit, pulls=100),
    "SwitchingBandit": constructor(BernoulliBandit, pulls=300, hazard=0.01),
    "SwitchingGaussianBandit": constructor(GaussianBandit, pulls=300, hazard=0.01),
    "TabularMDP": constructor(TabularMDP, episodes=10),
    "DarkRoom": constructor(DarkRoom, episodes=10),
    "DarkKeyToDoor": constructor(DarkKeyToDoor, episodes=10),
    "MetaMaze": constructor(MetaMaze, episodes=4),
    **{body: constructor(partial(control.Control, body), episodes=8) for body in control.BODIES},
    **{
        f"brax-{body}": constructor(partial(brax_control.BraxControl, body, backend=backend), episodes=4)
        for body, backend in brax_control.BODIES.items()
    },
    "XLand": constructor(XLand, episodes=10),
    **{name: constructor(partial(craftax_worlds.CraftaxWorlds, name), episodes=4) for name in craftax_worlds.GAMES},
}
"""Trials by the names of their families."""

NAMES: dict[str, Callable[..., Environment | Callable[[int], VectorEnvironment]]] = {
    **TRIALS,
    "Mixture": mixture.constructor(TRIALS),
}
"""Public names of the family `meta`."""
