"""Settings of Drama, and the requests that they refuse.

The defaults are the published sizes, with the bugs of the published code fixed. Some settings choose between what is
done here and what the published code does.
"""

from dataclasses import dataclass
from typing import Literal

from engram.errors import BadRequest


@dataclass(frozen=True)
class DramaSettings:
    """Hyperparameters of Drama."""

    num_envs: int
    """Environments stepped in parallel, per seed."""
    train_every: int
    """Steps of each environment between two gradient steps."""
    prefill: int
    """Random steps, over all environments, before anything is learned."""
    replay: int
    """Steps that are kept, over all environments."""
    sampling: Literal["frequency", "uniform"]
    """What is replayed: what was replayed less often before, or anything."""
    temperature: float
    """Of the frequency-based draws of training windows."""
    imagine_temperature: float
    """Of the frequency-based draws of the contexts of imagination."""

    batch_size: int
    """Windows in a batch of the world model."""
    batch_length: int
    """Steps of a window."""
    world_learning_rate: float
    """Step size of the world model."""
    world_max_norm: float
    """Gradients of the world model are scaled down to this global norm."""
    free_nats: float
    """Least cost of each KL term, which is averaged over the batch."""
    representation: float
    """Weight of the KL term that pulls the posterior to the prior."""

    imagine_batch: int
    """Imagined trajectories of an update."""
    context: int
    """Replayed steps before imagination begins."""
    imagine_from: Literal["last", "every"]
    """Imagination begins after the last step of a context, or after every one (imagine_batch / context contexts)."""
    horizon: int
    """Imagined steps."""
    actor: tuple[int, ...]
    """Sizes of the policy's hidden layers."""
    critic: tuple[int, ...]
    """Sizes of the value's hidden layers."""
    behaviour_learning_rate: float
    """Step size of policy and value."""
    behaviour_max_norm: float
    """Gradients of policy and value are scaled down to this global norm."""
    discount: float
    """Discount factor of the return."""
    lambda_: float
    """Lambda of the return: 1 trusts only imagined rewards, 0 only the next value."""
    entropy: float
    """Weight of the policy's entropy."""
    slow_critic: float
    """Share of the slow critic that an update keeps."""
    return_scale: float
    """Share of the running range of returns that an update keeps."""

    behaviour: Literal["reinforce", "ppo"]
    """Policy and value take one step on what was imagined, or the steps of PPO."""
    ppo_clip: float
    """Of PPO: clipping range of the probability ratio."""
    ppo_epochs: int
    """Of PPO: passes over the imagined steps."""
    ppo_minibatch: int
    """Of PPO: imagined steps of a gradient step (all of them where there are fewer)."""
    ppo_kl: float
    """Of PPO: no further step of an update once the policy is this far (KL) from the one that imagined."""

    optimiser: Literal["laprop", "adam"]
    """Optimiser of all parts."""
    warmup: int
    """Updates over which the step sizes rise."""
    weight_decay: float
    """Parameters shrink by this share at every update, whatever the step size is."""

    act_on: Literal["posterior", "prior"]
    """The policy sees the encoded observation, or what the memory predicts for it (one frame blind)."""
    first_action: Literal["policy", "random"]
    """What opens an episode."""
    seq_reset: bool
    """Clear the memory where an episode opens within a replayed window."""
    acting_state: Literal["carried", "window"]
    """The actor carries the memory's state, or computes it afresh from the last acting_window steps."""
    acting_window: int
    """Steps that acting_state=window looks back."""
    lambda_boot: Literal["next", "same"]
    """Value in the return: of the state that follows, or (biased) of the state itself."""
    reward_index: Literal["after", "early"]
    """Imagined rewards and ends are read from the memory after the action that they follow, or one step early, so that
    an action's reward counts for the state after it."""
    mask_after_term: bool
    """Imagined steps after an imagined end count nothing."""
    actor_norm: Literal["update", "forward"]
    """When the statistics that normalise the policy's input move: once an update, or whenever the policy is asked."""
    life_loss_term: bool
    """A lost life counts as an end, for what the world model predicts; the episode goes on."""

    eval_envs: int
    """Environments of an evaluation."""
    eval_episodes: int
    """Episodes of an evaluation, a multiple of eval_envs."""
    eval_greedy: bool
    """Evaluate the most likely action instead of a sampled one."""
    eval_quota: Literal["fixed", "first"]
    """Count the same number of episodes of every environment, or (biased to short ones) those that end first."""

    def __post_init__(self):
        positive = (
            "num_envs train_every batch_size imagine_batch context horizon eval_envs eval_episodes acting_window "
            "temperature imagine_temperature world_learning_rate world_max_norm behaviour_learning_rate "
            "behaviour_max_norm ppo_clip ppo_epochs ppo_minibatch"
        )
        for name in positive.split():
            if not 0 < getattr(self, name) < float("inf"):
                raise BadRequest(f"drama.{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("discount", "lambda_", "slow_critic", "return_scale"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadRequest(f"drama.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "entropy", "free_nats", "representation", "ppo_kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadRequest(f"drama.{name} must not be negative, got {getattr(self, name)}")
        if self.reward_index not in ("after", "early"):  # runs of a third kind were trained on other targets
            raise BadRequest(f"drama.reward_index must be after or early, got {self.reward_index}")
        if self.batch_length < 2:
            raise BadRequest(f"drama.batch_length must be at least 2, got {self.batch_length}")
        if self.imagine_from == "every" and self.imagine_batch % self.context:
            raise BadRequest(
                f"drama.imagine_batch ({self.imagine_batch}) must be a multiple of drama.context ({self.context}) "
                "where drama.imagine_from is every"
            )
        imagined = self.imagine_batch * self.horizon
        if self.behaviour == "ppo" and imagined % min(self.ppo_minibatch, imagined):
            raise BadRequest(
                f"drama.ppo_minibatch ({self.ppo_minibatch}) must divide the {imagined} imagined steps of an update "
                "(drama.imagine_batch x drama.horizon)"
            )
        # Every window that lies within a lane is a start; an update draws without replacement.
        needed = max(
            self.batch_size + self.num_envs * (self.batch_length - 1),
            self.contexts + self.num_envs * (self.context - 1),
        )
        if self.prefill < needed:
            raise BadRequest(
                f"drama.prefill must be at least {needed} for {self.contexts} contexts of {self.context} steps "
                f"and {self.batch_size} windows of {self.batch_length} from {self.num_envs} environments, "
                f"got {self.prefill}"
            )
        if self.replay < self.prefill:
            raise BadRequest(f"drama.replay must hold the prefill of {self.prefill} steps, got {self.replay}")
        if self.eval_episodes % self.eval_envs:
            raise BadRequest(
                f"drama.eval_episodes ({self.eval_episodes}) must be a multiple of drama.eval_envs ({self.eval_envs})"
            )

    @property
    def contexts(self) -> int:
        """Replayed windows from which an update imagines."""
        return self.imagine_batch // (self.context if self.imagine_from == "every" else 1)
