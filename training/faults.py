"""Environments that give numbers which are none: where a run diverged because of one, it says in which and when."""

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.wrappers import ABSURD, REWARD_FAULT
from engram.kernels.collectives import Axes, group_count, group_index, largest


def first_fault(fault: jax.Array, axes: Axes = ()) -> jax.Array:
    """The first fault of an update as one number, the metric `replay/fault`: int32, 0 where there is none.

    Args:
        fault: `[T, B]`, as `engram.envs.wrappers.EpisodeStatistics` says what a step gave that is not sane.
        axes: of groups of environments, whose first fault it is (see `engram.kernels.collectives`).
    """
    flat = fault.reshape(-1).astype(jnp.int32)
    own = jnp.argmax(flat > 0)
    step, lane = jnp.divmod(own, fault.shape[1])
    place = (step * group_count(axes) + group_index(axes)) * fault.shape[1] + lane
    none = jnp.iinfo(jnp.int32).max
    first = -largest(-jnp.where(flat[own] > 0, 4 * place + flat[own], none), axes)
    return jnp.where(first < none, first, 0)


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
