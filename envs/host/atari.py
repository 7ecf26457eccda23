"""The games of the Atari 100k protocol, emulated on the host and called back from the compiled program.

An agent step is four raw frames under one action; the observation is the maximum of the last two raw frames that were
seen, resized to 64 x 64 RGB (cv2, INTER_AREA), uint8 `[64, 64, 3]`. No sticky actions, the minimal set of actions,
rewards as the game gives them (the sum over the frames), no no-ops, no fire button on behalf of the agent. An episode
is a whole game, cut (truncated) after 27,000 agent steps = 108,000 frames, those of no-ops not counted.

`info["life_lost"][B]` is True where the lives after a step are fewer than before it. It never ends an episode (but see
`episodic_life`) and is never set on a dummy row or by lives that a new game brings. A lost last life is one as well:
there `terminated` and `life_lost` may both be set, so "lost a life or ended" is their disjunction, not their sum.

The emulators are ale-py's, stepped one after the other in Python. The vector environments of envpool and ale-py do not
follow the protocol: envpool crashes without no-ops (`noop_max=0`), and where a game ends within the four frames both
show frames of an earlier step. Everywhere else the frames are the same.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from engram.envs.extras import needs
from engram.envs.host.pool import HostPool, Seed, lane_seeds
from engram.envs.spec import check_options
from engram.errors import BadRequest

FRAMES = 4
"""Raw frames of an agent step."""
EXTRA = "atari"
"""Extra of this package that brings ale-py and OpenCV."""

ATARI_100K = (
    "Alien",
    "Amidar",
    "Assault",
    "Asterix",
    "BankHeist",
    "BattleZone",
    "Boxing",
    "Breakout",
    "ChopperCommand",
    "CrazyClimber",
    "DemonAttack",
    "Freeway",
    "Frostbite",
    "Gopher",
    "Hero",
    "Jamesbond",
    "Kangaroo",
    "Krull",
    "KungFuMaster",
    "MsPacman",
    "Pong",
    "PrivateEye",
    "Qbert",
    "RoadRunner",
    "Seaquest",
    "UpNDown",
)
"""The 26 games of the benchmark."""


@dataclass(frozen=True)
class AtariOptions:
    """What an id may change of the protocol. Raises BadRequest for values out of range."""

    noop_max: int = 0
    """Largest number of no-ops that open a game, drawn uniformly from 1 on (0: none; evaluations of the protocol use
    30)."""
    repeat_action_probability: float = 0.0
    """Probability that a raw frame repeats the previous action (sticky actions)."""
    full_action_space: bool = False
    """Whether all 18 actions are available instead of those that the game uses."""
    size: int = 64
    """Height and width of the observation."""
    grayscale: bool = False
    """Whether observations have one channel of brightness instead of RGB."""
    stack: int = 1
    """Number of latest observations in one, along the channels, newest last; an episode opens with copies of its
    first."""
    episodic_life: bool = False
    """Whether a lost life terminates the episode. The same game goes on in the next one, which opens with the very
    picture that ended the last; a whole new game only follows the end of a game."""
    reward_clip: bool = False
    """Whether rewards are replaced by their sign."""
    skip_break_on_life: bool = False
    """As published code of Drama does: a lost life cuts the four frames short, and frames three and four have a buffer
    each, so that the maximum then takes in what is left there of an earlier step. Such observations are wrong."""
    env_seed_fixed: bool = False
    """Whether every game loads the cartridge again under the same seed, on which only some games depend."""
    max_episode_steps: int = 27_000
    """Agent steps after which a game is cut."""

    def __post_init__(self):
        for name, low in (("noop_max", 0), ("size", 1), ("stack", 1), ("max_episode_steps", 1)):
            if getattr(self, name) < low:
                raise BadRequest(f"atari option {name} must be at least {low}, got {getattr(self, name)}")
        if not 0.0 <= self.repeat_action_probability <= 1.0:
            raise BadRequest(
                f"atari option repeat_action_probability must lie in [0, 1], got {self.repeat_action_probability}"
            )


@functools.cache
def games() -> dict[str, str]:
    """ale-py's identifiers of the games for one player, by name. Raises MissingExtra."""
    interface, roms = needs("ale_py", EXTRA, "atari/...").ALEInterface, needs("ale_py.roms", EXTRA, "atari/...")
    name = needs("ale_py.registration", EXTRA, "atari/...").rom_id_to_name
    return {name(rom): rom for rom in roms.get_all_rom_ids() if interface.isSupportedROM(str(roms.get_rom_path(rom)))}


class Emulator:
    """One game after the other. `observation[size, size, channels]` is the current one."""

    def __init__(self, rom: str, options: AtariOptions, seed: int):
        self._options, self._rom, self._seed = options, rom, seed
        # Kept here: the modules are used in every step.
        self._ale_py, self._cv2 = needs("ale_py", EXTRA, "atari/..."), needs("cv2", EXTRA, "atari/...")
        self._ale = self._ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", options.repeat_action_probability)
        self._load()
        self.actions = self._ale.getLegalActionSet() if options.full_action_space else self._ale.getMinimalActionSet()
        self._random = np.random.default_rng(self._seed)
        height, width = self._ale.getScreenDims()
        shape = (height, width) if options.grayscale else (height, width, 3)
        self._screens = [np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)]
        self._new_game()

    def _load(self) -> None:
        self._ale.setInt("random_seed", self._seed)
        self._ale.loadROM(str(self._ale_py.roms.get_rom_path(self._rom)))

    def _new_game(self) -> None:
        if self._options.env_seed_fixed:
            self._load()
        self._ale.reset_game()
        if self._options.noop_max:
            for _ in range(self._random.integers(1, self._options.noop_max, endpoint=True)):
                self._ale.act(self._ale_py.Action.NOOP)
                if self._ale.game_over():
                    self._ale.reset_game()
        for screen in self._screens:
            self._read(screen)
        self._steps, self._game_ended, self._episode_ended = 0, False, False
        self._show(opens=True)

    def _read(self, screen: np.ndarray) -> None:
        if self._options.grayscale:
            self._ale.getScreenGrayscale(screen)
        else:
            self._ale.getScreenRGB(screen)

    def _show(self, opens: bool) -> None:
        size, stack = self._options.size, self._options.stack
        brightest = self._cv2.max(*self._screens)
        picture = self._cv2.resize(brightest, (size, size), interpolation=self._cv2.INTER_AREA)
        picture = picture.reshape(size, size, -1)
        if opens:
            self.observation = np.tile(picture, stack)
        else:
            self.observation = np.concatenate([self.observation[..., picture.shape[-1] :], picture], axis=-1)

    def _emulate(self, action: Any) -> float:
        """Up to four raw frames -> their reward; the screens then hold the last two."""
        reward, lives = 0.0, self._ale.lives()
        for frame in range(FRAMES):
            reward += self._ale.act(action)
            if not self._options.skip_break_on_life:
                self._screens.reverse()
                self._read(self._screens[-1])
            elif frame >= FRAMES - 2:
                self._read(self._screens[frame - FRAMES])
            if self._ale.game_over() or (self._options.skip_break_on_life and self._ale.lives() < lives):
                break
        return reward

    def step(self, action: int) -> tuple[float, bool, bool, bool]:
        """Reward, terminated, truncated, life lost; after an end a dummy step that opens the next episode."""
        if self._episode_ended:
            if self._game_ended:
                self._new_game()
            else:
                self._episode_ended = False
                self._show(opens=True)
            return 0.0, False, False, False
        lives = self._ale.lives()
        reward = self._emulate(self.actions[action])
        self._steps += 1
        self._show(opens=False)
        life_lost, over = self._ale.lives() < lives, self._ale.game_over()
        terminated = over or (self._options.episodic_life and life_lost)
        cut = self._steps >= self._options.max_episode_steps
        self._game_ended, self._episode_ended = over or cut, terminated or cut
        reward = float(np.sign(reward)) if self._options.reward_clip else reward
        return reward, terminated, cut and not terminated, life_lost


class Emulators:
    """Emulators side by side with gymnasium's vector interface, restarting in the step after the end."""

    def __init__(self, rom: str, options: AtariOptions, seeds: Sequence[int]):
        self._lanes = [Emulator(rom, options, seed) for seed in seeds]
        first = self._lanes[0]
        self.observation_space = gymnasium.spaces.Box(0, 255, first.observation.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(first.actions))

    def observation(self) -> np.ndarray:
        return np.stack([lane.observation for lane in self._lanes])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        rows = [lane.step(int(action)) for lane, action in zip(self._lanes, actions, strict=True)]
        reward, terminated, truncated, life_lost = (np.array(column) for column in zip(*rows, strict=True))
        return self.observation(), reward, terminated, truncated, {"life_lost": life_lost}

    def close(self) -> None:
        self._lanes.clear()


class AtariPool(HostPool):
    """Tells lost lives."""

    extra_info = ("life_lost",)


def names(asked: str = "") -> list[str]:
    return [*games()]


def make(name: str, num_envs: int, *, copies: int = 1, seed: Seed = 0, **options: Any) -> AtariPool:
    """`copies * num_envs` emulators of the game `name`, with the seeds `lane_seeds(seed, num_envs, copies)`.

    Args:
        options: fields of `AtariOptions`.

    Raises:
        UnknownEnvironment, BadRequest: options that do not exist, or are out of range.
    """
    check_options(f"atari/{name}", options, AtariOptions)
    chosen = AtariOptions(**options)
    ale_py = needs("ale_py", EXTRA, "atari/...")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    pool = Emulators(games()[name], chosen, lane_seeds(seed, num_envs, copies))
    spaces = pool.observation_space, pool.action_space
    steps = chosen.max_episode_steps
    return AtariPool(f"atari/{name}", pool, pool.observation(), num_envs, copies, spaces, steps)
