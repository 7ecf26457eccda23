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

import jax
import jax.numpy as jnp
from flax import struct

from engram.agents.common import checks
from engram.agents.planners.base import BanditPlanner
from engram.envs.bandits.classification import ClassificationBandit, LinearLoss
from engram.envs.spaces import Box
from engram.envs.tabular.episodic import inverse_cdf
from engram.errors import BadRequest
from engram.training.types import Key, Metrics, PyTree

ALGORITHMS = ("neufastcb", "neusquarecb", "neuralucb", "epsilon-greedy", "neusquarecb-plain", "neufastcb-plain")
LEAST = 1e-6  # predictions are clipped to (LEAST, 1 - LEAST) before arms are weighted


@dataclass(frozen=True)
class NeuCBSettings:
    """Settings of NeuSquareCB, NeuFastCB, NeuralUCB and epsilon-greedy."""

    steps_per_update: int = 500
    """Rounds of one compiled update."""
    width: int = 100
    """Hidden units of the two-layer network, an even number (0: a linear predictor)."""
    learning_rate: float = 1.0
    """Step size of the first gradient step."""
    learning_rate_decay: float = 0.0
    """Decay of the step size, which is learning_rate / (1 + learning_rate_decay * t) after t rounds (0: constant)."""
    ball: float = 100.0
    """Radius of the ball around the initial parameters onto which parameters are projected."""
    perturbation: float = 0.02
    """Size c_p of the perturbation of predictions in NeuSquareCB and NeuFastCB."""
    perturbations: int = 5
    """Number of sign vectors over which perturbed predictions are averaged, of order log(width)."""
    exploration: float | None = None
    """Weight gamma of the gaps between predicted losses; more means less exploration (None: sqrt(K T / log T) with
    squared loss and 10 K with KL loss, for K arms and T rounds)."""
    ucb_scale: float = 0.05
    """Weight of the confidence width in NeuralUCB."""
    ucb_regularisation: float = 1.0
    """Initial value lambda of the diagonal of Z in NeuralUCB."""
    epsilon: float = 0.05
    """Probability of a uniformly drawn arm in epsilon-greedy."""

    def __post_init__(self):
        checks.require_at_least(self, "neucb.", 1, "steps_per_update", "perturbations")
        checks.require_positive(self, "neucb.", "learning_rate", "ucb_regularisation")
        checks.require_not_negative(self, "neucb.", "learning_rate_decay", "perturbation", "exploration", "ucb_scale")
        checks.require_share(self, "neucb.", "epsilon")
        if self.width < 0 or self.width % 2:
            raise BadRequest(f"neucb.width must be 0 or a positive even number, got {self.width}")
        if not self.ball > 0:  # it may be infinite
            raise BadRequest(f"neucb.ball must be positive, got {self.ball}")


class NeuCBState(struct.PyTreeNode):
    """Everything that a run of one seed carries. `p` is the number of parameters."""

    env: PyTree
    contexts: jax.Array
    """`[K, d]`: the contexts shown."""
    key: jax.Array
    start: jax.Array
    """`[p]`: the parameters at the beginning, theta_0."""
    shift: jax.Array
    """`[p]`: theta - theta_0."""
    signs: jax.Array
    """`[S, p]` int8: the perturbations' signs; S = 0 where predictions are not perturbed."""
    design: jax.Array
    """`[p]`: the diagonal Z of NeuralUCB; `[0]` in the others."""
    t: jax.Array
    """Rounds played so far, int32."""
    regret: jax.Array
    """Sum of the best arm's mean reward less that of the played one, so far."""
    reward_sum: jax.Array


class NeuCBStep(struct.PyTreeNode):
    """One round of a trace."""

    action: jax.Array
    reward: jax.Array
    mean: jax.Array
    """Mean reward of the action."""
    optimal: jax.Array
    """Mean reward of the best arm."""
    prediction: jax.Array
    """`[K]`: predicted losses."""
    probabilities: jax.Array
    """`[K]`: the distribution that the arm was drawn from."""
    loss: jax.Array
    """Loss of the regression, before the gradient step."""
    distance: jax.Array
    """|theta - theta_0|, after the gradient step."""


def square_weights(prediction: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """SquareCB: p_a = 1 / (K + gamma (y_a - y_b)) for every arm but the best b, which has the rest. `[K] -> [K]`."""
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


@dataclass(frozen=True, eq=False)
class NeuCB(BanditPlanner[NeuCBState, NeuCBStep]):
    """One algorithm on one contextual bandit that shows a context per arm.

    Regret is counted against the best arm of every round, in mean rewards; on classification data these are mistakes.
    """

    algorithms = ALGORITHMS
    family = "classification"
    env_type = (ClassificationBandit, LinearLoss)

    settings: NeuCBSettings

    @property
    def num_uniforms(self) -> int:
        """Uniforms of one round: the arm's, then the environment's."""
        return 1 + self.env.num_uniforms

    @property
    def _shape(self) -> tuple[int, ...]:
        """`[K, d]`."""
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

    def init(self, key: Key) -> NeuCBState:
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
        """f(theta; x) of contexts `x [..., d]`: <v, relu(W x)> / sqrt(width), or <theta, x>."""
        m, d = self.settings.width, x.shape[-1]
        if m == 0:
            return x @ theta
        return jax.nn.relu(x @ theta[: m * d].reshape(m, d).T) @ theta[m * d :] / m**0.5

    def outputs(self, shift: jax.Array, start: jax.Array, signs: jax.Array, x: jax.Array) -> jax.Array:
        """The perturbed f~(theta; x, eps_s), `[max(S, 1), ...]` for contexts `x [..., d]`.

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
        """Mean over the sign vectors of the loss of one context `x [d]` whose loss `y` was seen.

        (f~ - y)^2 / 2, or the binary KL divergence between y and sigmoid(f~), up to y's entropy.
        """
        f = self.outputs(shift, start, signs, x)
        if self.is_fast:
            return jnp.mean(jax.nn.softplus(f) - y * f)
        return jnp.mean((f - y) ** 2) / 2

    def predict(self, state: NeuCBState) -> jax.Array:
        """Predicted losses of all arms, `[K]`."""
        f = self.outputs(state.shift, state.start, state.signs, state.contexts)
        prediction = jnp.mean(jax.nn.sigmoid(f) if self.is_fast else f, 0)
        return jnp.clip(prediction, LEAST, 1 - LEAST)

    def squared_widths(self, state: NeuCBState) -> jax.Array:
        """`<g^2, 1 / Z>` of every arm, `[K]`, g the gradient of f there and Z the diagonal design.

        The gradient in W is an outer product, so its square is one too, and no `[K, p]` array is needed.
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
        """The distribution that the arm is drawn from, `[K]`, given predicted losses `[K]`."""
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

    def learn(
        self, shift: jax.Array, start: jax.Array, signs: jax.Array, x: jax.Array, y: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One projected gradient step on the loss `y` of context `x`, in round `t` (from 0): loss before, new shift."""
        s = self.settings
        loss, gradient = jax.value_and_grad(self.loss)(shift, start, signs, x, y)
        shift = shift - s.learning_rate / (1 + s.learning_rate_decay * t) * gradient
        norm = jnp.linalg.norm(shift)
        return loss, shift * jnp.where(norm > s.ball, s.ball / norm, 1)

    def play_round(self, state: NeuCBState, uniforms: jax.Array) -> tuple[NeuCBState, NeuCBStep]:
        prediction = self.predict(state)
        p = self.probabilities(state, prediction)
        action = inverse_cdf(p, uniforms[0])
        x = state.contexts[action]
        contexts, env, reward, _, _, info = self.env.transition(
            state.env, action, uniforms[1:], self.env.default_params
        )
        loss, shift = self.learn(state.shift, state.start, state.signs, x, 1 - reward, state.t)
        step = NeuCBStep(action, reward, info["mean"], info["optimal"], prediction, p, loss, jnp.linalg.norm(shift))
        design = state.design
        if self.algorithm == "neuralucb":
            design += jax.grad(self.output)(state.start + state.shift, x) ** 2
        return state.replace(env=env, contexts=contexts, shift=shift, design=design, t=state.t + 1), step

    def summarise(self, state: NeuCBState, trace: NeuCBStep) -> tuple[NeuCBState, Metrics]:
        return state, {
            "train/return": jnp.mean(trace.reward),
            "train/regret_last": state.regret,
            "train/best_probability": jnp.mean(jnp.max(trace.probabilities, 1)),
            "train/distance_last": trace.distance[-1],
            "loss/regression": jnp.mean(trace.loss),
        }
