"""Families of tasks for learning in context, in trials of several episodes: see `envs.meta.trials`."""

from collections.abc import Callable

from envs.base import Environment
from envs.meta.bandits import BernoulliBandit, GaussianBandit
from envs.meta.dark_room import DarkKeyToDoor, DarkRoom
from envs.meta.maze import MetaMaze
from envs.meta.naming import constructor
from envs.meta.tabular import TabularMDP

NAMES: dict[str, Callable[..., Environment]] = {
    "Bandit": constructor(BernoulliBandit, pulls=100),
    "GaussianBandit": constructor(GaussianBandit, pulls=100),
    "SwitchingBandit": constructor(BernoulliBandit, pulls=300, hazard=0.01),
    "SwitchingGaussianBandit": constructor(GaussianBandit, pulls=300, hazard=0.01),
    "TabularMDP": constructor(TabularMDP, episodes=10),
    "DarkRoom": constructor(DarkRoom, episodes=10),
    "DarkKeyToDoor": constructor(DarkKeyToDoor, episodes=10),
    "MetaMaze": constructor(MetaMaze, episodes=4),
}
"""Public names of the family `meta`."""
