"""The mixture of memories: against memories that are each given their own steps alone, and its router by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.memory.base import METRICS, sown
from engram.memory.gla import GLA
from engram.memory.mom import MoM, balance
from tests.memory.test_layers import KEY, WIDTH, check, rms, sigmoid, silu, softplus

pytestmark = pytest.mark.usefixtures("quickly_compiled")
MEMORIES, TOP, HEADS, KEYS, VALUES = 3, 2, 2, 2, 1


@pytest.mark.parametrize("rule", ["gla", "delta"])
def test_mom(rule):
    """Each memory runs over the steps that chose it, gathered, as if there were no others."""

    def of_memory(p, m, q, x):
        """What queries `[t, heads, keys]` find in the m-th memory, which is given the inputs `x[t, width]`."""
        mine = slice(m * HEADS, (m + 1) * HEADS)
        k, v = (
            (x @ p[name]["kernel"]).reshape(len(x), -1, n)[:, mine] for name, n in (("key", KEYS), ("value", VALUES))
        )
        S, y, beta = np.zeros((HEADS, KEYS, VALUES)), np.zeros_like(v), np.ones((len(x), HEADS))
        if rule == "gla":
            logits = x @ p["decay_in"]["kernel"] @ p["decay_out"]["kernel"] + p["decay_out"]["bias"]
            keep = sigmoid(logits).reshape(len(x), -1, KEYS)[:, mine] ** (1 / 16)
            q = q / np.sqrt(KEYS)
        else:
            q, k = (silu(a) / np.sqrt((silu(a) ** 2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
            v, beta = silu(v), sigmoid(x @ p["beta"]["kernel"] + p["beta"]["bias"])[:, mine]
            rates = np.exp(p["A_log"]) * softplus(x @ p["dt"]["kernel"] + p["dt"]["bias"])
            keep = np.exp(-rates)[:, mine, None] * np.ones(KEYS)
        for t in range(len(x)):
            for i in range(HEADS):
                S[i] = np.diag(keep[t, i]) @ S[i]
                new = v[t, i] if rule == "gla" else beta[t, i] * (v[t, i] - S[i].T @ k[t, i])
                S[i] += np.outer(k[t, i], new)
                y[t, i] = S[i].T @ q[t, i]
        return y

    def recurrence(p):
        def of_episode(x):
            q = (x @ p["query"]["kernel"]).reshape(len(x), HEADS, KEYS)
            logits = x @ p["router"]["kernel"]
            chosen = np.argsort(-logits, -1, kind="stable")[:, :TOP]
            y = of_memory(p, MEMORIES, q, x)  # the shared one
            for m in range(MEMORIES):
                steps = np.flatnonzero((chosen == m).any(-1))
                of_chosen = np.exp(np.take_along_axis(logits, chosen, -1)).sum(-1)
                weight = (np.exp(logits[:, m]) / of_chosen)[steps, None, None]
                y[steps] += weight * of_memory(p, m, q[steps], x[steps])
            return (rms(p, y).reshape(len(x), -1) * silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"]

        return of_episode

    options: Any = {"memories": MEMORIES, "top": TOP, "rule": rule, "heads": HEADS, "expand_k": 1.0, "chunk": 2}
    check(MoM(WIDTH, param_dtype=jnp.float64, **options), recurrence)


def random_parameters(memory, x):
    """Random parameters, and resets that open no episode."""
    rng, reset = np.random.default_rng(0), jnp.zeros(x.shape[:2], bool)
    shapes: Any = jax.eval_shape(memory.init, KEY, memory.initial_state(x.shape[1]), x, reset)["params"]
    return jax.tree.map(lambda p: rng.normal(scale=0.6, size=p.shape).astype(np.float32), shapes), reset


@pytest.mark.parametrize("rule", ["gla", "delta"])
def test_memories_that_are_not_chosen_stay_bit_for_bit(rule):
    rng = np.random.default_rng(1)
    x = np.abs(rng.normal(size=(6, 1, WIDTH))).astype(np.float32)
    memory = MoM(WIDTH, memories=MEMORIES, heads=HEADS, expand_k=1.0, rule=rule, chunk=4, backend="xla")
    p, reset = random_parameters(memory, x)
    p = {**p, "router": {"kernel": np.tile([2.0, 1.0, 3.0], (WIDTH, 1))}}  # inputs are positive
    before = rng.normal(size=memory.initial_state(1).shape).astype(np.float32)

    @jax.jit
    def states(p, before):
        after, left = memory.apply({"params": p}, before, x, reset, mutable=[METRICS])
        return after[0], memory.apply({"params": p}, before, x[0], reset[0], method="step")[0], sown(left)

    *after, numbers = states(p, before)
    for state in after:
        same = (np.asarray(state) == before).reshape(MEMORIES + 1, -1)
        assert same[1].all()
        assert not same[[0, 2, 3]].any()
    assert 1 < float(numbers["memory_balance"]) <= MEMORIES / TOP


def routed(kernel, x, top=TOP):
    memory = MoM(WIDTH, memories=np.shape(kernel)[-1], top=top, heads=HEADS)
    parameters = {"params": {"router": {"kernel": kernel}}}
    return jax.jit(lambda p, x: memory.apply(p, x, method="route"))(parameters, x)


def test_equal_logits_choose_the_first_memories():
    weights, chosen = routed(np.zeros((WIDTH, 5)), jnp.ones((3, WIDTH)), top=3)
    np.testing.assert_array_equal(chosen, np.tile([1, 1, 1, 0, 0, 1], (3, 1)))
    np.testing.assert_allclose(weights, np.tile([1 / 3, 1 / 3, 1 / 3, 0, 0, 1], (3, 1)), rtol=1e-6)
    _, chosen = routed(np.tile([0.0, 1.0, 0.0, 1.0, 1.0], (WIDTH, 1)), jnp.ones((3, WIDTH)), top=2)
    np.testing.assert_array_equal(chosen, np.tile([0, 1, 0, 1, 0, 1], (3, 1)))


def test_large_logits_choose_and_weigh():
    """Probabilities of 0 in float32 are told apart by their logits."""
    weights, chosen = routed(np.tile([500.0, -3.0, -2.0, 100.0], (WIDTH, 1)), jnp.full((1, WIDTH), -1.0))
    np.testing.assert_array_equal(chosen, [[0, 1, 1, 0, 1]])
    np.testing.assert_allclose(weights, [[0, sigmoid(4.0), sigmoid(-4.0), 0, 1]], rtol=1e-5)


def test_the_router_learns_by_the_weights_of_what_it_chose():
    kernel = np.tile([2.0, -1.0, 1.0], (WIDTH, 1)) / WIDTH
    gradient = jax.grad(lambda kernel: routed(kernel, jnp.ones((1, WIDTH)))[0][0, 0])(kernel)
    slope = sigmoid(1.0) * sigmoid(-1.0)
    np.testing.assert_allclose(gradient, np.tile([slope, 0, -slope], (WIDTH, 1)), rtol=1e-5)


def test_memories_that_are_alike_are_one():
    """All are chosen and hold the same: their mean and the shared one are twice gated linear attention."""
    x = np.random.default_rng(1).normal(size=(6, 2, WIDTH)).astype(np.float32)
    one, many = GLA(WIDTH, heads=HEADS, expand_v=0.5), MoM(WIDTH, memories=3, top=3, heads=HEADS)
    p, reset = random_parameters(one, x)
    q, k, v, gate = np.split(p["inp"]["kernel"], 4, -1)
    tiled = jax.tree.map(lambda part: np.concatenate([part] * 4, -1), {"k": k, "v": v / 2, "decay": p["gate_out"]})
    alike = {
        **{name: {"kernel": part} for name, part in (("query", q), ("key", tiled["k"]), ("value", tiled["v"]))},
        **{"decay_in": p["gate_in"], "decay_out": tiled["decay"], "gate": {"kernel": gate}},
        **{"router": {"kernel": jnp.ones((WIDTH, 3))}, "norm": p["norm"], "out": p["out"]},
    }
    expected: Any = jax.jit(one.apply)({"params": p}, one.initial_state(2), x, reset)
    y: Any = jax.jit(many.apply)({"params": alike}, many.initial_state(2), x, reset)
    np.testing.assert_allclose(y[1], expected[1], atol=1e-5)


def test_balance_is_one_where_memories_are_used_alike():
    chosen = jnp.array([[True, True, False, False], [False, False, True, True]])
    assert balance(jnp.zeros((2, 4)), chosen) == pytest.approx(1)
    first = chosen[:1]
    assert balance(jnp.where(first, 50.0, 0.0), first) == pytest.approx(4 / 2)
    # Half of all choices are of each of two memories, with mean probabilities of 0.7 and 0.1.
    assert balance(jnp.log(jnp.array([[0.7, 0.1, 0.1, 0.1]])), first) == pytest.approx(4 * (0.7 + 0.1) / 2)
