"""POPGym in JAX: the table of environments, each named as the popgym package names it, without `popgym-` and `-v0`."""

from collections.abc import Callable
from functools import partial

from engram.envs.base import Environment
from engram.envs.popgym.autoencode import Autoencode
from engram.envs.popgym.battleship import Battleship
from engram.envs.popgym.cartpole import NoisyPositionOnlyCartPole, PositionOnlyCartPole, VelocityOnlyCartpole
from engram.envs.popgym.concentration import Concentration
from engram.envs.popgym.count_recall import CountRecall
from engram.envs.popgym.higher_lower import HigherLower
from engram.envs.popgym.labyrinth import LabyrinthEscape, LabyrinthExplore
from engram.envs.popgym.mine_sweeper import MineSweeper
from engram.envs.popgym.multiarmed_bandit import MultiarmedBandit
from engram.envs.popgym.pendulum import NoisyPositionOnlyPendulum, PositionOnlyPendulum
from engram.envs.popgym.repeat_first import RepeatFirst
from engram.envs.popgym.repeat_previous import RepeatPrevious

POPGYM: dict[str, Callable[[], Environment]] = {
    # Cards, boards and bandits.
    "RepeatFirstEasy": partial(RepeatFirst, num_decks=1),
    "RepeatFirstMedium": partial(RepeatFirst, num_decks=8),
    "RepeatFirstHard": partial(RepeatFirst, num_decks=16),
    "RepeatPreviousEasy": partial(RepeatPrevious, num_decks=1, k=4),
    "RepeatPreviousMedium": partial(RepeatPrevious, num_decks=2, k=32),
    "RepeatPreviousHard": partial(RepeatPrevious, num_decks=3, k=64),
    "AutoencodeEasy": partial(Autoencode, num_decks=1),
    "AutoencodeMedium": partial(Autoencode, num_decks=2),
    "AutoencodeHard": partial(Autoencode, num_decks=3),
    "CountRecallEasy": partial(CountRecall, num_decks=1, deck_type="colors"),
    "CountRecallMedium": partial(CountRecall, num_decks=2, deck_type="suits"),
    "CountRecallHard": partial(CountRecall, num_decks=4, deck_type="ranks"),
    "HigherLowerEasy": partial(HigherLower, num_decks=1),
    "HigherLowerMedium": partial(HigherLower, num_decks=2),
    "HigherLowerHard": partial(HigherLower, num_decks=3),
    "ConcentrationEasy": partial(Concentration, num_decks=1, deck_type="colors"),
    "ConcentrationMedium": partial(Concentration, num_decks=2, deck_type="colors"),
    "ConcentrationHard": partial(Concentration, num_decks=1, deck_type="ranks"),
    "MineSweeperEasy": partial(MineSweeper, size=4, num_mines=2),
    "MineSweeperMedium": partial(MineSweeper, size=6, num_mines=6),
    "MineSweeperHard": partial(MineSweeper, size=8, num_mines=10),
    "BattleshipEasy": partial(Battleship, size=8),
    "BattleshipMedium": partial(Battleship, size=10),
    "BattleshipHard": partial(Battleship, size=12),
    "MultiarmedBanditEasy": partial(MultiarmedBandit, num_bandits=10, episode_length=200),
    "MultiarmedBanditMedium": partial(MultiarmedBandit, num_bandits=20, episode_length=400),
    "MultiarmedBanditHard": partial(MultiarmedBandit, num_bandits=30, episode_length=600),
    # Control and navigation.
    "PositionOnlyCartPoleEasy": partial(PositionOnlyCartPole, episode_length=200),
    "PositionOnlyCartPoleMedium": partial(PositionOnlyCartPole, episode_length=400),
    "PositionOnlyCartPoleHard": partial(PositionOnlyCartPole, episode_length=600),
    "VelocityOnlyCartpoleEasy": partial(VelocityOnlyCartpole, episode_length=200),
    "VelocityOnlyCartpoleMedium": partial(VelocityOnlyCartpole, episode_length=400),
    "VelocityOnlyCartpoleHard": partial(VelocityOnlyCartpole, episode_length=600),
    "NoisyPositionOnlyCartPoleEasy": partial(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.1),
    "NoisyPositionOnlyCartPoleMedium": partial(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.2),
    "NoisyPositionOnlyCartPoleHard": partial(NoisyPositionOnlyCartPole, episode_length=200, noise_sigma=0.3),
    "PositionOnlyPendulumEasy": partial(PositionOnlyPendulum, episode_length=200),
    "PositionOnlyPendulumMedium": partial(PositionOnlyPendulum, episode_length=150),
    "PositionOnlyPendulumHard": partial(PositionOnlyPendulum, episode_length=100),
    "NoisyPositionOnlyPendulumEasy": partial(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.1),
    "NoisyPositionOnlyPendulumMedium": partial(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.2),
    "NoisyPositionOnlyPendulumHard": partial(NoisyPositionOnlyPendulum, episode_length=200, noise_sigma=0.3),
    "LabyrinthExploreEasy": partial(LabyrinthExplore, size=10),
    "LabyrinthExploreMedium": partial(LabyrinthExplore, size=14),
    "LabyrinthExploreHard": partial(LabyrinthExplore, size=18),
    "LabyrinthEscapeEasy": partial(LabyrinthEscape, size=10),
    "LabyrinthEscapeMedium": partial(LabyrinthEscape, size=14),
    "LabyrinthEscapeHard": partial(LabyrinthEscape, size=18),
}
