"""Environments that give numbers which are none: where a run diverged because of one, it says in which and when."""

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.wrappers import ABSURD, REWARD_FAULT


def first_fault(fault: jax.Array) -> jax.Array:
    """The first fault of an update as one number, the metric `replay/fault`: int32, 0 where there is none.

    Args:
        fault: `[T, B]`, as `engram.envs.wrappers.EpisodeStatistics` says what a step gave that is not sane.
    """
    flat = fault.reshape(-1).astype(jnp.int32)
    place = jnp.argmax(flat > 0)
    return jnp.where(flat[place] > 0, 4 * place + flat[place], 0)


def in_words(faults: np.ndarray, first_seed: int, num_envs: int, updates: int, steps: int) -> str | None:
    """The first fault of a chunk in words, None where there is none.

    Args:
        faults: `[updates, seeds]`, of `first_fault`.
        first_seed: of the run.
        num_envs: environments of an agent.
        updates: of the run, before the chunk.
        steps: of each environment in an update.
    """
    found = np.argwhere(faults)
    if not len(found):
        return None
    update, seed = found[0]
    place, kind = divmod(int(faults[update, seed]), 4)
    step, lane = divmod(place, num_envs)
    of_seed = f" of seed {first_seed + seed}" if faults.shape[1] > 1 else ""
    what = "a reward" if kind == REWARD_FAULT else "an observation"
    return (
        f"environment {lane}{of_seed} gave {what} that is not finite or beyond {ABSURD:g} in step "
        f"{(updates + update) * steps + step + 1} of its training"
    )
