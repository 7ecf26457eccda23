"""gymnasium's environments, ALE included, called back from the compiled program.

`gymnasium/ALE/Pong-v5` is ale-py's own vector environment with its own defaults, of which two differ from envpool's:
rewards are clipped (`?reward_clipping=false`), and with `episodic_life` a lost life begins a whole new game.
"""

from typing import Any

import ale_py
import gymnasium
from gymnasium.vector import AutoresetMode

from engram.envs.host.pool import CallbackPool

gymnasium.register_envs(ale_py)


def names() -> list[str]:
    """Registered ids but those that are functional JAX programs themselves or convert older interfaces."""
    specs = gymnasium.registry.values()
    return [spec.id for spec in specs if spec.namespace in (None, "ALE") and not spec.name.startswith("GymV")]


def make(name: str, num_envs: int, *, copies: int = 1, seed: int = 0, **options: Any) -> CallbackPool:
    """`copies * num_envs` environments `name` in this process; `options` are the environment's own.

    Raises gymnasium's errors for what it cannot make (an option or a package that is missing).
    """
    lanes = copies * num_envs
    if name.startswith("ALE/"):
        pool = gymnasium.make_vec(name, num_envs=lanes, autoreset_mode=AutoresetMode.NEXT_STEP, **options)
    else:
        vector = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        pool = gymnasium.make_vec(name, lanes, "sync", vector_kwargs=vector, **options)
    first_observation, _ = pool.reset(seed=seed)
    spaces = pool.single_observation_space, pool.single_action_space
    max_steps = gymnasium.spec(name).max_episode_steps
    return CallbackPool(f"gymnasium/{name}", pool, first_observation, num_envs, copies, spaces, max_steps)
