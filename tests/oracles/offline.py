"""The networks and losses of the offline methods in float64 NumPy, and gradients by central differences.

A loss takes what is differentiated as its first argument and what is held fixed as others: where a method stops a
gradient, the two differ.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

GAMMA, EXPECTILE, TEMPERATURE = 0.9, 0.8, 3.0


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x), tree)


def network(params: Any, x: np.ndarray) -> np.ndarray:
    """Dense layers with ReLU, and LayerNorm (epsilon 1e-6) before it where there are such parameters."""
    layers = sorted(name for name in params if name.startswith("Dense"))
    for i, name in enumerate(layers):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        if i < len(layers) - 1:
            if f"LayerNorm_{i}" in params:
                norm = params[f"LayerNorm_{i}"]
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * norm["scale"] + norm["bias"]
            x = np.maximum(x, 0.0)
    return x


def critic(params: Any, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """`[2, B]`."""
    twins = [params["twins_0"], params["twins_1"]]
    if action.dtype.kind == "i":
        return np.stack([network(twin, obs)[np.arange(len(action)), action] for twin in twins])
    both = np.concatenate([obs, action], -1)
    return np.stack([network(twin, both)[:, 0] for twin in twins])


def every(params: Any, obs: np.ndarray) -> np.ndarray:
    """Of all discrete actions, `[2, B, n]`."""
    return np.stack([network(params["twins_0"], obs), network(params["twins_1"], obs)])


def log_prob(params: Any, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Of the policy of IQL and ODICE."""
    out = network(params["Network_0"], obs)
    if action.dtype.kind == "i":
        logits = out - out.max(-1, keepdims=True)
        return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(action)), action]
    std = np.exp(np.clip(params["log_std"], -5, 2))
    z = (action - np.tanh(out)) / std
    return np.sum(-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi), -1)


def numeric_gradient(f: Callable[[Any], Any], params: Any, h: float = 1e-6) -> Any:
    """Central differences in every entry of the float64 pytree `params`."""
    params = jax.tree.map(np.array, params)
    leaves, structure = jax.tree.flatten(params)
    gradients = []
    for leaf in leaves:
        gradient = np.zeros_like(leaf)
        for index in np.ndindex(leaf.shape):
            kept = leaf[index]
            leaf[index] = kept + h
            above = f(params)
            leaf[index] = kept - h
            gradient[index] = (above - f(params)) / (2 * h)
            leaf[index] = kept
        gradients.append(gradient)
    return jax.tree.unflatten(structure, gradients)
