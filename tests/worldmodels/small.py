"""A world model that compiles fast."""

from typing import Any

import jax
import jax.numpy as jnp

from memory import make_memory
from worldmodels.networks import VectorDecoder, VectorEncoder
from worldmodels.world_model import LossSettings, Rows, WorldModel

LOSS = LossSettings(free_nats=1.0, representation=0.1, seq_reset=True, reward_index="after")


def world_model(memory: str = "mamba2", obs: int = 6, width: int = 16, **fields: Any) -> WorldModel:
    """Two layers of `memory` between dense coders of binary observations."""
    options = {"head": 8} if memory == "mamba2" else {}
    chosen = {"categoricals": 3, "classes": 4, "head": 8, "unimix": 0.01} | fields
    return WorldModel(
        memory=make_memory(memory, width, layers=2, rms=True, **options),
        encoder=VectorEncoder((12,)),
        decoder=VectorDecoder((12,), obs),
        reconstruction="binary",
        **chosen,
    )


def initialise(world: WorldModel, rows: Rows, noise: float = 0.5) -> Any:
    """Its parameters, with noise on all of them, so that biases and scales matter too."""
    init = jax.jit(lambda: world.init(jax.random.key(0), rows, jax.random.key(1), LOSS, method="loss"))
    leaves, structure = jax.tree.flatten(init()["params"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [p + noise * jax.random.normal(key, p.shape) / max(1, p.shape[0]) ** 0.5 for p, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, [jnp.asarray(p, jnp.float32) for p in noisy])
