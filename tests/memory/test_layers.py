"""Each layer against an independent float64 computation: numpy, one row and one step at a time, or flax's cells."""

import itertools
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

from engram.kernels.delta_scan import delta_scan
from engram.kernels.gla_scan import gla_scan
from engram.kernels.linear_scan import linear_scan_planes
from engram.kernels.max_plus_scan import max_plus_scan
from engram.kernels.slstm_scan import slstm_scan
from engram.kernels.window_scan import window_scan
from engram.memory import Memory, make_memory
from engram.memory.aaren import Aaren
from engram.memory.agalite import AGaLiTe
from engram.memory.attention import Attention
from engram.memory.base import sown
from engram.memory.deltanet import DeltaNet
from engram.memory.ffm import FFM
from engram.memory.framestack import FrameStack
from engram.memory.gla import GLA
from engram.memory.gru import GRU
from engram.memory.gtrxl import GTrXL
from engram.memory.layers import Dense, orthogonal
from engram.memory.lru import LRU
from engram.memory.lstm import LSTM
from engram.memory.mamba import Mamba
from engram.memory.mamba2 import Mamba2
from engram.memory.mamba3 import Mamba3
from engram.memory.mingru import MinGRU
from engram.memory.mlstm import MLSTM
from engram.memory.none import NoMemory
from engram.memory.para import Para
from engram.memory.rnn import RNN, bounded
from engram.memory.rwkv7 import RWKV7
from engram.memory.s4d import S4D
from engram.memory.scout import Scout
from engram.memory.seqboat import SeqBoat
from engram.memory.shm import SHM
from engram.memory.slstm import SLSTM
from engram.memory.tcn import TCN
from engram.memory.ttt import TTT

T, B, WIDTH = 9, 2, 4
KEY = jax.random.key(0, impl="unsafe_rbg")  # the default generator takes long to compile
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def run(memory: Memory):
    """Random float64 parameters, inputs, resets (row 0 at 0 and 4, row 1 never) and the memory's outputs, as numpy."""
    rng = np.random.default_rng(0)
    x, reset = rng.normal(size=(T, B, WIDTH)), np.zeros((T, B), bool)
    reset[[0, 4], 0] = True
    with jax.enable_x64(True):
        state = memory.initial_state(B)
        shapes: Any = jax.eval_shape(memory.init, KEY, state, x, reset)
        parameters = jax.tree.map(lambda p: rng.normal(scale=0.6, size=p.shape), shapes)
        _, y = jax.jit(memory.apply)(parameters, state, x, reset)
        return parameters["params"], x, reset, np.asarray(y)


def episodes(reset):
    """`(row, start, end)` of every episode."""
    for b in range(reset.shape[1]):
        starts = np.unique(np.append(0, np.flatnonzero(reset[:, b])))
        for start, end in zip(starts, [*starts[1:], len(reset)], strict=True):
            yield b, start, end


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softplus(x):
    return np.log1p(np.exp(x))


def rms(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]


def convolved(x, weight):
    """Causal convolution of one episode by its definition."""
    padded = np.concatenate([np.zeros((len(weight) - 1, x.shape[1])), x])
    return np.stack([(padded[t : t + len(weight)] * weight).sum(0) for t in range(len(x))])


def gated(p, y):
    value, gate = np.split(gelu(y) @ p["out"]["kernel"] + p["out"]["bias"], 2, -1)
    return value * sigmoid(gate)


def check(memory, recurrence):
    """`recurrence(parameters)` gives a function of one episode's inputs `(length, width)` to its outputs."""
    p, x, reset, y = run(memory)
    of_episode = recurrence(p)
    for b, start, end in episodes(reset):
        np.testing.assert_allclose(y[start:end, b], of_episode(x[start:end, b]), atol=1e-10)


def linear(decay, drive):
    h, states = 0, []
    for a, v in zip(np.broadcast_to(decay, drive.shape), drive, strict=True):
        h = a * h + v
        states.append(h)
    return np.stack(states)


def test_lru():
    def recurrence(p):
        modulus = np.exp(-np.exp(p["nu"]))
        lam, gamma = modulus * np.exp(1j * np.exp(p["theta"])), np.sqrt(1 - modulus**2)
        B_re, B_im = np.split(p["B"].T, 2)
        C_re, minus_C_im = np.split(p["C"].T, 2, 1)
        matrix_B, matrix_C = B_re + 1j * B_im, C_re - 1j * minus_C_im

        def of_episode(x):
            h = linear(lam, gamma * (x @ matrix_B.T))
            return gated(p["out"], (h @ matrix_C.T).real + p["D"] * x)

        return of_episode

    check(LRU(WIDTH, state=3, param_dtype=jnp.float64), recurrence)


def test_recurrent_trace_units():
    """The published form: two real numbers that a rotation mixes."""

    def recurrence(p):
        r, theta = np.exp(-np.exp(p["nu"])), np.exp(p["theta"])

        def of_episode(x):
            W1, W2 = np.split(p["B"], 2, 1)
            a, b, y = np.zeros(3), np.zeros(3), []
            for now in x:
                a, b = r * np.cos(theta) * a - r * np.sin(theta) * b, r * np.cos(theta) * b + r * np.sin(theta) * a
                a, b = a + np.sqrt(1 - r**2) * (now @ W1), b + np.sqrt(1 - r**2) * (now @ W2)
                y.append(np.maximum(np.concatenate([a, b]), 0) @ p["out"]["kernel"] + p["out"]["bias"])
            return np.stack(y)

        return of_episode

    check(LRU(WIDTH, state=3, kind="rtu", param_dtype=jnp.float64), recurrence)


def test_rotrnn():
    """The published form: every head turns by an orthogonal matrix, here in the basis in which that is planes."""
    heads, planes = 2, 3

    def recurrence(p):
        C_re, minus_C_im = np.split(p["C"], 2)

        def of_episode(x):
            y = p["D"] * x
            for h in range(heads):
                mine = slice(h * planes, (h + 1) * planes)
                B = np.stack([part[:, mine] for part in np.split(p["B"], 2, 1)], -1).reshape(WIDTH, 2 * planes).T
                C = np.stack([C_re[mine], minus_C_im[mine]], 1).reshape(2 * planes, WIDTH)
                gamma, A = np.exp(-np.exp(p["nu"][h])), np.zeros((2 * planes, 2 * planes))
                for i, angle in enumerate(p["theta"][mine]):
                    cos, sin = np.cos(angle), np.sin(angle)
                    A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[cos, -sin], [sin, cos]]
                xi, state = np.sqrt((1 - gamma**2) / np.trace(B.T @ B)), np.zeros(2 * planes)
                for t in range(len(x)):
                    state = gamma * A @ state + xi * B @ x[t]
                    y[t] = y[t] + state @ C
            return gated(p["out"], y)

        return of_episode

    check(LRU(WIDTH, state=heads * planes, kind="rotrnn", heads=heads, param_dtype=jnp.float64), recurrence)


def test_rotrnn_starts_and_stays_as_published():
    """Rates log-uniform; angles uniform; a head's state has the variance of one input of variance 1."""
    memory = LRU(16, state=256, kind="rotrnn", heads=128, r_min=0.5, r_max=0.99, min_phase=0.0, max_phase=0.3)
    x = jax.random.normal(jax.random.key(1), (400, 20, 16))
    state, reset = memory.initial_state(20), jnp.zeros((400, 20), bool)
    parameters: Any = jax.jit(memory.init)(KEY, state, x, reset)
    rate, angle = np.exp(parameters["params"]["nu"]), parameters["params"]["theta"]
    spread = stats.uniform(np.log(-np.log(0.99)), np.log(np.log(0.5) / np.log(0.99)))
    assert stats.kstest(np.log(rate), spread.cdf).pvalue > 0.01
    assert stats.kstest(angle, stats.uniform(0, 0.3).cdf).pvalue > 0.01
    after, _ = jax.jit(memory.apply)(parameters, state, x, reset)
    squares = np.abs(after).reshape(20, 128, 2) ** 2
    np.testing.assert_allclose(squares.sum(-1).mean(), 1, rtol=0.1)


def test_lru_starts_on_its_ring():
    memory = LRU(WIDTH, state=2000, r_min=0.5, r_max=0.8, min_phase=0.0, max_phase=0.3)
    x, reset = jnp.ones((1, 1, WIDTH)), jnp.ones((1, 1), bool)
    p = jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)["params"]
    modulus, phase = np.exp(-np.exp(p["nu"])), np.exp(p["theta"])
    assert 0.5 <= modulus.min() < modulus.max() <= 0.8
    assert 0 <= phase.min() < phase.max() <= 0.3
    spread = LRU(WIDTH, state=2000, min_phase=0.01, max_phase=3.0)
    log_phase = jax.jit(spread.init)(KEY, spread.initial_state(1), x, reset)["params"]["theta"]
    assert stats.kstest(log_phase, stats.uniform(np.log(0.01), np.log(300)).cdf).pvalue > 0.01
    # Uniform in area: modulus^2 is uniform between the squares; four standard errors of its mean.
    assert abs((modulus**2).mean() - (0.25 + 0.64) / 2) < 4 * 0.39 / np.sqrt(12 * 2000)


def test_mingru():
    def recurrence(p):
        def of_episode(x):
            gate, candidate = np.split(x @ p["inp"]["kernel"] + p["inp"]["bias"], 2, -1)
            z = sigmoid(gate)
            return gated(p["out"], linear(1 - z, z * candidate))

        return of_episode

    check(MinGRU(WIDTH, expand=2, param_dtype=jnp.float64), recurrence)


def test_mamba():
    state = 3

    def recurrence(p):
        A = -np.exp(p["A_log"])

        def of_episode(x):
            u, z = np.split(x @ p["in_proj"]["kernel"], 2, -1)
            u = silu(convolved(u, p["conv_weight"]) + p["conv_bias"])
            projected = u @ p["x_proj"]["kernel"]
            low_rank, matrix_B, matrix_C = np.split(projected, [1, 1 + state], -1)
            dt = softplus(low_rank @ p["dt_proj"]["kernel"] + p["dt_proj"]["bias"])
            drive = matrix_B[:, :, None] * (dt * u)[:, None]
            h = linear(np.exp(dt[:, None] * A), drive)
            y = np.einsum("tn,tnd->td", matrix_C, h) + p["D"] * u
            return (y * silu(z)) @ p["out_proj"]["kernel"]

        return of_episode

    check(Mamba(WIDTH, state=state, param_dtype=jnp.float64), recurrence)


def test_mamba_starts_as_published():
    memory = Mamba(64, start="published")
    x, reset = jnp.ones((1, 1, 64)), jnp.ones((1, 1), bool)
    p = jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)["params"]
    dt = np.log1p(np.exp(np.asarray(p["dt_proj"]["bias"], np.float64)))
    assert 0.99e-3 < dt.min() < 3e-3 < 3e-2 < dt.max() < 1.01e-1
    np.testing.assert_allclose(np.exp(p["A_log"][:, 5]), np.arange(1, 17), rtol=1e-5)


@pytest.mark.parametrize("negative", [False, True])
def test_mamba2(negative):
    channels, state, heads = 2 * WIDTH, 3, 2

    def recurrence(p):
        def of_episode(x):
            z, mixed, dt = np.split(x @ p["in_proj"]["kernel"], [channels, 2 * channels + 2 * state], -1)
            mixed = silu(convolved(mixed, p["conv_weight"]) + p["conv_bias"])
            u, matrix_B, matrix_C = np.split(mixed, [channels, channels + state], -1)
            u, dt = u.reshape(-1, heads, channels // heads), softplus(dt + p["dt_bias"])
            h, y = np.zeros((heads, channels // heads, state)), np.zeros_like(u)
            for t in range(len(x)):
                for i in range(heads):
                    decay = np.exp(-np.exp(p["A_log"][i]) * dt[t, i])
                    decay = 2 * decay - 1 if negative else decay
                    h[i] = decay * h[i] + dt[t, i] * np.outer(u[t, i], matrix_B[t])
                    y[t, i] = h[i] @ matrix_C[t] + p["D"][i] * u[t, i]
            return rms(p, y.reshape(-1, channels) * silu(z)) @ p["out_proj"]["kernel"]

        return of_episode

    check(Mamba2(WIDTH, state=state, head=4, negative=negative, chunk=2, param_dtype=jnp.float64), recurrence)


def test_mamba2_has_the_published_size():
    """Wang et al. 2025 ("Drama") count 1,604,304 for a layer of width 512, the norm in front (512) included."""
    memory = Mamba2(512)
    x, reset = jnp.ones((1, 1, 512)), jnp.ones((1, 1), bool)
    parameters = jax.eval_shape(memory.init, jax.random.key(0), memory.initial_state(1), x, reset)
    assert sum(p.size for p in jax.tree.leaves(parameters)) == 1_604_304 - 512


@pytest.mark.parametrize("turning", ["half", "all", "none"])
def test_mamba3(turning):
    """The published recurrence: the state turns, not the keys, and the step before is written again."""
    channels, state, heads = 2 * WIDTH, 4, 2
    pairs = {"half": 1, "all": 2, "none": 0}[turning]

    def normalised(p, kind, x):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[f"norm_{kind}"]["scale"]
        return x[:, None] + p[f"bias_{kind}"]

    def recurrence(p):
        sizes = np.cumsum([channels, channels, state, state, heads, heads, heads])

        def of_episode(x):
            z, v, k, q, dt, rate, share, angle = np.split(x @ p["in_proj"]["kernel"], sizes, -1)
            v, dt, share = v.reshape(len(x), heads, -1), softplus(dt + p["dt_bias"]), sigmoid(share)
            k, q, rate = normalised(p, "k", k), normalised(p, "q", q), np.maximum(softplus(rate), 1e-4)
            S, y, before = np.zeros((heads, state, channels // heads)), np.zeros_like(v), np.zeros((heads, state, 4))
            for t in range(len(x)):
                for i in range(heads):
                    R = np.eye(state)
                    for j in range(pairs):
                        cos, sin = np.cos(dt[t, i] * angle[t, j]), np.sin(dt[t, i] * angle[t, j])
                        R[np.ix_([j, pairs + j], [j, pairs + j])] = [[cos, sin], [-sin, cos]]
                    a, write = np.exp(-rate[t, i] * dt[t, i]), np.outer(k[t, i], v[t, i])
                    S[i] = a * R @ (S[i] + (1 - share[t, i]) * dt[t, i] * before[i]) + share[t, i] * dt[t, i] * write
                    before[i] = write
                    y[t, i] = S[i].T @ q[t, i] + p["D"][i] * v[t, i]
            return (y.reshape(-1, channels) * silu(z)) @ p["out_proj"]["kernel"]

        return of_episode

    options: Any = {"state": state, "head": 4, "turning": turning, "chunk": 2}
    check(Mamba3(WIDTH, **options, param_dtype=jnp.float64), recurrence)


def elu_feature(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def dpfp_feature(x):
    both = np.maximum(np.concatenate([x, -x]), 0)
    return np.concatenate([both * np.roll(both, i) for i in (1, 2, 3)])


@pytest.mark.parametrize("negative", [False, True])
def test_gla(negative):
    heads, keys = 2, 1

    def recurrence(p):
        def of_episode(x):
            q, k, v, gate = np.split(x @ p["inp"]["kernel"], [2, 4, 4 + WIDTH], -1)
            logits = x @ p["gate_in"]["kernel"] @ p["gate_out"]["kernel"] + p["gate_out"]["bias"]
            decay = 2 * sigmoid(logits) - 1 if negative else sigmoid(logits) ** (1 / 16)
            q, k, v, decay = (a.reshape(len(x), heads, -1) for a in (q, k, v, decay))
            S, y = np.zeros((heads, keys, WIDTH // heads)), np.zeros_like(v)
            for t in range(len(x)):
                for i in range(heads):
                    S[i] = np.diag(decay[t, i]) @ S[i] + np.outer(k[t, i], v[t, i])
                    y[t, i] = S[i].T @ q[t, i] / np.sqrt(keys)
            return (rms(p, y).reshape(-1, WIDTH) * silu(gate)) @ p["out"]["kernel"]

        return of_episode

    check(GLA(WIDTH, heads=heads, negative=negative, chunk=2, param_dtype=jnp.float64), recurrence)


@pytest.mark.parametrize("relative", ["retnet", "linear transformer", "fast weights"])
def test_relatives_of_gla(relative):
    """Sums over the whole past of an episode by their definition, with no state."""
    heads, keys = 2, 2
    options: Any = {
        "retnet": {"decay": "fixed"},
        "linear transformer": {"decay": "none", "feature": "elu", "normalise": "running"},
        "fast weights": {"decay": "none", "feature": "dpfp", "normalise": "sum"},
    }[relative]

    def recurrence(p):
        def of_episode(x):
            q, k, v, gate = np.split(x @ p["inp"]["kernel"], [4, 8, 8 + WIDTH], -1)
            q, k, v = (a.reshape(len(x), heads, -1) for a in (q, k, v))
            y = np.zeros_like(v)
            for t in range(len(x)):
                for i in range(heads):
                    weights = np.zeros(t + 1)
                    for s in range(t + 1):
                        if relative == "retnet":
                            weights[s] = (1 - 2.0 ** (-5 - i)) ** (t - s) * (q[t, i] @ k[s, i]) / np.sqrt(keys)
                        elif relative == "linear transformer":
                            weights[s] = elu_feature(q[t, i]) @ elu_feature(k[s, i])
                        else:
                            a, b = dpfp_feature(q[t, i]), dpfp_feature(k[s, i])
                            weights[s] = (a / (a.sum() + 1e-6)) @ (b / (b.sum() + 1e-6))
                    if relative == "linear transformer":
                        weights /= weights.sum() + 1e-6
                    y[t, i] = weights @ v[: t + 1, i]
            return (rms(p, y).reshape(-1, WIDTH) * silu(gate)) @ p["out"]["kernel"]

        return of_episode

    check(GLA(WIDTH, heads=heads, expand_k=1.0, chunk=2, param_dtype=jnp.float64, **options), recurrence)


def published_mlstm(p, heads, sigmoid_gate, cap, negative, x):
    """One episode of the published cell, not stabilised."""
    u, z = np.split(x @ p["up"]["kernel"], 2, -1)
    mixed = silu(convolved(u, p["conv_weight"]) + p["conv_bias"])
    blocks = p["qkv"].shape[-1]

    def product(a, weight):
        return np.einsum("tgi,gij->tgj", a.reshape(len(x), -1, blocks), weight).reshape(len(x), -1)

    q, k, v = product(mixed, p["qkv"][0]), product(mixed, p["qkv"][1]), product(u, p["qkv"][2])
    qkv = np.concatenate([q, k, v], -1)
    i, f = (qkv @ p[gate]["kernel"] + p[gate]["bias"] for gate in ("input", "forget"))
    if cap:
        i, f = cap * np.tanh(i / cap), cap * np.tanh(f / cap)
    q, k, v = (a.reshape(len(x), heads, -1) for a in (q, k, v))
    i, f, size = sigmoid(i) if sigmoid_gate else np.exp(i), sigmoid(f), k.shape[-1]
    f = 2 * f - 1 if negative else f
    C, n, y = np.zeros((heads, size, size)), np.zeros((heads, size)), np.zeros_like(v)
    for t in range(len(x)):
        for h in range(heads):
            key = k[t, h] / np.sqrt(size)
            C[h] = f[t, h] * C[h] + i[t, h] * np.outer(key, v[t, h])
            n[h] = f[t, h] * n[h] + i[t, h] * key
            y[t, h] = C[h].T @ q[t, h] / (1 if sigmoid_gate else max(abs(n[h] @ q[t, h]), 1))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y.reshape(z.shape) * p["norm_scale"] + p["skip"] * mixed
    return (y * silu(z)) @ p["down"]["kernel"]


@pytest.mark.parametrize(
    ("input_gate", "cap", "negative"),
    [("exp", 0.0, False), ("exp", 1.5, False), ("sigmoid", 0.0, False), ("exp", 0.0, True), ("sigmoid", 0.0, True)],
)
def test_mlstm(input_gate, cap, negative):
    def recurrence(p):
        return lambda x: published_mlstm(p, 2, input_gate == "sigmoid", cap, negative, x)

    options: Any = {"heads": 2, "chunk": 2, "input_gate": input_gate, "gate_cap": cap, "negative": negative}
    check(MLSTM(WIDTH, **options, param_dtype=jnp.float64), recurrence)


def weights_of_parity(memory, p):
    """Parameters with which the first feature of the output is a constant, negated by every 1 in the first feature of
    the input but an episode's first. Inputs are `(bit, whether an episode begins, 1, 0)`: a step with a bit has the
    decay -1, others 1, and the beginning alone is written."""
    p = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), p)
    if isinstance(memory, Mamba2):
        p["in_proj"]["kernel"][2, [0, 8, 9]] = 1  # gate, B and C
        p["in_proj"]["kernel"][1, 4] = 1  # x
        p["in_proj"]["kernel"][:3, 10] = 400, 201, -200  # step lengths
        p["conv_weight"] += 1
        p["norm"]["scale"] += 1
        p["out_proj"]["kernel"][0, 0] = 1
    elif isinstance(memory, Mamba3):
        p["in_proj"]["kernel"][2, 0] = 1  # gate
        p["in_proj"]["kernel"][1, 4] = 1  # value
        p["in_proj"]["kernel"][2, [12, 13, 14]] = 1, -50, 50  # step length, rate and the share of a step's end
        p["in_proj"]["kernel"][0, 15] = np.pi / np.log1p(np.e)  # angle
        p["bias_k"] += 1
        p["bias_q"] += 1
        p["out_proj"]["kernel"][0, 0] = 1
    elif isinstance(memory, GLA):
        p["inp"]["kernel"][2, [0, 1, 6]] = 1  # query, key and gate
        p["inp"]["kernel"][1, 2] = 1  # value
        p["gate_in"]["kernel"][0, 0], p["gate_out"]["kernel"][0, 0], p["gate_out"]["bias"][0] = -800, 1, 400
        p["norm"]["scale"] += 1
        p["out"]["kernel"][0, 0] = 1
    else:
        p["up"]["kernel"][:, :4], p["up"]["kernel"][2, 4] = np.eye(4), 1
        p["conv_weight"] += 1
        p["qkv"][0, 0, [2, 0], [0, 3]] = 1  # the query, and a feature that is not of the key
        p["qkv"][1, 0, 2, 0], p["qkv"][2, 0, 1, 0] = 1, 1  # key and value
        p["input"]["kernel"][8], p["input"]["bias"][0] = 200, -200  # by the value
        p["forget"]["kernel"][3], p["forget"]["bias"][0] = -2000, 400  # by that feature
        p["norm_scale"] += 1
        p["down"]["kernel"][0, 0] = 1
    return p


@pytest.mark.parametrize(
    "memory",
    [
        Mamba2(4, state=1, expand=1, conv=1, negative=True),
        GLA(4, heads=1, expand_k=0.25, negative=True),
        MLSTM(4, heads=1, expand=1, conv=1, negative=True),
        Mamba3(4, state=2, expand=1, turning="all"),
    ],
    ids=lambda memory: type(memory).__name__,
)
def test_signed_decays_count_parity(memory):
    """Exactly, for any length, through a reset and through a cut. Mamba-3 turns by half a turn in place of a sign."""
    steps, rng = 300, np.random.default_rng(0)
    reset = np.zeros((steps, 2), bool)
    reset[0], reset[100, 1] = True, True
    bits = rng.integers(2, size=(steps, 2))
    x = np.stack([bits, reset, np.ones_like(bits), np.zeros_like(bits)], -1).astype(np.float32)
    state: Any = memory.initial_state(2)
    shapes: Any = jax.eval_shape(memory.init, KEY, state, x, reset)
    parameters = {"params": weights_of_parity(memory, shapes["params"])}
    apply: Any = jax.jit(memory.apply)
    outputs = []
    for part in np.split(np.arange(steps), [137]):
        state, y = apply(parameters, state, x[part], reset[part])
        outputs.append(y[..., 0])
    sign = np.ones((steps, 2))
    for b, start, end in episodes(reset):
        sign[start + 1 : end, b] = (-1.0) ** np.cumsum(bits[start + 1 : end, b])
    y = np.concatenate(outputs)
    assert y[0, 0] > 0.1
    np.testing.assert_array_equal(np.sign(y), sign)
    faded = 1e-4 * np.log1p(np.e) if isinstance(memory, Mamba3) else 0.0  # its smallest rate times its step length
    since = np.arange(steps)[:, None] - np.maximum.accumulate(np.where(reset, np.arange(steps)[:, None], 0))
    np.testing.assert_allclose(np.abs(y), y[0, 0] * np.exp(-faded * since), rtol=1e-3)


@pytest.mark.slow
def test_signed_decays_of_gla_start_as_unsigned_ones():
    x, reset = jnp.zeros((1, 1, WIDTH)), jnp.zeros((1, 1), bool)
    decays = []
    for negative in (False, True):
        memory = GLA(WIDTH, heads=2, negative=negative)
        parameters: Any = memory.init(KEY, memory.initial_state(1), x, reset)
        written: Any = memory.apply(parameters, x, method="write")
        decays.append(np.exp(written[3]))
    np.testing.assert_allclose(*decays, rtol=1e-6)


def mlstm_found(bias, q=1.0, steps=12):
    """What queries `q` find where every key and value is 1, by the bias of the input gate: `y[t]` and its gradient."""
    memory = MLSTM(4, heads=1, expand=1)
    state = memory.initial_state(1)
    reset = jnp.zeros((steps, 1), bool).at[0].set(True)
    x = jnp.ones((steps, 1, 1, 4))

    def found(log_i):
        log_i = jnp.full((steps, 1, 1), log_i)
        log_f = jnp.zeros_like(log_i)  # nothing is forgotten
        before, m, _ = max_plus_scan(log_f, log_i, reset, state[2])
        k, v, log_decay = memory.gated(x / 2, x, log_i, log_f, before, m)
        y, _ = gla_scan(q * x, k, v, log_decay, reset, state[1], backend="reference")
        return (y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1]), jnp.exp(-m))[..., None])[:, 0, 0, 0]

    return found(bias), jax.grad(lambda bias: found(bias).sum())(bias)


def test_mlstm_of_one_write_and_of_many():
    # Key and query have the product 2 (that of 4 ones, over the root of 4): more than 1, so it is divided by.
    np.testing.assert_allclose(mlstm_found(0.0)[0], 1, rtol=1e-6)
    # Queries so small that the sum stays below 1: t + 1 writes of 0.02 each.
    np.testing.assert_allclose(mlstm_found(0.0, q=0.01)[0], 0.02 * np.arange(1, 13), rtol=1e-5)


@pytest.mark.parametrize("bias", [-1000.0, -100.0, -60.0, 80.0, 1000.0])
def test_no_input_gate_of_an_mlstm_is_too_small_or_too_large(bias):
    y, gradient = mlstm_found(bias)
    np.testing.assert_allclose(y, 0.0 if bias < 0 else 1.0, atol=1e-6)
    assert np.isfinite(gradient)


def test_slstm():
    heads, size = 2, WIDTH // 2

    def recurrence(p):
        def of_episode(x):
            """The published cell, not stabilised."""
            mixed = silu(convolved(x, p["conv_weight"]) + p["conv_bias"]).reshape(len(x), heads, size)
            direct, y = x.reshape(len(x), heads, size), np.zeros((len(x), heads, size))
            c, n, h = np.zeros((3, heads, size))
            for t in range(len(x)):
                for j in range(heads):
                    Wx, recurrent = (np.split(p[name][j], 4, -1) for name in ("Wx", "Wh"))
                    inputs = (mixed[t, j], mixed[t, j], direct[t, j], direct[t, j])
                    logits = [a @ w + h[j] @ r for a, w, r in zip(inputs, Wx, recurrent, strict=True)]
                    i, f, z, o = (a + b for a, b in zip(logits, np.split(p["bias"][j], 4), strict=True))
                    c[j] = sigmoid(f) * c[j] + np.exp(i) * np.tanh(z)
                    n[j] = sigmoid(f) * n[j] + np.exp(i)
                    h[j] = sigmoid(o) * c[j] / n[j]
                y[t] = h
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            return gated(p["out"], y.reshape(len(x), -1) * p["norm_scale"])

        return of_episode

    check(SLSTM(WIDTH, heads=heads, param_dtype=jnp.float64), recurrence)


def slstm_by_gates(i: Any, f: Any, z: Any, o: Any = 0.3, steps: int = 20):
    """Outputs of one unit whose logits are constants or sequences, with a reset of one row alone at step 9."""
    logits = jnp.stack([jnp.broadcast_to(jnp.asarray(a, jnp.float32), steps) for a in (i, f, z, o)], -1)
    reset = jnp.zeros((steps, 2), bool).at[0].set(True).at[9, 1].set(True)
    xproj = jnp.broadcast_to(logits[:, None, None], (steps, 2, 1, 4))

    def run(xproj):
        return slstm_scan(xproj, jnp.zeros((1, 1, 4)), reset)[0]

    return run(xproj)[..., 0, 0], jax.grad(lambda x: run(x).sum())(xproj)


@pytest.mark.slow
@pytest.mark.parametrize("i", [-110.0, -5.0, 0.0, 90.0])
def test_a_constant_input_gate_of_an_slstm_does_not_matter(i):
    """Not even one whose exponential is 0 in float32, in a row that resets alone."""
    z = np.sin(np.arange(20))
    (y, gradient), (expected, _) = slstm_by_gates(i, 1.5, z), slstm_by_gates(0.0, 1.5, z)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_an_slstm_that_forgets_shows_its_input():
    z = np.linspace(-2, 2, 20)
    np.testing.assert_allclose(slstm_by_gates(0.0, -40.0, z)[0][:, 0], sigmoid(0.3) * np.tanh(z), rtol=1e-5)


@pytest.mark.slow
def test_units_of_an_slstm_start_from_remembering_to_forgetting():
    memory = SLSTM(8, heads=2)
    parameters: Any = memory.init(KEY, memory.initial_state(1), jnp.zeros((1, 1, 8)), jnp.zeros((1, 1), bool))
    bias = np.asarray(parameters["params"]["bias"])
    assert bias.shape == (2, 16)
    np.testing.assert_allclose(bias[:, [4, 7]], [[5, -7], [5, -7]], rtol=1e-6)
    assert not bias[:, [0, 1, 2, 3, *range(8, 16)]].any()
    assert not parameters["params"]["Wh"].any()


def test_ffm():
    traces, contexts = 3, 2

    def recurrence(p):
        decay = np.exp(-np.exp(p["log_rate"])[:, None] + 1j * p["frequency"])

        def of_episode(x):
            u, open_, skip, gate = np.split(x @ p["inp"]["kernel"] + p["inp"]["bias"], [3, 6, 6 + WIDTH], -1)
            u, gate = u * sigmoid(open_), sigmoid(gate)
            # The closed form: every input so far, by its age.
            ages = np.arange(len(x))
            S = np.stack([(u[t::-1, :, None] * decay ** ages[: t + 1, None, None]).sum(0) for t in ages])
            S = S.reshape(len(x), -1)
            y = np.concatenate([np.real(S), np.imag(S)], -1) @ p["mix"]["kernel"] + p["mix"]["bias"]
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            return y * gate + skip * (1 - gate)

        return of_episode

    check(FFM(WIDTH, traces=traces, contexts=contexts, param_dtype=jnp.float64), recurrence)


@pytest.mark.slow
def test_ffm_starts_with_traces_from_two_steps_to_a_thousand():
    memory = FFM(8)
    parameters: Any = memory.init(KEY, memory.initial_state(1), jnp.zeros((1, 1, 8)), jnp.zeros((1, 1), bool))
    factors = np.asarray(memory.apply(parameters, method="decay")).reshape(32, 4)
    np.testing.assert_allclose(abs(factors[0]), np.exp(-0.673), rtol=1e-5)
    np.testing.assert_allclose(abs(factors[-1]) ** 1024, 0.01, rtol=1e-2)
    # The first context does not oscillate, the last one once in 1024 steps.
    np.testing.assert_allclose(
        np.angle(factors[0]) % (2 * np.pi), [0, *2 * np.pi / np.array([342, 683, 1024])], atol=1e-5
    )


def s4d_parts(p):
    """Eigenvalues `[width, modes]`, step lengths `[width, 1]`, complex B and C of parameters."""
    B = p["B"][0] + 1j * p["B"][1] if "B" in p else 1.0
    return -np.exp(p["log_neg_re"]) + 1j * p["im"], np.exp(p["log_dt"])[:, None], B, p["C"][0] + 1j * p["C"][1]


@pytest.mark.parametrize(
    ("gate", "discretisation", "input_weights"),
    [("full_glu", "zoh", "learned"), ("gelu", "bilinear", "learned"), ("gss", "zoh", "one")],
)
def test_s4d(gate, discretisation, input_weights):
    def recurrence(p):
        A, dt, B, C = s4d_parts(p)
        if discretisation == "zoh":
            a, b = np.exp(A * dt), (np.exp(A * dt) - 1) / A * B
        else:
            a, b = (1 + A * dt / 2) / (1 - A * dt / 2), dt / (1 - A * dt / 2) * B

        def of_episode(x):
            u, v = np.split(gelu(x @ p["inp"]["kernel"]), 2, -1) if gate == "gss" else (x, None)
            y = 2 * (linear(a, u[..., None] * b) * C).sum(-1).real + p["D"] * u
            if gate == "gss":
                return (y @ p["mix"]["kernel"] * v) @ p["down"]["kernel"]
            return gated(p["out"], y) if gate == "full_glu" else gelu(y)

        return of_episode

    options: Any = {"gate": gate, "discretisation": discretisation, "input_weights": input_weights}
    check(S4D(WIDTH, state=6, param_dtype=jnp.float64, **options), recurrence)


def test_s4d_is_a_convolution():
    """The other published form: a kernel from a Vandermonde matrix, and no state."""

    def recurrence(p):
        A, dt, B, C = s4d_parts(p)

        def of_episode(x):
            vandermonde = np.exp(A * dt)[..., None] ** np.arange(len(x))
            kernel = 2 * np.einsum("cn,cnl->lc", C * B * (np.exp(A * dt) - 1) / A, vandermonde).real
            return gelu(convolved(x, kernel[::-1]) + p["D"] * x)

        return of_episode

    check(S4D(WIDTH, state=6, gate="gelu", param_dtype=jnp.float64), recurrence)


def fresh_s4d(width=WIDTH, **options):
    memory = S4D(width, gate="gelu", **options)
    x, reset = jnp.ones((1, 1, width)), jnp.ones((1, 1), bool)
    return memory, jax.tree.map(np.asarray, jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)["params"])


def hippo_n(n):
    """The normal part of HiPPO-LegS, entry by entry."""
    k = np.arange(n)
    root = np.sqrt(2 * k + 1)
    return -np.outer(root, root) / 2 * np.sign(k[:, None] - k) - np.eye(n) / 2


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", ["legs", "inv", "lin", "real"])
def test_s4d_starts_from_the_published_eigenvalues(spectrum):
    _, p = fresh_s4d(state=16, spectrum=spectrum)
    A, _, B, _ = s4d_parts(p)
    n = np.arange(8)
    whole = np.linalg.eigvals(hippo_n(16))
    published = {
        "legs": whole[whole.imag > 0],
        "inv": -0.5 + 16j / np.pi * (16 / (2 * n + 1) - 1),
        "lin": -0.5 + 1j * np.pi * n,
        "real": -(n + 1.0),
    }[spectrum]
    for row in A:
        np.testing.assert_allclose(np.sort_complex(row.round(4)), np.sort_complex(published.round(4)), rtol=1e-4)
    np.testing.assert_array_equal(B, np.ones((WIDTH, 8)))


@pytest.mark.parametrize(("thetas", "decay_max"), [(1, 2.0), (3, 2.0), (128, 1.1)])
def test_shm(thetas, decay_max):
    size = 3

    def recurrence(p):
        def of_episode(x):
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * p["norm"]["scale"] + p["norm"]["bias"]
            k, q, v, c, e = np.split(x @ p["inp"]["kernel"], [3, 6, 9, 12], -1)
            k, q = (np.maximum(a, 0) / (1e-5 + np.maximum(a, 0).sum(-1, keepdims=True)) for a in (k, q))
            M, found = np.zeros((size, size)), np.zeros_like(q)
            for t in range(len(x)):
                grow = 1 + np.tanh(np.outer(p["theta"][t % thetas], c[t]))
                M = np.minimum(grow, decay_max) * M + np.outer(sigmoid(e[t]) * v[t], k[t])
                found[t] = M @ q[t]
            found = found + x @ p["shortcut"]["kernel"] + p["shortcut"]["bias"]
            return found @ p["out"]["kernel"] + p["out"]["bias"]

        return of_episode

    memory = SHM(WIDTH, size=size, thetas=thetas, decay_max=decay_max, param_dtype=jnp.float64)
    check(memory, recurrence)


def shm_state(table, decay_max=2.0, steps=400):
    """The matrices `[steps, size * size]` where every input is the same, `c` and the rows of theta are `table`."""
    memory = SHM(4, size=2, thetas=len(table), decay_max=decay_max)
    x, reset = jnp.broadcast_to(jnp.array([1.0, -1, 2, 0.5]), (steps, 1, 4)), jnp.zeros((steps, 1), bool)
    parameters: Any = memory.init(KEY, memory.initial_state(1), x, reset)
    weights = jnp.zeros((4, 9)).at[:, 0].set(1.0).at[3, 4:6].set(1.0).at[3, 6:8].set(5.0)  # k = (1, 0)
    parameters["params"] |= {"inp": {"kernel": weights}, "theta": jnp.asarray(table, jnp.float32)}
    tick = jax.jit(lambda state, x: memory.apply(parameters, state, x, reset[0], method="step"))
    states = []
    state = memory.initial_state(1)
    for row in x:
        state, _ = tick(state, row)
        states.append(np.asarray(state[0][0]))
    return np.stack(states)


@pytest.mark.slow
def test_shm_without_decay_sums_what_it_wrote():
    M = shm_state(np.zeros((5, 2)), steps=20)
    np.testing.assert_allclose(M, np.arange(1, 21)[:, None] * M[0], rtol=1e-5)
    assert M[0, 0] != 0


@pytest.mark.slow
def test_shm_overflows_as_published_and_not_with_decays_of_at_most_one():
    assert not np.isfinite(shm_state([[-1.0, -1.0]])).all()
    bounded = shm_state([[-1.0, -1.0]], decay_max=1.0)
    np.testing.assert_allclose(bounded, np.arange(1, 401)[:, None] * bounded[0], rtol=1e-4)


@pytest.mark.parametrize("input_weights", ["learned", "one"])
def test_perturbed_s4d_starts_near_hippo_legs(input_weights):
    """It answers an impulse as HiPPO-LegS with the same weights of its outputs does, but for the perturbation."""
    n, width = 8, 64
    _, p = fresh_s4d(width, state=2 * n, spectrum="ptd", input_weights=input_weights)
    A, _, B, C = s4d_parts(p)
    # The perturbation is skew-Hermitian: the real parts' sum stays.
    np.testing.assert_allclose(A.real.sum(-1), -np.arange(1, n + 1).sum(), rtol=1e-5)
    root = np.sqrt(2 * np.arange(n) + 1)
    legs = np.diag(np.arange(n)) - np.tril(np.outer(root, root))
    times = np.linspace(0, 3, 40)
    ours = 2 * np.einsum("cn,cnt->ct", C * B, np.exp(A[..., None] * times)).real
    states = np.stack([expm(legs * t) @ root for t in times], 1)
    # Outputs have weights in the basis of LegS: they are what explains our answers best.
    weights, *_ = np.linalg.lstsq(states.T, ours.T)
    assert np.linalg.norm(ours - weights.T @ states) < 0.2 * np.linalg.norm(ours)
    np.testing.assert_allclose(weights.std(), 1, atol=0.3)


def observed(memory, p, u):
    """What the states of every channel say, before the output function, where all channels see `u[T]`: `[T, width]`."""
    x = jnp.broadcast_to(jnp.asarray(u, jnp.float32)[:, None, None], (len(u), 1, memory.width))
    reset = jnp.zeros((len(u), 1), bool).at[0].set(True)

    def observe(memory):
        decay, drive = memory.discretise(x)
        h, _ = linear_scan_planes(decay, drive, reset, memory.initial_state(1), backend="reference")
        return memory.observe(h, x) - memory.D * x

    return np.asarray(jax.jit(nn.apply(observe, memory))({"params": p})[:, 0])


def test_one_real_mode_of_s4d_is_an_exponential_average():
    memory, p = fresh_s4d(state=2, spectrum="real")
    p["C"] = np.stack([np.full((WIDTH, 1), 0.5), np.zeros((WIDTH, 1))])
    keep, ages = np.exp(-np.exp(p["log_dt"])), np.arange(20)[:, None]
    np.testing.assert_allclose(observed(memory, p, ages[:, 0] == 0), (1 - keep) * keep**ages, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_s4d_legs_approaches_hippo_legs():
    """With half of its inputs' weights, the normal part of LegS remembers what LegS does, the better the larger it is
    (the theorem of Gu et al. 2022). The first two states of LegS have closed forms."""
    steps, dt = 400, 0.01
    t = dt * np.arange(steps)
    u, middle = np.sin(t) ** 2, t + dt / 2
    first, second = np.exp(-middle), np.sqrt(3) * (2 * np.exp(-2 * middle) - np.exp(-middle))
    truth = np.stack([np.convolve(u, kernel)[:steps] * dt for kernel in (first, second)], 1)
    errors = []
    for n in (4, 8, 16, 32):
        _, V = np.linalg.eigh(-1j * (hippo_n(n) + np.eye(n) / 2))
        V = V[:, n // 2 :]
        B = V.conj().T @ np.sqrt(2 * np.arange(n) + 1) / 2
        memory, p = fresh_s4d(2, state=n)
        p["B"] = np.broadcast_to(np.stack([B.real, B.imag])[:, None], p["B"].shape)
        p["C"], p["log_dt"] = np.stack([np.real(V[:2]), np.imag(V[:2])]), np.full(2, np.log(dt))
        errors.append(np.sqrt(np.mean((observed(memory, p, u) - truth) ** 2)) / truth.std())
    assert all(larger > 3 * smaller for larger, smaller in itertools.pairwise(errors)), errors
    assert errors[-1] < 2e-3


@pytest.mark.parametrize(
    ("updates", "negative", "decay", "feature"),
    [
        (1, False, "none", "none"),
        (2, True, "channel", "none"),
        (3, False, "head", "none"),
        (2, False, "channel", "dpfp"),
    ],
    ids=str,
)
def test_deltanet(updates, negative, decay, feature):
    heads, size = 2, WIDTH // 2

    def unit(a):
        return a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6)

    def recurrence(p):
        def of_episode(x):
            mixed = silu(convolved(x @ p["qkv"]["kernel"], p["conv_weight"]))
            q, k, v = np.split(mixed, [WIDTH, (1 + updates) * WIDTH], -1)
            q, k, v = (
                q.reshape(-1, heads, size),
                k.reshape(-1, updates, heads, size),
                v.reshape(-1, updates, heads, size),
            )
            if feature == "none":
                q, k = unit(q), unit(k)
            else:
                q, k = (np.apply_along_axis(dpfp_feature, -1, part) for part in (q, k))
                q, k = (part / (part.sum(-1, keepdims=True) + 1e-6) for part in (q, k))
            keys = q.shape[-1]
            beta = sigmoid(x @ p["beta"]["kernel"] + p["beta"]["bias"]).reshape(-1, updates, heads) * (1 + negative)
            keep = np.ones((len(x), heads, keys))
            if decay != "none":
                low = x @ p["dt_in"]["kernel"] if decay == "channel" else x
                steps = softplus(low @ p["dt"]["kernel"] + p["dt"]["bias"]).reshape(len(x), heads, -1)
                keep = keep * np.exp(-np.exp(p["A_log"])[:, None] * steps)
            S, y = np.zeros((heads, keys, size)), np.zeros((len(x), heads, size))
            for t in range(len(x)):
                for i in range(heads):
                    S[i] = np.diag(keep[t, i]) @ S[i]
                    for j in range(updates):
                        key = k[t, j, i]
                        reflect = np.eye(keys) - beta[t, j, i] * np.outer(key, key)
                        S[i] = reflect @ S[i] + beta[t, j, i] * np.outer(key, v[t, j, i])
                    y[t, i] = S[i].T @ q[t, i]
            return (rms(p, y).reshape(-1, WIDTH) * silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"]

        return of_episode

    options = {"updates": updates, "negative": negative, "decay": decay, "feature": feature, "chunk": 2}
    check(DeltaNet(WIDTH, heads=heads, param_dtype=jnp.float64, **options), recurrence)


def test_rwkv7():
    """The published transition, with its two keys in one matrix."""
    heads, size = 2, WIDTH // 2

    def recurrence(p):
        def of_episode(x):
            before = np.concatenate([np.zeros((1, WIDTH)), x[:-1]])
            r, w, k, v, a, g = ((1 - mu) * x + mu * before for mu in p["mix"])
            r, k, v = (z @ p[name]["kernel"] for z, name in ((r, "receptance"), (k, "key"), (v, "value")))
            low = np.tanh(w @ p["decay_in"]["kernel"]), a @ p["rate_in"]["kernel"]
            w, a = (
                sigmoid(z @ p[n]["kernel"] + p[n]["bias"]) for z, n in zip(low, ("decay_out", "rate_out"), strict=True)
            )
            w, g = np.exp(-np.exp(-0.5) * w), sigmoid(g @ p["gate_in"]["kernel"]) @ p["gate_out"]["kernel"]
            kap, kt = k * p["removal"], k * (1 + (a - 1) * p["replacement"])
            r, v, w, a, kap, kt, u = (z.reshape(-1, heads, size) for z in (r, v, w, a, kap, kt, r * p["bonus"] * kt))
            kap = kap / np.sqrt((kap**2).sum(-1, keepdims=True) + 1e-6)
            S, y = np.zeros((heads, size, size)), np.zeros_like(r)  # S: values by keys, as in the paper
            for t, i in itertools.product(range(len(x)), range(heads)):
                S[i] = S[i] @ (np.diag(w[t, i]) - np.outer(kap[t, i], a[t, i] * kap[t, i]))
                S[i] += np.outer(v[t, i], kt[t, i])
                y[t, i] = S[i] @ r[t, i]
            y = (
                (y - y.mean(-1, keepdims=True))
                / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
                * p["norm"].reshape(heads, -1)
            )
            return ((y + u.sum(-1, keepdims=True) * v).reshape(-1, WIDTH) * g) @ p["out"]["kernel"]

        return of_episode

    check(RWKV7(WIDTH, heads=heads, rank=3, chunk=2, param_dtype=jnp.float64), recurrence)


@pytest.mark.slow
@pytest.mark.parametrize("relative", ["gla", "deltanet"])
def test_relatives_of_rwkv7(relative):
    """Nothing removed, it is gated linear attention; no decay and all removed, the delta rule with strengths of 1."""
    heads, size = 2, 4
    memory = RWKV7(heads * size, heads=heads, rank=3)
    x, before = jax.random.normal(jax.random.key(1), (2, 5, 3, heads * size))
    reset = jnp.zeros((5, 3), bool)
    p = jax.jit(memory.init)(KEY, memory.initial_state(3), x, reset)["params"]

    def always(logit):
        return {"kernel": jnp.zeros((3, heads * size)), "bias": jnp.full(heads * size, logit)}

    if relative == "gla":
        p = {**p, "rate_out": always(-1e9), "replacement": jnp.zeros(heads * size)}
    else:
        p = {**p, "rate_out": always(1e9), "decay_out": always(-1e9)}
    bound = memory.bind({"params": p})
    (r, keys, values, beta, log_w, read), _, _ = bound.write(x, before)
    y, _ = delta_scan(r, keys, values, beta, log_w, reset, read=read, n_householder=2)
    k = bound.key(x + (before - x) * p["mix"][2]).reshape(5, 3, heads, size)
    v = values[:, :, 1]
    if relative == "gla":
        expected, _ = gla_scan(r, k, v, log_w, reset)
    else:
        length = jnp.sqrt((k**2).sum(-1, keepdims=True) + 1e-6)
        expected, _ = delta_scan(r, k / length, length * v, jnp.ones(k.shape[:3]), None, reset)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def published_ttt(p, memory, x):
    """One episode of the published descent, gradients by hand, with our bounds."""
    heads, size = memory.heads, memory.key
    q, k, v = (a.reshape(len(x), heads, size) for a in np.split(x @ p["qkv"]["kernel"], 3, -1))
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    if memory.feature == "quadratic":

        def features(a):  # the product of two is (a b + (a b)^2) / 2
            each = [a[..., i] * a[..., j] * (1 if i == j else np.sqrt(2)) for i in range(size) for j in range(i, size)]
            return np.concatenate([a, np.stack(each, -1)], -1) / np.sqrt(2)

        np.testing.assert_allclose((features(q) * features(k)).sum(-1), ((q * k).sum(-1) + (q * k).sum(-1) ** 2) / 2)
        q, k = features(q), features(k)
    made = [memory.momentum, memory.window > 1, memory.decay]
    gates = iter(np.split(sigmoid(x @ p["gates"]["kernel"] + p["gates"]["bias"]), 1 + sum(made), -1))
    theta = memory.step_max * next(gates)
    eta, gamma, alpha = (
        next(gates) if there else less + 0 * theta for there, less in zip(made, (0, 1, 0), strict=True)
    )
    logits = [p[name] for name in ("M1", "M2")[: 1 + (memory.hidden > 0)]]  # these are the weights but with "kl"

    def positive(W):
        W = np.exp(W)
        return memory.mass * W / W.sum(-1, keepdims=True)

    M = [positive(w) for w in logits] if memory.retention == "kl" else logits
    S, y, anchor = [np.zeros_like(w) for w in M], np.zeros_like(v), M

    def gelu_slope(x, step=1e-6):
        return (gelu(x + step) - gelu(x - step)) / (2 * step)

    def network(W, key):
        return key[:size] + gelu(key @ W[0]) @ W[1] if memory.hidden else key @ W[0]

    def descent(W, key, value):
        hidden = key @ W[0]
        e = network(W, key) - value
        d = {"l2": e, "huber": np.clip(e, -memory.delta, memory.delta), "l3": e * np.abs(e)}[memory.loss]
        if memory.hidden:
            return [np.outer(key, (W[1] @ d) * gelu_slope(hidden)), np.outer(gelu(hidden), d)]
        return [np.outer(key, d)]

    for t in range(len(x)):
        anchor = M if t % memory.chunk == 0 else anchor
        M = [w.copy() for w in M]
        for h in range(heads):
            W = [w[h] for w in anchor]
            pairs = range(max(0, t - memory.window + 1), t + 1)
            each = [[gamma[i, h] * a for a in descent(W, k[i, h], v[i, h])] for i in pairs]
            g = [np.sum(parts, 0) for parts in zip(*each, strict=True)]
            norm = np.sqrt(sum((a**2).sum() for a in g))
            for i, a in enumerate(g):
                a = a * min(1, memory.clip / norm) if memory.clip else a
                S[i][h] = eta[t, h] * S[i][h] - theta[t, h] * (1 - eta[t, h]) * a
                if memory.retention == "kl":
                    M[i][h] = positive((1 - alpha[t, h]) * np.log(M[i][h]) + S[i][h])
                else:
                    M[i][h] = (1 - alpha[t, h]) * M[i][h] + S[i][h]
            y[t, h] = network([w[h] for w in M], q[t, h])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return gated(p["out"], y.reshape(len(x), -1) * p["norm_scale"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": True, "decay": True, "chunk": 3, "clip": 0.3},
        {"loss": "huber", "delta": 0.4, "momentum": True, "clip": 0.0},
        {"loss": "l3", "hidden": 0, "decay": True, "chunk": 2},
        {"window": 3, "momentum": True, "decay": True},
        {"window": 2, "chunk": 3, "loss": "huber", "feature": "quadratic", "clip": 0.0},
        {"retention": "kl", "mass": 3.0, "decay": True, "momentum": True, "window": 3},
        {"hidden": 0, "feature": "quadratic", "retention": "kl"},
    ],
    ids=str,
)
def test_ttt(options):
    """Chunks and windows begin with the episode, not with the sequence: one has a reset at step 4."""
    memory = TTT(WIDTH, heads=2, key=3, **{"hidden": 4, **options}, param_dtype=jnp.float64)
    check(memory, lambda p: partial(published_ttt, p, memory))


def test_aaren():
    heads, size = 2, WIDTH // 2

    def recurrence(p):
        def of_episode(x):
            k, v = (a.reshape(-1, heads, size) for a in np.split(x @ p["kv"]["kernel"], 2, -1))
            y = np.zeros_like(v)
            for t in range(len(x)):
                for i in range(heads):
                    logits = k[: t + 1, i] @ p["query"][i] / np.sqrt(size)
                    weights = np.exp(logits - logits.max())
                    y[t, i] = weights / weights.sum() @ v[: t + 1, i]
            return gated(p["out"], y.reshape(-1, WIDTH))

        return of_episode

    check(Aaren(WIDTH, heads=heads, param_dtype=jnp.float64), recurrence)


ATTENTION: Any = [
    (1, "bias", 1),
    (3, "bias", 1),
    (20, "bias", 2),
    (3, "alibi", 1),
    (3, "rope", 2),
    (20, "rope", 1),
    (3, "xl", 2),
]


@pytest.mark.parametrize(("window", "positions", "retrievals"), ATTENTION)
def test_attention(window, positions, retrievals):
    heads = 1 if positions == "rope" else 2  # two pairs of features
    size, beta = WIDTH // heads, 1.5
    rate = 10_000.0 ** -np.arange(0, 1, 2 / size)

    def turn(x, angle):
        """Pairs of features as complex numbers."""
        z = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def recurrence(p):
        def score(head, query, keys, distance):
            scale = beta / np.sqrt(size)
            if positions == "bias":
                return scale * keys @ query + p["bias"][head, distance]
            if positions == "alibi":  # two heads: 2^-4 and 2^-8
                return scale * keys @ query - distance / 16.0 ** (head + 1)
            if positions == "rope":
                return scale * turn(keys, -np.outer(distance, rate)) @ query
            angle = np.outer(distance, 10_000.0 ** -np.arange(0, 1, 2 / WIDTH))
            R = np.concatenate([np.sin(angle), np.cos(angle)], -1) @ p["relative"]["kernel"]
            R = R.reshape(-1, heads, size)[:, head]
            return scale * (keys @ (query + p["of_content"][head]) + R @ (query + p["of_distance"][head]))

        def of_episode(x):
            q, k, v = (a.reshape(-1, heads, size) for a in np.split(x @ p["qkv"]["kernel"], 3, -1))
            y = np.zeros_like(q)
            for t in range(len(x)):
                for head in range(heads):
                    past = np.arange(max(0, t - window), t + 1)
                    query, seen = q[t, head], k[past, head]
                    found = turn(seen, -np.outer(t - past, rate)) if positions == "rope" else seen
                    for left in reversed(range(retrievals)):
                        weights = np.exp(score(head, query, seen, t - past))
                        query = weights / weights.sum() @ (found if left else v[past, head])
                    y[t, head] = query
            return gated(p["out"], y.reshape(-1, WIDTH))

        return of_episode

    options: Any = {"positions": positions, "retrievals": retrievals, "beta": beta}
    check(Attention(WIDTH, window=window, heads=heads, param_dtype=jnp.float64, **options), recurrence)


@pytest.mark.parametrize("positions", ["bias", "alibi", "rope", "xl"])
def test_attention_sees_distances_and_no_positions(positions):
    """Once the window is full, inputs that repeat give outputs that repeat."""
    memory = Attention(WIDTH, window=5, heads=2, positions=positions)
    period = jax.random.normal(KEY, (3, 1, WIDTH))
    x, reset, state = jnp.tile(period, (6, 1, 1)), np.zeros((18, 1), bool), memory.initial_state(1)
    parameters = jax.tree.map(lambda p: p + 0.3, jax.jit(memory.init)(KEY, state, x, reset))
    y: Any = jax.jit(memory.apply)(parameters, state, x, reset)[1]
    np.testing.assert_allclose(y[8:], y[5:-3], atol=1e-6)
    assert np.abs(y[5] - y[0]).max() > 1e-3  # of the same input, but of another past


@pytest.mark.slow
def test_a_hopfield_network_returns_the_pattern_that_it_stored():
    """Orthogonal keys and a large beta: a noisy query finds its key, and gets exactly its value."""
    memory = Attention(WIDTH, window=8, heads=1, beta=1000.0, retrievals=3)
    k, v = jnp.eye(WIDTH)[:, None, None], jax.random.normal(KEY, (WIDTH, 1, 1, WIDTH))
    state, reset = memory.initial_state(1), np.zeros((WIDTH, 1), bool)
    parameters = jax.jit(memory.init)(KEY, state, v[:, 0], reset)
    noisy = memory.scale * (k[2] + 0.3 * k[3] + 0.3 * k[0])
    q = jnp.broadcast_to(noisy, k.shape)
    y: Any = memory.apply(parameters, q, k, v, reset, state, method="scan")[0]
    np.testing.assert_array_equal(y[2:], jnp.broadcast_to(v[2], y[2:].shape))


@pytest.mark.parametrize(("mixer", "every"), [("gla", 3), ("mamba2", 2)])
def test_scout(mixer, every):
    """The mixer has tests of its own. Checkpoints begin with the episode, not with the sequence."""
    heads, size, slots = 2, WIDTH // 2, 2
    memory = Scout(WIDTH, mixer=mixer, every=every, slots=slots, heads=heads, param_dtype=jnp.float64)
    layer = memory.make_mixer()
    mixed = jax.jit(lambda p, x: layer.apply({"params": p}, layer.initial_state(1), x, jnp.zeros(x.shape[:2], bool)))

    def recurrence(p):
        def of_episode(x):
            m, seen = np.asarray(cast(Any, mixed(p["mix"], np.pad(x, ((0, T - len(x)), (0, 0)))[:, None]))[1]), []
            m = m[: len(x), 0]
            q, k, v = (
                a.reshape(-1, heads, size) for a in np.split(normed(p["norm"], x + m) @ p["qkv"]["kernel"], 3, -1)
            )
            found = np.zeros_like(v)
            for t in range(len(x)):
                past = [*seen[-slots:], t]
                for i in range(heads):
                    logits = k[past, i] @ q[t, i] / np.sqrt(size) + p["bias"][i, len(past) - 1 :: -1]
                    found[t, i] = np.exp(logits) / np.exp(logits).sum() @ v[past, i]
                seen = [*seen, t] if (t + 1) % every == 0 else seen
            return m + gated(p["out"], found.reshape(-1, WIDTH))

        return of_episode

    with jax.enable_x64(True):
        check(memory, recurrence)


def test_scout_with_a_checkpoint_at_each_step_is_attention_over_its_mixer():
    scout = Scout(WIDTH, every=1, slots=3, heads=2, param_dtype=jnp.float64)
    attention = Attention(WIDTH, window=3, heads=2, param_dtype=jnp.float64)
    p, x, reset, y = run(scout)
    with jax.enable_x64(True):
        mixer = scout.make_mixer()
        m: Any = jax.jit(mixer.apply)({"params": p["mix"]}, mixer.initial_state(B), x, reset)[1]
        own = {"params": {name: p[name] for name in ("qkv", "bias", "out")}}
        of = normed(p["norm"], x + np.asarray(m))
        attended: Any = jax.jit(attention.apply)(own, attention.initial_state(B), of, reset)[1]
        np.testing.assert_allclose(y, m + attended, atol=1e-10)


def damped_average(p, x):
    """e of SeqBoat."""
    alpha, delta = sigmoid(p["rates"])
    h = linear(1 - alpha * delta, alpha * p["beta"] * x[:, :, None])
    return silu((h * p["eta"]).sum(-1) + p["omega"] * x)


@pytest.mark.parametrize(("select", "modes"), [(0, 2), (1, 8)])
def test_seqboat(select, modes):
    """Lists of the active steps; with both options some steps are active and some are not."""
    heads, size, window = 2, WIDTH // 2, 2
    counts = []

    def recurrence(p):
        def of_episode(x):
            e, seen = damped_average(p, x), []
            q, k, u = np.split(e @ p["qku"]["kernel"], 3, -1)
            q, k, v = (a.reshape(-1, heads, size) for a in (q, k, x @ p["v"]["kernel"]))
            decision, y = e @ p["decide"]["kernel"] + p["decide"]["bias"], e.copy()
            score = decision[:, 1] if select else np.zeros(len(x))
            for t in np.flatnonzero(decision[:, 0] > 0):
                past = seen[-window:]
                ages = {r: len(past) - i for i, r in enumerate(past)} | {t: 0}
                if select:
                    past = sorted(past, key=lambda r: -score[r])[:select]
                rows, found = [*past, t], np.zeros((heads, size))
                for i in range(heads):
                    logits = k[rows, i] @ q[t, i] / np.sqrt(size) + p["bias"][i, [ages[r] for r in rows]] + score[rows]
                    found[i] = np.exp(logits) / np.exp(logits).sum() @ v[rows, i]
                y[t] = e[t] + (u[t] * found.reshape(-1)) @ p["mix"]["kernel"]
                seen.append(t)
            counts.append((len(seen), len(x)))
            return gated(p["out"], y)

        return of_episode

    options: Any = {"window": window, "heads": heads, "modes": modes, "select": select}
    check(SeqBoat(WIDTH, **options, param_dtype=jnp.float64), recurrence)
    assert any(window + 1 < active < steps for active, steps in counts), counts


def test_seqboat_is_its_averages_or_attends_at_each_step():
    """With a bias that decides alone: without attention, or with window attention of its queries, keys and values."""
    memory = SeqBoat(WIDTH, window=3, heads=2, modes=2, param_dtype=jnp.float64)
    p, x, reset, _ = run(memory)
    with jax.enable_x64(True):
        apply = jax.jit(partial(memory.apply, mutable=["intermediates"]))
        e, found = np.zeros_like(x), np.zeros_like(x)
        for b, start, end in episodes(reset):
            e[start:end, b] = damped_average(p, x[start:end, b])
        for active in (False, True):
            decide = p["decide"] | {"bias": np.full(1, 1e3 if active else -1e3)}
            (_, y), numbers = cast(Any, apply({"params": p | {"decide": decide}}, memory.initial_state(B), x, reset))
            assert sown(numbers) == {"active_steps": active}
            if active:
                q, k, u = np.split(e @ p["qku"]["kernel"], 3, -1)
                q, k, v = (a.reshape(T, B, 2, WIDTH // 2) for a in (q / np.sqrt(WIDTH // 2), k, x @ p["v"]["kernel"]))
                found = u * np.reshape(jax.jit(window_scan)(q, k, v, p["bias"], reset)[0], u.shape)
            np.testing.assert_allclose(y, gated(p["out"], e + found @ p["mix"]["kernel"]), atol=1e-10)


def test_the_gradient_of_a_decision_of_seqboat_is_that_of_its_sigmoid():
    """Whatever was decided, the gate is p = sigmoid(logit) in the backward pass."""
    memory = SeqBoat(WIDTH, window=3, heads=2, modes=2)
    x, reset = np.random.default_rng(0).normal(size=(T, B, WIDTH)).astype(np.float32), np.zeros((T, B), bool)
    shapes: Any = jax.eval_shape(memory.init, KEY, memory.initial_state(B), x, reset)
    p = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes["params"])

    def gates(bias):
        params = p | {"decide": {**p["decide"], "bias": bias}}
        return cast(Any, memory.apply({"params": params}, x, x, method="choose"))[1]

    (a, slopes), sigmoids = jax.jit(lambda b: jax.jvp(gates, (b,), (jnp.ones(1),)))(jnp.zeros(1)), sigmoid(x.sum(-1))
    np.testing.assert_array_equal(a[..., 0], x.sum(-1) > 0)
    np.testing.assert_allclose(slopes[..., 0], sigmoids * (1 - sigmoids), rtol=1e-5)


def test_averages_of_seqboat_start_with_the_variance_of_their_input():
    """Timescales log-uniform from 2 to the longest; an average of white noise has 1 / (2 - 1 / tau) of its variance."""
    memory = SeqBoat(64, heads=2, modes=8, max_timescale=100.0)
    x, reset = jnp.ones((1, 1, 64)), jnp.ones((1, 1), bool)
    p = jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)["params"]
    alpha, delta = sigmoid(np.asarray(p["rates"], np.float64))
    np.testing.assert_allclose(alpha, delta)
    timescale = 1 / (alpha * delta)
    spread = stats.uniform(np.log(2), np.log(50))
    assert stats.kstest(np.log(timescale).ravel(), spread.cdf).pvalue > 0.01
    np.testing.assert_allclose(alpha**2 / (1 - (1 - alpha * delta) ** 2), 1 / (2 - 1 / timescale), rtol=1e-5)


def normed(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gru_gate(p, x, y):
    """Parisotto et al. 2020, section 3.2."""
    W_r, W_z, W_g = np.split(p["of_y"]["kernel"], 3, -1)
    U_r, U_z = np.split(p["of_x"]["kernel"], 2, -1)
    r, z = sigmoid(y @ W_r + x @ U_r), sigmoid(y @ W_z + x @ U_z - p["bias"])
    return (1 - z) * x + z * np.tanh(y @ W_g + (r * x) @ p["of_reset_x"]["kernel"])


def gated_block(p, x, attended):
    x = gru_gate(p["gates_0"], x, np.maximum(attended, 0))
    hidden = np.maximum(normed(p["norms_1"], x) @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    return gru_gate(p["gates_1"], x, np.maximum(hidden @ p["last"]["kernel"] + p["last"]["bias"], 0))


def test_gtrxl():
    heads, size, window = 2, WIDTH // 2, 3

    def recurrence(p):
        def of_episode(x):
            q, k, v = (
                a.reshape(-1, heads, size)
                for a in np.split(normed(p["block"]["norms_0"], x) @ p["qkv"]["kernel"], 3, -1)
            )
            y = np.zeros_like(q)
            for t in range(len(x)):
                past = np.arange(max(0, t - window), t + 1)
                for head in range(heads):
                    weights = np.exp(k[past, head] @ q[t, head] / np.sqrt(size) + p["bias"][head, t - past])
                    y[t, head] = weights / weights.sum() @ v[past, head]
            return gated_block(p["block"], x, y.reshape(-1, WIDTH) @ p["out"]["kernel"])

        return of_episode

    check(GTrXL(WIDTH, window=window, heads=heads, param_dtype=jnp.float64), recurrence)


@pytest.mark.parametrize(("eta", "cosines"), [(1, 1), (3, 4)])
def test_agalite(eta, cosines):
    heads, size = 2, WIDTH // 2

    def recurrence(p):
        def of_episode(x):
            k, q, v, b, g = (
                a.reshape(-1, heads, size)
                for a in np.split(normed(p["block"]["norms_0"], x) @ p["project"]["kernel"], 5, -1)
            )
            p1, p2, p3 = (
                a.reshape(-1, heads, eta)
                for a in np.split(normed(p["block"]["norms_0"], x) @ p["expand_features"]["kernel"], 3, -1)
            )
            K, V, s = (
                np.zeros((cosines, heads, eta, size)),
                np.zeros((cosines, heads, size)),
                np.zeros((heads, eta, size)),
            )
            y = np.zeros_like(v)
            for t in range(len(x)):
                gamma = sigmoid(p3[t])[..., None] * sigmoid(g[t])[:, None]
                write = gamma * np.maximum(p1[t], 0)[..., None] * np.maximum(k[t], 0)[:, None]
                query = np.maximum(p2[t], 0)[..., None] * np.maximum(q[t], 0)[:, None]
                c = np.cos((t + 1) * np.linspace(-np.pi, np.pi, cosines))
                K, s = (1 - gamma) * K + c[:, None, None, None] * write, (1 - gamma) * s + write
                V = (1 - sigmoid(b[t])) * V + c[:, None, None] * sigmoid(b[t]) * v[t]
                found = (K * query).sum((-2, -1))[..., None]
                y[t] = (V * found).sum(0) / (2 * cosines * (s * query).sum((-2, -1)) + 1e-5)[:, None]
            return gated_block(p["block"], x, y.reshape(-1, WIDTH) @ p["out"]["kernel"])

        return of_episode

    check(AGaLiTe(WIDTH, heads=heads, eta=eta, cosines=cosines, param_dtype=jnp.float64), recurrence)


def test_the_cosines_of_agalite_begin_with_the_episode():
    """An episode of 7 steps, four times in a sequence: four times the same, whatever the cosines' period (6)."""
    memory = AGaLiTe(WIDTH, heads=2, eta=2, cosines=4)
    x, reset = jnp.tile(jax.random.normal(KEY, (7, 1, WIDTH)), (4, 1, 1)), np.zeros((28, 1), bool)
    reset[::7] = True
    state = memory.initial_state(1)
    y: Any = jax.jit(lambda: memory.init_with_output(KEY, state, x, reset))()[0][1]
    np.testing.assert_allclose(y.reshape(4, 7, WIDTH), jnp.broadcast_to(y[:7, 0], (4, 7, WIDTH)), atol=1e-6)


def test_whole_blocks_stand_alone_in_a_stack():
    """With gates that are shut each passes its input on: nothing is normalised, and nothing added."""
    stack = make_memory("gtrxl", WIDTH, 2, gate_bias=20.0, window=3, heads=2)
    x, reset, state = jax.random.normal(KEY, (5, 2, WIDTH)), np.zeros((5, 2), bool), stack.initial_state(2)
    parameters = jax.jit(stack.init)(KEY, state, x, reset)
    y: Any = jax.jit(stack.apply)(parameters, state, x, reset)[1]
    np.testing.assert_allclose(y, x, atol=1e-5)


def stacked(x, lags):
    """Inputs of one episode that lie `lags` steps back, side by side; zeros before its first."""
    return np.concatenate([np.pad(x, ((lag, 0), (0, 0)))[: len(x)] for lag in lags], -1)


@pytest.mark.parametrize("frames", [1, 3, 12])
def test_framestack(frames):
    def recurrence(p):
        return lambda x: gated(p["out"], stacked(x, range(frames)) @ p["inp"]["kernel"] + p["inp"]["bias"])

    check(FrameStack(WIDTH, frames=frames, param_dtype=jnp.float64), recurrence)


def test_one_frame_is_no_memory():
    shapes = [
        jax.eval_shape(memory.init, KEY, memory.initial_state(B), jnp.zeros((T, B, WIDTH)), jnp.zeros((T, B), bool))
        for memory in (FrameStack(WIDTH, frames=1), NoMemory(WIDTH))
    ]
    assert shapes[0] == shapes[1]
    np.testing.assert_array_equal(run(FrameStack(WIDTH, frames=1))[-1], run(NoMemory(WIDTH))[-1])


@pytest.mark.parametrize(("taps", "dilation"), [(1, 3), (3, 1), (3, 2), (2, 12)])
def test_tcn(taps, dilation):
    def recurrence(p):
        def of_episode(x):
            # Bai et al. 2018, eq. of section 3.2: a convolution with a step between the taps.
            lags = [k * dilation for k in range(taps)]
            hidden = stacked(x, lags) @ p["inp"]["kernel"] + p["inp"]["bias"]
            return np.maximum(hidden, 0) @ p["out"]["kernel"] + p["out"]["bias"]

        return of_episode

    check(TCN(WIDTH, taps=taps, dilation=dilation, param_dtype=jnp.float64), recurrence)


@pytest.mark.parametrize(("weights", "squash"), [("dense", 0.0), ("channel", 0.3)])
def test_tcn_with_learned_positions(weights, squash):
    """A tap between two steps sees what lies on the line through them; outside of the window, its end."""
    taps, dilation = 3, 4

    def recurrence(p):
        assert (p["position"] < 0).any()

        def of_episode(x):
            seen = np.zeros((taps, *x.shape))
            for k, c in itertools.product(range(taps), range(WIDTH)):
                lags = np.arange(len(x))[:, None] - np.clip(p["position"][k, c], 0, (taps - 1) * dilation)
                seen[k, :, c] = np.interp(lags, [-1, *range(len(x))], [0, *x[:, c]]).ravel()
            if weights == "dense":
                hidden = np.concatenate(seen, -1) @ p["inp"]["kernel"] + p["inp"]["bias"]
            else:
                w = p["weight"]
                hidden = (np.where(w > squash, w - squash, np.where(w < -squash, w + squash, 0))[:, None] * seen).sum(0)
                hidden += p["bias"]
            return np.maximum(hidden, 0) @ p["out"]["kernel"] + p["out"]["bias"]

        return of_episode

    options: Any = {"positions": "learned", "weights": weights, "squash": squash}
    check(TCN(WIDTH, taps=taps, dilation=dilation, param_dtype=jnp.float64, **options), recurrence)


def test_taps_of_a_tcn_start_apart_and_move():
    """At the start it is a TCN with gaps. A tap moves as the difference of its neighbours says, and in the window."""
    learned, fixed = (TCN(1, taps=2, dilation=3, positions=positions) for positions in ("learned", "fixed"))
    x, reset = np.array([0.0, 5.0, 1.0, 2.0, 4.0, 8.0], np.float32)[:, None, None], np.zeros((6, 1), bool)
    state = fixed.initial_state(1)
    p = {
        "inp": {"kernel": np.array([[0.0], [1.0]]), "bias": np.zeros(1)},
        "out": {"kernel": np.ones((1, 1)), "bias": np.zeros(1)},
    }

    def last(position):
        y: Any = learned.apply({"params": {**p, "position": jnp.array([[0.0], [position]])}}, state, x, reset)[1]
        return y[4, 0, 0]

    at_start: Any = jax.jit(learned.init)(KEY, state, x, reset)["params"]["position"]
    np.testing.assert_array_equal(at_start, [[0], [3]])
    plain: Any = jax.jit(fixed.apply)({"params": p}, state, x, reset)[1]
    found, slopes = jax.jit(jax.vmap(jax.value_and_grad(last)))(jnp.array([3.0, 2.0, 1.5, 9.0]))
    np.testing.assert_allclose(found, [plain[4, 0, 0], 1.0, 1.5, 5.0])
    # At the end of the window what lies beyond counts as 0 by either; outside no gradient leads further out.
    np.testing.assert_allclose(slopes, [-(1.0 - 0.0) / 2, (5.0 - 2.0) / 2, 1.0 - 2.0, 0.0])


@pytest.mark.parametrize(
    ("memory", "seen"), [(FrameStack(16, frames=3), [0, 1, 2]), (TCN(16, taps=3, dilation=2), [0, 2, 4])]
)
def test_a_window_sees_its_taps_and_nothing_else(memory, seen):
    """Steps of a sequence of 20 whose output a change of input 10 changes."""
    x, reset = np.random.default_rng(0).normal(size=(20, 1, 16)).astype(np.float32), np.zeros((20, 1), bool)
    state = memory.initial_state(1)
    parameters = jax.jit(memory.init)(KEY, state, x, reset)
    apply: Any = jax.jit(memory.apply)
    after, y = apply(parameters, state, x, reset)
    other = x.copy()  # not in place: `apply` may still be reading
    other[10] += 1
    after_changed, changed = apply(parameters, state, other, reset)
    np.testing.assert_array_equal(np.flatnonzero(np.abs(changed - y).max((1, 2))), 10 + np.array(seen))
    np.testing.assert_array_equal(after, after_changed)  # the change lies too far back


def published_rnn(p, kind, rectified, x):
    """One episode, step by step."""
    W, U, h, states = p["W"], p["U"], np.zeros(WIDTH), []
    if kind == "reservoir":
        W, U = (np.sqrt(WIDTH) * matrix / np.linalg.norm(matrix) for matrix in (W, U))
        U = 0.7 * U
    for drive in x @ W + p["b"]:
        if kind == "elman":
            h = np.tanh(drive + h @ U)
        elif kind == "indrnn":
            h = np.maximum(drive + np.clip(U, -(2**0.25), 2**0.25) * h, 0)
        elif kind == "alrnn":
            seen = np.concatenate([h[: WIDTH - rectified], np.maximum(h[WIDTH - rectified :], 0)])
            h = p["A"] * h + seen @ U + drive
        else:
            tau = 1 + softplus(p["tau"])
            h = (1 - 1 / tau) * h + np.tanh(drive + h @ U) / tau
        states.append(h)
    return np.stack(states) @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize(
    ("kind", "rectified"),
    [("elman", 0), ("indrnn", 0), ("leaky", 0), ("alrnn", 0), ("alrnn", 1), ("alrnn", WIDTH), ("reservoir", 0)],
)
def test_rnn(kind, rectified):
    def recurrence(p):
        return lambda x: published_rnn(p, kind, rectified, x)

    options: Any = {"kind": kind, "rectified": rectified, "max_steps": 4, "radius": 0.7}
    check(RNN(WIDTH, **options, param_dtype=jnp.float64), recurrence)


def started(memory):
    """Parameters of a memory and what it writes for an input of zeros: `W x + b`, U, keep and gain."""
    x, reset = jnp.zeros((1, 1, memory.width)), jnp.zeros((1, 1), bool)
    parameters: Any = jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)
    return parameters["params"], jax.jit(partial(memory.apply, method="write"))(parameters, x)


def test_an_almost_linear_rnn_without_rectified_units_is_linear():
    memory = RNN(WIDTH, kind="alrnn", rectified=0)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, T, B, WIDTH)).astype(np.float32)
    reset, state = np.zeros((T, B), bool), memory.initial_state(B)
    parameters = jax.jit(memory.init)(KEY, state, a, reset)
    apply: Any = jax.jit(memory.apply)
    of_both, of_a, of_b = (apply(parameters, state, x, reset)[1] for x in (a + b, a, b))
    np.testing.assert_allclose(of_both, of_a + of_b, atol=1e-5)


def test_units_of_an_indrnn_at_most_double():
    memory = RNN(WIDTH, kind="indrnn", max_steps=8)
    p, _ = started(memory)
    p = {**p, "U": jnp.array([5.0, 1.0, 0.5, -5.0]), "out": {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}}
    x, reset = jnp.zeros((8, 1, WIDTH)), jnp.zeros((8, 1), bool)
    _, y = jax.jit(memory.apply)({"params": p}, jnp.ones((1, WIDTH)), x, reset)
    np.testing.assert_allclose(y[-1, 0], [2, 1, 2.0**-8, 0], rtol=1e-5)


def test_bounded_weights_come_back():
    """Descent lowers u where the gradient is above 0: out of bounds, only gradients that lead back inside pass."""
    u, wanted = jnp.array([2.0, 2.0, -2.0, -2.0, 0.5]), jnp.array([1.0, -1.0, 1.0, -1.0, -1.0])
    gradient = jax.grad(lambda u: jnp.sum(wanted * bounded(u, 1.0)))(u)
    np.testing.assert_array_equal(gradient, [1, 0, 0, -1, -1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leaky", "alrnn", "reservoir"])
def test_time_constants_of_an_rnn_start_log_uniform(kind):
    _, (_, _, keep, gain) = started(RNN(512, kind=kind, max_timescale=100.0))
    keep = np.asarray(keep, np.float64)
    assert stats.kstest(-np.log(1 - keep), stats.uniform(0, np.log(100)).cdf).pvalue > 0.01
    np.testing.assert_allclose(gain, 1 if kind == "alrnn" else 1 - keep, atol=1e-6)


def test_a_reservoir_has_its_spectral_radius_and_learns_its_output_alone():
    memory = RNN(16, kind="reservoir", radius=0.5, max_timescale=1.0)
    p, (_, U, _, _) = started(memory)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(U)), 0.5, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(T, B, 16)).astype(np.float32)
    reset, state = np.zeros((T, B), bool), memory.initial_state(B)

    @jax.jit
    def outputs(p):
        return memory.apply({"params": p}, state, x, reset)

    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(outputs(p)[1])))(p)
    learned = {name for name, g in gradient.items() if any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(g))}
    assert learned == {"out"}
    # Weight decay shrinks parameters; not what the reservoir does.
    shrunk = outputs({**p, "W": 0.1 * p["W"], "U": 0.1 * p["U"]})
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), shrunk, outputs(p))


def test_a_reservoir_forgets_how_it_began():
    """Any two states come closer by the spectral radius at every step, as tanh has slopes of at most 1."""
    memory = RNN(16, kind="reservoir", radius=0.5, max_timescale=1.0)
    p, _ = started(memory)
    rng = np.random.default_rng(0)
    x, states = jnp.asarray(rng.normal(size=(10, 1, 16))), rng.normal(size=(2, 1, 16)).astype(np.float32)
    apply: Any = jax.jit(memory.apply)
    a, b = (apply({"params": p}, state, x, jnp.zeros((10, 1), bool))[0] for state in states)
    distance = np.linalg.norm(a - b)
    assert 0 < distance < 0.501**10 * np.linalg.norm(states[0] - states[1])


def flax_cell(cell, parameters):
    """Outputs of a flax cell over an episode from a zero carry."""

    def of_episode(x):
        with jax.enable_x64(True):
            carry = cell.initialize_carry(jax.random.key(0), x[0].shape)
            carry = jax.tree.map(lambda h: h.astype(jnp.float64), carry)
            step = jax.jit(lambda carry, x: cell.apply({"params": parameters}, carry, x))
            outputs = []
            for x_t in x:
                carry, y = step(carry, x_t)
                outputs.append(y)
            return np.stack(outputs)

    return of_episode


def columns(matrix, gates):
    return dict(zip(gates, np.split(matrix, len(gates), -1), strict=True))


def test_gru():
    def recurrence(p):
        Wx, bx, Wh = (columns(m, "rzn") for m in (p["inp"]["kernel"], p["inp"]["bias"], p["Wh"]))
        theirs = {f"i{gate}": {"kernel": Wx[gate], "bias": bx[gate]} for gate in "rzn"}
        theirs |= {f"h{gate}": {"kernel": Wh[gate]} for gate in "rz"} | {"hn": {"kernel": Wh["n"], "bias": p["bh"]}}
        return flax_cell(nn.GRUCell(WIDTH, dtype=jnp.float64), theirs)

    check(GRU(WIDTH, param_dtype=jnp.float64), recurrence)


def test_lstm():
    def recurrence(p):
        Wx, bias, Wh = (columns(m, "ifgo") for m in (p["inp"]["kernel"], p["inp"]["bias"], p["Wh"]))
        theirs = {f"i{gate}": {"kernel": Wx[gate]} for gate in "ifgo"}
        theirs |= {f"h{gate}": {"kernel": Wh[gate], "bias": bias[gate]} for gate in "ifgo"}
        return flax_cell(nn.OptimizedLSTMCell(WIDTH, dtype=jnp.float64), theirs)

    check(LSTM(WIDTH, param_dtype=jnp.float64), recurrence)


@pytest.mark.parametrize("backend", ["xla", "newton"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_para(cell, backend):
    def recurrence(p):
        A = 1.5 * np.tanh(p["A"])

        def of_episode(x):
            c, h, outputs = np.zeros(WIDTH), np.zeros(WIDTH), []
            for logits in x @ p["inp"]["kernel"] + p["inp"]["bias"]:
                u = np.split(logits, 3)
                if cell == "gru":
                    z, r = sigmoid(A[0] * h + u[0]), sigmoid(A[1] * h + u[1])
                    h = (1 - z) * h + z * np.tanh(A[2] * h * r + u[2])
                else:
                    f, g = sigmoid(A[0] * h + A[3] * c + u[0]), np.tanh(A[1] * h + u[1])
                    c = f * c + (1 - f) * g
                    h = sigmoid(A[2] * h + A[4] * c + u[2]) * np.tanh(c)
                outputs.append(h)
            return gated(p["out"], np.stack(outputs))

        return of_episode

    check(Para(WIDTH, cell=cell, limit=1.5, backend=backend, param_dtype=jnp.float64), recurrence)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_units_of_a_para_start_with_memories_of_all_lengths(cell):
    """Without input, and without what units see of themselves, a state falls to t / (1 + t); log t is uniform."""
    memory = Para(512, cell=cell, max_timescale=100.0)
    ones, x, reset = jnp.ones((1, 512)), jnp.zeros((1, 1, 512)), jnp.zeros((1, 1), bool)
    state = (ones, ones) if cell == "lstm" else ones
    p = jax.jit(memory.init)(KEY, state, x, reset)["params"]
    after, _ = jax.jit(memory.apply)({"params": p | {"A": 0 * p["A"]}}, state, x, reset)
    kept = np.asarray(jax.tree.leaves(after)[0][0], np.float64)
    assert stats.kstest(np.log(kept / (1 - kept)), stats.uniform(0, np.log(100)).cdf).pvalue > 0.01


@pytest.mark.parametrize(("memory", "gates"), [(GRU(WIDTH), 3), (LSTM(WIDTH), 4)])
def test_recurrent_weights_start_orthogonal_gate_by_gate(memory, gates):
    x, reset = jnp.ones((1, 1, WIDTH)), jnp.ones((1, 1), bool)
    p = jax.jit(memory.init)(KEY, memory.initial_state(1), x, reset)["params"]
    for block in np.split(p["Wh"], gates, 1):
        np.testing.assert_allclose(block.T @ block, np.eye(WIDTH), atol=1e-5)
    if gates == 4:
        np.testing.assert_array_equal(p["inp"]["bias"], np.repeat([0, 1, 0, 0], WIDTH))


@pytest.mark.slow
def test_units_of_a_gru_start_with_memories_of_all_lengths():
    """Without input, and without the recurrent weights, a state falls to t / (1 + t) in a step; log t is uniform."""
    kept = {}
    for limit in (1.0, 100.0):
        memory = GRU(512, max_timescale=limit)
        state, x, reset = jnp.ones((1, 512)), jnp.zeros((1, 1, 512)), jnp.zeros((1, 1), bool)
        p = jax.jit(memory.init)(KEY, state, x, reset)["params"]
        after, _ = jax.jit(memory.apply)({"params": p | {"Wh": 0 * p["Wh"]}}, state, x, reset)
        kept[limit] = np.asarray(after[0], np.float64)
    np.testing.assert_array_equal(kept[1.0], 0.5)
    log_t = np.log(kept[100.0] / (1 - kept[100.0]))
    assert stats.kstest(log_t, stats.uniform(0, np.log(100)).cdf).pvalue > 0.01


@pytest.mark.parametrize("rows", [(), (B,), (T, B)])
def test_dense_is_flaxs_with_the_same_parameters(rows):
    x = np.random.default_rng(0).normal(size=(*rows, WIDTH))
    with jax.enable_x64(True):
        ours, theirs = (layer(3, param_dtype=jnp.float64) for layer in (Dense, nn.Dense))
        parameters: Any = ours.init(jax.random.key(0), x)
        jax.tree.map(np.testing.assert_array_equal, parameters, theirs.init(jax.random.key(0), x))
        for argument in (0, 1):  # gradients of the parameters, of the input
            gradients = [
                jax.grad(lambda p, x, f=f: jnp.sum(jnp.sin(cast(Any, f.apply(p, x)))), argument)(
                    parameters, jnp.asarray(x)
                )
                for f in (ours, theirs)
            ]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *gradients)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (64, 64), (96, 130), (3, 3, 2, 8), (67, 67), (5, 1), (1, 5)])
def test_orthogonal_matrices_are_flaxs(shape):
    """By one block of columns, by several, and by columns that no block divides; for many seeds at once."""
    keys = jax.random.split(jax.random.key(0), 2)
    kinds = (orthogonal(0.5), nn.initializers.orthogonal(0.5))
    ours, flax = (jax.jit(jax.vmap(lambda k, f=f: f(k, shape)))(keys) for f in kinds)
    np.testing.assert_allclose(ours, flax, atol=2e-5)
    matrix = np.asarray(ours, np.float64).reshape(2, -1, shape[-1])
    product = matrix @ matrix.mT if matrix.shape[1] < matrix.shape[2] else matrix.mT @ matrix
    np.testing.assert_allclose(product, np.tile(np.eye(product.shape[-1]) / 4, (2, 1, 1)), atol=5e-7)


def test_orthogonal_matrices_need_no_lapack():
    program = jax.jit(orthogonal(), static_argnums=1).lower(jax.random.key(0), (8, 8)).as_text()
    assert "lapack" not in program


@pytest.mark.slow
def test_gated_deltanet_starts_as_published():
    """Rates uniform in (0, 16), steps log-uniform in [0.001, 0.1], write strengths near 1/2 for inputs of any width."""
    width = 256
    memory = DeltaNet(width, heads=128, decay="head")
    x, reset = jax.random.normal(jax.random.key(1), (1, 64, width)), jnp.ones((1, 64), bool)
    p = jax.jit(memory.init)(jax.random.key(0), memory.initial_state(64), x, reset)["params"]
    rates, steps = np.exp(p["A_log"]), np.log1p(np.exp(p["dt"]["bias"]))
    assert 0 < rates.min() < 1 < 15 < rates.max() < 16
    np.testing.assert_allclose(rates.mean(), 8, rtol=0.15)
    assert 0.001 <= steps.min() < 0.002 < 0.05 < steps.max() <= 0.1
    for name in ("beta", "dt"):  # the authors' scale of all projections: variance 2 / 5 of a logit
        np.testing.assert_allclose(np.std(x @ p[name]["kernel"]), np.sqrt(2 / 5), rtol=0.05)
    assert (p["beta"]["bias"] == 0).all()
