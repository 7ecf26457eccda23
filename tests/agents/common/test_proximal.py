"""The clipped objective against its definition in float64, and how minibatches are dealt."""

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.proximal import clipped_surrogate, deal_minibatches


def test_clipped_objective_and_its_gradient_by_definition():
    """Eq. 7; a gradient flows where moving on would not leave the range on the side that the advantage asks for."""
    rng = np.random.default_rng(0)
    new, old, advantage = rng.normal(size=400), rng.normal(size=400), rng.normal(size=400)
    ratio, clip = np.exp(new - old), 0.3
    objective = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    flows = np.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    assert 100 < flows.sum() < 300

    def total(log_prob):
        out = clipped_surrogate(log_prob, jnp.asarray(old), jnp.asarray(advantage), clip)
        return jnp.sum(out[0]), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(new))
    for found, expected in zip(out, (objective, ratio, ratio - 1 - (new - old)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, np.where(flows, ratio * advantage, 0.0), rtol=1e-4)


def test_every_epoch_deals_every_row_anew():
    dealt = np.asarray(deal_minibatches(jax.random.key(0), 24, 3, 4))
    assert dealt.shape == (12, 6)
    epochs = dealt.reshape(3, 24)
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(24), (3, 24)))
    assert len({tuple(epoch) for epoch in (*epochs, np.arange(24))}) == 4
