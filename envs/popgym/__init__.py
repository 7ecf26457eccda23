"""POPGym in JAX: the table of environments, each named as the popgym package names it, without `popgym-` and `-v0`."""

from collections.abc import Callable
from typing import Any

from engram.envs.base import Environment
from engram.envs.popgym.autoencode import Autoencode
from engram.envs.popgym.battleship import Battleship
from engram.envs.popgym.cartpole import NoisyPositionOnlyCartPole, PositionOnlyCartPole, VelocityOnlyCartpole
from engram.envs.popgym.concentration import Concentration
from engram.envs.popgym.count_recall import CountRecall
from engram.envs.popgym.full_information import SHOWN, FullInformation
from engram.envs.popgym.higher_lower import HigherLower
from engram.envs.popgym.labyrinth import LabyrinthEscape, LabyrinthExplore
from engram.envs.popgym.mine_sweeper import MineSweeper
from engram.envs.popgym.multiarmed_bandit import MultiarmedBandit
from engram.envs.popgym.pendulum import NoisyPositionOnlyPendulum, PositionOnlyPendulum
from engram.envs.popgym.repeat_first import RepeatFirst
from engram.envs.popgym.repeat_previous import RepeatPrevious


def _level(family: Callable[..., Environment], **settings: Any) -> Callable[[], Environment]:
    """A constructor without options: what tells one level from another is fixed."""

    def make() -> Environment:
        return family(**settings)

    return make


POPGYM: dict[str, Callable[[], Environment]] = {
    # Cards, boards and bandits.
    "RepeatFirstEasy": _level(RepeatFirst, num_decks=1),
    "RepeatFirstMedium": _level(RepeatFirst, num_decks=8),
    "RepeatFirstHard": _level(RepeatFirst, num_decks=16),
    "RepeatPreviousEasy": _level(RepeatPrevious, num_decks=1, k=4),
    "RepeatPreviousMedium": _level(RepeatPrevious, num_decks=2, k=32),
    "RepeatPreviousHard": _level(RepeatPrevious, num_decks=3, k=64),
    "AutoencodeEasy": _level(Autoencode, num_decks=1),
    "AutoencodeMedium": _level(Autoencode, num_decks=2),
    "AutoencodeHard": _level(Autoencode, num_decks=3),
    "CountRecallEasy": _level(CountRecall, num_decks=1, deck_type="colors"),
    "CountRecallMedium": _level(CountRecall, num_decks=2, deck_type="suits"),
    "CountRecallHard": _level(CountRecall, num_decks=4, deck_type="ranks"),
    "HigherLowerEasy": _level(HigherLower, num_decks=1),
    "HigherLowerMedium": _level(HigherLower, num_decks=2),
    "HigherLowerHard": _level(HigherLower, num_decks=3),
    "ConcentrationEasy": _level(Concentration, num_decks=1, deck_type="colors"),
    "ConcentrationMedium": _level(Concentration, num_decks=2, deck_type="colors"),
    "ConcentrationHard": _level(Concentration, num_decks=1, deck_type="ranks"),
    "MineSweeperEasy": _level(MineSweeper, size=4, num_mines=2),
    "MineSweeperMedium": _level(MineSweeper, size=6, num_mines=6),
    "MineSweeperHard": _level(MineSweeper, size=8, num_mines=10),
    "BattleshipEasy": _level(Battleship, size=8),
    "BattleshipMedium": _level(Battleship, size=10),
    "BattleshipHard": _level(Battleship, size=12),
    "MultiarmedBanditEasy": _level(MultiarmedBandit, num_bandits=10, episode_length=200),
    "MultiarmedBanditMedium": _level(MultiarmedBandit, num_bandits=20, episode_length=400),
    "MultiarmedBanditHard": _level(MultiarmedBandit, num_bandits=30, episode_length=600),
    # Control and navigation.
    "PositionOnlyCartPoleEasy": _level(PositionOnlyCartPole, episode_length=200),
    "PositionOnlyCartPoleMedium": _level(PositionOnlyCartPole, episode_length=400),
    "PositionOnlyCartPoleHard": _level(PositionOnlyCartPole, episode_length=600),
    "VelocityOnlyCartpoleEasy": _level(VelocityOnlyCartpole, episode_length=200),
    "VelocityOnlyCartpoleMedium": _level(VelocityOnlyCartpole, episode_length=400),
    "VelocityOnlyCartpoleHard": _level(VelocityOnlyCartpole, episode_length=600),
    "NoisyPositionOnlyCartPoleEasy": _level(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.1),
    "NoisyPositionOnlyCartPoleMedium": _level(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.2),
    "NoisyPositionOnlyCartPoleHard": _level(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.3),
    "PositionOnlyPendulumEasy": _level(PositionOnlyPendulum, episode_length=200),
    "PositionOnlyPendulumMedium": _level(PositionOnlyPendulum, episode_length=150),
    "PositionOnlyPendulumHard": _level(PositionOnlyPendulum, episode_length=100),
    "NoisyPositionOnlyPendulumEasy": _level(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.1),
    "NoisyPositionOnlyPendulumMedium": _level(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.2),
    "NoisyPositionOnlyPendulumHard": _level(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.3),
    "LabyrinthExploreEasy": _level(LabyrinthExplore, size=10),
    "LabyrinthExploreMedium": _level(LabyrinthExplore, size=14),
    "LabyrinthExploreHard": _level(LabyrinthExplore, size=18),
    "LabyrinthEscapeEasy": _level(LabyrinthEscape, size=10),
    "LabyrinthEscapeMedium": _level(LabyrinthEscape, size=14),
    "LabyrinthEscapeHard": _level(LabyrinthEscape, size=18),
}

FULL = {name: _level(FullInformation, task=task) for name, make in POPGYM.items() if type(task := make()) in SHOWN}
"""The same tasks with nothing hidden, without the labyrinths."""
