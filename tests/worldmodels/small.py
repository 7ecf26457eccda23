"""A world model that compiles fast."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.memory import make_memory
from engram.worldmodels.networks import VectorDecoder, VectorEncoder
from engram.worldmodels.world_model import LossSettings, Rows, WorldModel

LOSS = LossSettings(free_nats=1.0, representation=0.1, seq_reset=True)


def world_model(memory: str, obs: int = 6, width: int = 16, **fields: Any) -> WorldModel:
    """One layer of `memory` between dense coders of binary observations."""
    options: Any = {"head": 8} if memory == "mamba2" else {}
    chosen = {"categoricals": 3, "classes": 4, "head": 8, "unimix": 0.01} | fields
    return WorldModel(
        memory=make_memory(memory, width, rms=True, **options),
        encoder=VectorEncoder((12,)),
        decoder=VectorDecoder((12,), obs),
        reconstruction="binary",
        **chosen,
    )


def random_parameters(world: WorldModel, rows: Rows) -> Any:
    """All of them random, so that biases and scales matter too."""
    rng = np.random.default_rng(2)

    def draw(path, p):
        noise = rng.normal(size=p.shape) * (p.shape[0] ** -0.5 if len(p.shape) > 1 else 0.3)
        return jnp.asarray(noise + (path[-1].key == "scale"), p.dtype)

    init = jax.eval_shape(lambda: world.init(jax.random.key(0), rows, jax.random.key(1), LOSS, method="loss"))
    return jax.tree_util.tree_map_with_path(draw, init["params"])
