"""NeuSquareCB and NeuFastCB, contextual bandits by online neural regression (Deb et al., ICLR 2024, arXiv 2312.07145).

A network predicts the loss of every arm; inverse gap weighting turns predictions into a distribution over arms
(SquareCB, Foster and Rakhlin 2020; FastCB, Foster and Krishnamurthy 2021); one gradient step a round fits the loss
that was seen. Predictions are perturbed by random signs times the parameters' distance from where they began, which
gives the regression's objective quadratic growth and a single minimum. The names that end in `-plain` leave the
perturbation out.

NeuralUCB (Zhou et al. 2020, arXiv 1911.04462) and epsilon-greedy explore over the very same regression (squared loss,
no perturbation). NeuralUCB keeps the diagonal of its matrix Z alone, as its authors' code does, and does not train
again on the whole past.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from engram.envs.base import UniformEnvironment
from engram.envs.spaces import Box
from engram.errors import BadRequest

Metrics = dict[str, jax.Array]
ALGORITHMS = ("neufastcb", "neusquarecb", "neuralucb", "epsilon-greedy", "neusquarecb-plain", "neufastcb-plain")
LEAST = 1e-6  # predictions are clipped to (LEAST, 1 - LEAST) before arms are weighted


@dataclass(frozen=True)
class NeuCBSettings:
    """Settings of NeuSquareCB, NeuFastCB and their rivals."""

    steps_per_update: int
    """Rounds of one compiled update."""
    width: int
    """Hidden units of the two-layer network, an even number; 0 is a linear predictor."""
    learning_rate: float
    """Step size of the first gradient step."""
    learning_rate_decay: float
    """After t rounds the step size is learning_rate / (1 + learning_rate_decay * t); 0 keeps it constant."""
    ball: float
    """Radius of the ball around the initial parameters that parameters are projected onto."""
    perturbation: float
    """Size of the perturbation, c_p; unused where predictions are not perturbed."""
    perturbations: int
    """Sign vectors S over which perturbed predictions are averaged, of order log(width)."""
    exploration: float | None
    """Weight gamma of the gaps: more means less exploration. None is sqrt(K T / log T) with squared loss and 10 K with
    KL loss."""
    ucb_scale: float
    """NeuralUCB's weight of the confidence width."""
    ucb_regularisation: float
    """NeuralUCB's lambda, the initial diagonal of Z."""
    epsilon: float
    """Probability of a uniform arm in epsilon-greedy."""

    def __post_init__(self):
        def require(name: str, what: str, holds: bool):
            if not holds:
                raise BadRequest(f"neucb.{name} must {what}, got {getattr(self, name)}")

        require("steps_per_update", "be at least 1", self.steps_per_update >= 1)
        require("width", "be an even number from 0", self.width >= 0 and self.width % 2 == 0)
        require("perturbations", "be at least 1", self.perturbations >= 1)
        for name in ("learning_rate", "ball", "ucb_regularisation"):
            require(name, "be positive", getattr(self, name) > 0)
        for name in ("learning_rate_decay", "perturbation", "ucb_scale"):
            require(name, "be at least 0", getattr(self, name) >= 0)
        require("exploration", "be at least 0", self.exploration is None or self.exploration >= 0)
        require("epsilon", "lie in [0, 1]", 0 <= self.epsilon <= 1)


class NeuCBState(struct.PyTreeNode):
    """Everything that a run carries, of one seed. `p` parameters."""

    env: Any
    contexts: jax.Array
    """`(K, d)`: the contexts shown."""
    key: jax.Array
    start: jax.Array
    """`(p,)`: the parameters at the beginning, theta_0."""
    shift: jax.Array
    """`(p,)`: theta - theta_0."""
    signs: jax.Array
    """`(S, p)` int8: the perturbations' signs; S = 0 where predictions are not perturbed."""
    design: jax.Array
    """`(p,)`: NeuralUCB's diagonal Z; empty in the others."""
    t: jax.Array
    """Rounds played so far, int32."""
    regret: jax.Array
    """Sum of the best arm's mean reward less that of the played one."""
    reward_sum: jax.Array


class NeuCBStep(struct.PyTreeNode):
    """One round of a trace."""

    action: jax.Array
    reward: jax.Array
    mean: jax.Array
    optimal: jax.Array
    prediction: jax.Array
    """`(K,)`: predicted losses."""
    probabilities: jax.Array
    """`(K,)`: the distribution that the arm was drawn from."""
    loss: jax.Array
    """The regression's loss, before the gradient step."""
    distance: jax.Array
    """|theta - theta_0|, after it."""


def square_weights(prediction: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """SquareCB: p_a = 1 / (K + gamma (y_a - y_b)) for every arm but the best b, which has the rest. `(K,) -> (K,)`."""
    k, best = prediction.shape[0], jnp.argmin(prediction)
    p = 1 / (k + gamma * (prediction - prediction[best]))
    return _rest_to(p, best)


def fast_weights(prediction: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """FastCB: p_a = y_b / (K y_b + gamma (y_a - y_b)) likewise; it explores less the less the best arm loses."""
    k, best = prediction.shape[0], jnp.argmin(prediction)
    least = prediction[best]
    return _rest_to(least / (k * least + gamma * (prediction - least)), best)


def _rest_to(p: jax.Array, best: jax.Array) -> jax.Array:
    others = jnp.where(jnp.arange(p.shape[0]) == best, 0, p)
    return others.at[best].set(1 - jnp.sum(others))


def draw(p: jax.Array, u: jax.Array) -> jax.Array:
    """An index of the distribution `p (K,)` by its inverse distribution function at `u`, int32."""
    return jnp.minimum(jnp.sum(jnp.cumsum(p) <= u, dtype=jnp.int32), p.shape[0] - 1)


@dataclass(frozen=True, eq=False)
class NeuCB:
    """The agent: pure `init`, `update` and `evaluate` over a `NeuCBState`.

    Regret is counted against the best arm of every round, in mean rewards; on classification data these are mistakes.
    """

    env: UniformEnvironment
    settings: NeuCBSettings
    algorithm: str
    total_steps: int
    """The horizon T, in rounds."""

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise BadRequest(f"unknown algorithm {self.algorithm!r}: choose from {', '.join(ALGORITHMS)}")
        if len(self._shape) != 2:
            raise BadRequest(f"neucb needs an environment that shows a context per arm, got {self.env.name}")

    @property
    def steps_per_update(self) -> int:
        return self.settings.steps_per_update

    @property
    def _shape(self) -> tuple[int, ...]:
        """`(K, d)`."""
        space = self.env.observation_space(self.env.default_params)
        return space.shape if isinstance(space, Box) else ()

    @property
    def is_fast(self) -> bool:
        """Whether predictions go through a sigmoid and are fitted by KL loss."""
        return self.algorithm.startswith("neufastcb")

    @property
    def gamma(self) -> float:
        """Weight of the gaps."""
        if self.settings.exploration is not None:
            return self.settings.exploration
        k = self._shape[0]
        return 10.0 * k if self.is_fast else math.sqrt(k * self.total_steps / max(math.log(self.total_steps), 1.0))

    def init(self, key: jax.Array) -> NeuCBState:
        s = self.settings
        key, env_key, weights_key, signs_key = jax.random.split(key, 4)
        contexts, env = self.env.reset(env_key, self.env.default_params)
        d, dtype = contexts.shape[1], contexts.dtype
        if s.width == 0:
            start = jnp.zeros(d, dtype)
        else:
            # Hidden units come in pairs, of equal weights in and opposite weights out: f(theta_0) = 0, though neither
            # gradient is.
            half = jax.random.normal(weights_key, (s.width // 2, d + 1), dtype)
            inward = jnp.concatenate([half[:, :d], half[:, :d]])
            start = jnp.concatenate([inward.ravel(), half[:, d], -half[:, d]])
        size = start.shape[0]
        perturbed = self.algorithm in ("neufastcb", "neusquarecb")
        signs = jax.random.rademacher(signs_key, (s.perturbations if perturbed else 0, size), jnp.int8)
        design = jnp.full(size if self.algorithm == "neuralucb" else 0, s.ucb_regularisation, dtype)
        zero = jnp.zeros((), dtype)
        return NeuCBState(
            env, contexts, key, start, jnp.zeros_like(start), signs, design, jnp.int32(0), zero, zero
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- predicting

    def output(self, theta: jax.Array, x: jax.Array) -> jax.Array:
        """f(theta; x) of contexts `x (..., d)`: <v, relu(W x)> / sqrt(width), or <theta, x>."""
        m, d = self.settings.width, x.shape[-1]
        if m == 0:
            return x @ theta
        return jax.nn.relu(x @ theta[: m * d].reshape(m, d).T) @ theta[m * d :] / m**0.5

    def outputs(self, shift: jax.Array, start: jax.Array, signs: jax.Array, x: jax.Array) -> jax.Array:
        """The perturbed f~(theta; x, eps_s), `(max(S, 1), ...)` for contexts `x (..., d)`.

        f~ = f + c_p <theta - theta_0, eps> / width^(1/4); its mean over all signs is f. A linear predictor has width 1
        here.
        """
        f = self.output(start + shift, x)[None]
        if signs.shape[0] == 0:
            return f
        scale = self.settings.perturbation / max(self.settings.width, 1) ** 0.25
        noise = scale * (signs.astype(shift.dtype) @ shift)
        return f + noise.reshape(-1, *[1] * (f.ndim - 1))

    def loss(self, shift: jax.Array, start: jax.Array, signs: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        """Mean over the sign vectors of the loss of one context `x (d,)` whose loss `y` was seen.

        (f~ - y)^2 / 2, or the binary KL divergence between y and sigmoid(f~), up to y's entropy.
        """
        f = self.outputs(shift, start, signs, x)
        if self.is_fast:
            return jnp.mean(jax.nn.softplus(f) - y * f)
        return jnp.mean((f - y) ** 2) / 2

    def predict(self, state: NeuCBState) -> jax.Array:
        """Predicted losses of all arms, `(K,)`."""
        f = self.outputs(state.shift, state.start, state.signs, state.contexts)
        prediction = jnp.mean(jax.nn.sigmoid(f) if self.is_fast else f, 0)
        return jnp.clip(prediction, LEAST, 1 - LEAST)

    def squared_widths(self, state: NeuCBState) -> jax.Array:
        """`<g^2, 1 / Z>` of every arm, `(K,)`, g the gradient of f there and Z the diagonal design.

        The gradient in W is an outer product, so its square is one too, and no `(K, p)` array is needed.
        """
        x, Z, theta, m = state.contexts, state.design, state.start + state.shift, self.settings.width
        if m == 0:
            return x**2 @ (1 / Z)
        cut = m * x.shape[1]
        before = x @ theta[:cut].reshape(m, -1).T
        slopes = (before > 0) * theta[cut:]
        inward = jnp.sum(slopes**2 * (x**2 @ (1 / Z[:cut]).reshape(m, -1).T), 1)
        return (inward + jax.nn.relu(before) ** 2 @ (1 / Z[cut:])) / m

    # ------------------------------------------------------------------------------------------------- playing

    def probabilities(self, state: NeuCBState, prediction: jax.Array) -> jax.Array:
        """The distribution that the arm is drawn from, `(K,)`, given predicted losses `(K,)`."""
        k = prediction.shape[0]
        if self.algorithm == "neuralucb":
            # Losses instead of rewards: the bound that is optimistic is the lower one.
            f = self.output(state.start + state.shift, state.contexts)
            lower = f - self.settings.ucb_scale * jnp.sqrt(self.squared_widths(state))
            return (jnp.arange(k) == jnp.argmin(lower)).astype(prediction.dtype)
        if self.algorithm == "epsilon-greedy":
            greedy = (jnp.arange(k) == jnp.argmin(prediction)).astype(prediction.dtype)
            return self.settings.epsilon / k + (1 - self.settings.epsilon) * greedy
        weights = fast_weights if self.is_fast else square_weights
        return weights(prediction, self.gamma)

    def learn(self, shift, start, signs, x, y, t) -> tuple[jax.Array, jax.Array]:
        """One projected gradient step on the loss `y` of context `x`, in round `t` (from 0): loss before, new shift."""
        s = self.settings
        loss, gradient = jax.value_and_grad(self.loss)(shift, start, signs, x, y)
        shift = shift - s.learning_rate / (1 + s.learning_rate_decay * t) * gradient
        norm = jnp.linalg.norm(shift)
        return loss, shift * jnp.where(norm > s.ball, s.ball / norm, 1)

    def play(self, state: NeuCBState, uniforms: jax.Array) -> tuple[NeuCBState, NeuCBStep]:
        """Plays rounds from `uniforms (rounds, 1 + env.num_uniforms)`, the arm's first; new state, trace."""

        def one_round(state: NeuCBState, u: jax.Array):
            prediction = self.predict(state)
            p = self.probabilities(state, prediction)
            action = draw(p, u[0])
            x = state.contexts[action]
            contexts, env, reward, _, _, info = self.env.transition(state.env, action, u[1:], self.env.default_params)
            loss, shift = self.learn(state.shift, state.start, state.signs, x, 1 - reward, state.t)
            step = NeuCBStep(action, reward, info["mean"], info["optimal"], prediction, p, loss, jnp.linalg.norm(shift))
            design = state.design
            if self.algorithm == "neuralucb":
                design += jax.grad(self.output)(state.start + state.shift, x) ** 2
            return state.replace(env=env, contexts=contexts, shift=shift, design=design, t=state.t + 1), step

        state, steps = jax.lax.scan(one_round, state, uniforms)
        return state.replace(
            regret=state.regret + jnp.sum(steps.optimal - steps.mean), reward_sum=state.reward_sum + steps.reward.sum()
        ), steps

    def update(self, state: NeuCBState) -> tuple[NeuCBState, Metrics]:
        key, draw_key = jax.random.split(state.key)
        shape = (self.steps_per_update, 1 + self.env.num_uniforms)
        uniforms = jax.random.uniform(draw_key, shape, state.shift.dtype)
        state, steps = self.play(state.replace(key=key), uniforms)
        metrics = {
            "train/return": jnp.mean(steps.reward),
            "train/regret_last": state.regret,
            "train/best_probability": jnp.mean(jnp.max(steps.probabilities, 1)),
            "train/distance_last": steps.distance[-1],
            "loss/regression": jnp.mean(steps.loss),
        }
        return state, metrics

    def evaluate(self, state: NeuCBState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """What the run has earned a round so far, and its regret a round. `key` is unused: nothing is played."""
        rounds = jnp.maximum(state.t, 1)
        return {"eval/return": state.reward_sum / rounds, "eval/regret_per_step": state.regret / rounds}

    def close(self) -> None:
        """Nothing to free."""
