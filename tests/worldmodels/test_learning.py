"""What the world model learns, without any policy: to recall, to forget at resets, and to play Catch in its head."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.presets import DRAMA_SMALL, SMALL_WORLD
from envs.registry import make_vector
from envs.wrappers import FlattenObservation
from memory import make_memory
from scripts.common import coders, options_of
from worldmodels import latents
from worldmodels.world_model import LossSettings, Rows, WorldModel

LOSS = LossSettings(DRAMA_SMALL.free_nats, DRAMA_SMALL.representation, seq_reset=True, reward_index="after")


def small_world(space: Any) -> WorldModel:
    """The world model of the small preset."""
    sizes = SMALL_WORLD
    options = options_of("mamba2", sizes.memory_options)
    encoder, decoder = coders(sizes, space)
    return WorldModel(
        memory=make_memory("mamba2", sizes.width, layers=sizes.layers, rms=True, **options),
        encoder=encoder,
        decoder=decoder,
        reconstruction="binary",
        categoricals=sizes.categoricals,
        classes=sizes.classes,
        head=sizes.head,
        unimix=sizes.unimix,
    )


def train(world: WorldModel, batch, settings: LossSettings, updates: int, rate: float = 3e-3):
    """Parameters after `updates` steps of Adam on fresh batches `batch(key)`, and the metrics of the last hundred."""
    optimiser = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate))

    @jax.jit
    def run(key):
        init_key, key = jax.random.split(key)
        params = world.init(init_key, batch(init_key), init_key, settings, method="loss")["params"]

        def one_step(carry, key):
            params, state = carry
            data_key, loss_key = jax.random.split(key)
            loss = lambda p: world.apply({"params": p}, batch(data_key), loss_key, settings, method="loss")  # noqa: E731
            gradient, metrics = jax.grad(loss, has_aux=True)(params)
            step, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, step), state), metrics

        (params, _), metrics = jax.lax.scan(one_step, (params, optimiser.init(params)), jax.random.split(key, updates))
        return params, jax.tree.map(lambda x: x[-100:].mean(), metrics)

    return run(jax.random.key(0))


# ---------------------------------------------------------------------------------------------------------------------
# Recall

SYMBOLS, NOISE = 8, 2


def recall_rows(key: jax.Array, batch: int, delay: int, forget: bool) -> Rows:
    """A symbol, `delay` steps of noise, a question, whose reward is the number of the symbol. With `forget` an episode
    opens in between."""
    keys = jax.random.split(key, 4)
    symbol = jax.random.randint(keys[0], (batch,), 0, SYMBOLS)
    shown = jax.random.randint(keys[1], (batch,), 0, 3)
    time = jnp.arange(delay + 4)[:, None]
    first, asked = time == shown, time == shown + delay
    noise = jax.random.bernoulli(keys[2], 0.5, (len(time), batch, NOISE)).astype(jnp.float32)
    obs = jnp.concatenate([first[..., None] * jax.nn.one_hot(symbol, SYMBOLS), asked[..., None], noise], -1)
    opens = jax.random.randint(keys[3], (batch,), shown + 1, shown + delay + 1)
    zeros = jnp.zeros(first.shape)
    reset = jnp.broadcast_to(time == 0, zeros.shape) | (forget & (time == opens))
    return Rows(obs, jnp.zeros((*zeros.shape, 1)), jnp.where(asked, symbol, 0.0), zeros, reset)
