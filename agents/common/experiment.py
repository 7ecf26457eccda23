"""The configuration that the experiments of all agents have in common. Each family adds its own beside its agents."""

from dataclasses import dataclass
from typing import Any, ClassVar

from engram.errors import BadRequest


def require_at_least_one(settings: Any, prefix: str, *names: str) -> None:
    """Raises BadRequest where one of these fields is below 1; the message calls it `prefix` and its name."""
    for name in names:
        if getattr(settings, name) < 1:
            raise BadRequest(f"{prefix}{name} must be at least 1, got {getattr(settings, name)}")


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
    """Environment of evaluations where it differs from env: an id, or `?option=value&...` alone for the same one with
    these options in place of env's. Not for planners."""
    seeds: int = 1
    """Number of independent runs side by side in one program."""
    seed: int = 0
    """Seed of the first run; the seeds of the others count up from it."""
    total_steps: int = 1_000_000
    """Environment steps per seed (rounded up to whole log points)."""
    log_points: int = 50
    """Lines of metrics.jsonl; also how often the run can be checkpointed, interrupted and shown."""
    eval_points: int = 5
    """Evaluations during the run, the last one at its end."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints (0: one at every log point)."""

    def __post_init__(self):
        require_at_least_one(self, "", "seeds", "total_steps", "log_points", "eval_points")
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
