"""The configuration that the experiments of all agents have in common. Each family adds its own beside its agents."""

from dataclasses import dataclass
from typing import ClassVar

from engram.agents.common.checks import require_at_least
from engram.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings that the experiments of all agents share."""

    agent: ClassVar[str]
    """Name of the agent in `engram.agents.registry`."""
    choice: ClassVar[str]
    """Name of the field that `compare` varies."""
    row: ClassVar[str] = "env"
    """Name of the field with the task to be learned, the rows of a comparison."""

    env: str
    """Environment id, such as popgym/RepeatPreviousEasy, gymnax/CartPole-v1, atari/Pong or my_module:MyEnvironment."""
    eval_env: str = ""
    """Environment of evaluations where it differs from env: an id, or ?option=value&... alone for the id of env with
    other options. Planners have none."""
    seeds: int = 1
    """Number of independent runs side by side in one program."""
    seed: int = 0
    """Seed of the first run; the seeds of the others count up from it."""
    total_steps: int = 1_000_000
    """Environment steps per seed (rounded up to whole log points)."""
    log_points: int = 50
    """Log points of the run: lines of metrics.jsonl, at most. Between them it is not checkpointed, stopped or shown."""
    eval_points: int = 5
    """Evaluations during the run, the last one at its end."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints, at least (0: one at every log point)."""

    def __post_init__(self):
        require_at_least(self, "", 1, "seeds", "total_steps", "log_points", "eval_points")
        require_at_least(self, "", 0, "checkpoint_seconds")
        if not 0 <= self.seed < 2**32 - self.seeds:
            raise BadRequest(f"seed must lie in [0, 2^32 - seeds), got {self.seed}")

    @property
    def evaluated(self) -> str:
        """The id of the environment of evaluations."""
        if self.eval_env.startswith("?"):
            return self.env.partition("?")[0] + self.eval_env.removesuffix("?")
        return self.eval_env or self.env

    @property
    def chosen(self) -> str:
        """The memory or algorithm of this run."""
        return getattr(self, self.choice)

    @property
    def label(self) -> str:
        """What tells this run from others of its task: in names of folders, tables and pictures."""
        return self.chosen

    @property
    def task(self) -> str:
        """The task to be learned: the environment, or the dataset."""
        return getattr(self, self.row)

    @property
    def identity(self) -> dict[str, str]:
        """The fields that name the task and the column of a comparison, for summaries."""
        return {"env": self.env, self.choice: self.chosen}
