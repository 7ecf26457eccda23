"""Settings of Drama, and the requests that they refuse.

The defaults are the published sizes, with the bugs of the published code fixed. The settings from `act_on` on choose
between what is done here and what the published code does.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engram.agents.common.checks import (
    require_at_least,
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
    require_sizes,
)
from engram.errors import BadRequest


@dataclass(frozen=True)
class DramaSettings:
    """Hyperparameters of Drama."""

    num_envs: int = 1
    """Environments stepped in parallel, per seed."""
    train_every: int = 1
    """Steps of each environment between two gradient steps."""
    prefill: int = 1032
    """Random steps, over all environments, before learning begins."""
    replay: int = 100_000
    """Steps that the replay buffer holds, over all environments."""
    sampling: Literal["frequency", "uniform"] = "frequency"
    """Sampling of the replay buffer: what was replayed less often is preferred, or all windows are equally likely."""
    temperature: float = 10.0
    """Softmax temperature of the frequency-based sampling of training windows."""
    imagine_temperature: float = 10.0
    """Softmax temperature of the frequency-based sampling of the contexts of imagination."""

    batch_size: int = 16
    """Windows in a training batch of the world model."""
    batch_length: int = 128
    """Steps of a training window of the world model."""
    world_learning_rate: float = 4e-5
    """Learning rate of the world model."""
    world_max_norm: float = 1000.0
    """Largest global norm of the world model's gradient; a longer gradient is scaled down to it."""
    free_nats: float = 1.0
    """Lower bound of each KL term, in nats, applied to its mean over the batch."""
    representation: float = 0.1
    """Weight of the representation loss, the KL term that pulls the posterior towards the prior."""

    imagine_batch: int = 1024
    """Trajectories imagined in an update."""
    context: int = 8
    """Replayed steps that the world model sees before imagination begins."""
    imagine_from: Literal["last", "every"] = "last"
    """Steps of a context from which imagination begins: the last one, or every one (then imagine_batch / context
    contexts are replayed)."""
    horizon: int = 16
    """Imagined steps of a trajectory."""
    actor: tuple[int, ...] = (256, 256, 256)
    """Sizes of the policy's hidden layers."""
    critic: tuple[int, ...] = (512, 512, 512)
    """Sizes of the value network's hidden layers."""
    behaviour_learning_rate: float = 4e-5
    """Learning rate of policy and value."""
    behaviour_max_norm: float = 100.0
    """Largest global norm of the gradient of policy and value; a longer gradient is scaled down to it."""
    discount: float = 0.985
    """Discount factor of the return."""
    return_lambda: float = 0.95
    """Lambda of the lambda-return: 1 relies on imagined rewards alone, 0 on the value of the next state."""
    entropy: float = 3e-4
    """Weight of the policy's entropy."""
    slow_critic: float = 0.98
    """Share of its own parameters that the slow critic, a moving average of the critic, keeps at an update."""
    return_scale: float = 0.99
    """Share of the running range of returns, by which advantages are divided, that is kept at an update."""

    behaviour: Literal["reinforce", "ppo"] = "reinforce"
    """Learning rule of policy and value in imagination: one gradient step of REINFORCE, or the steps of PPO."""
    ppo_clip: float = 0.2
    """Clipping range of PPO's probability ratio."""
    ppo_epochs: int = 3
    """Passes of PPO over the imagined steps."""
    ppo_minibatch: int = 16_384
    """Imagined steps in a minibatch of PPO (all of them where there are fewer)."""
    ppo_kl: float = 0.01
    """KL divergence from the policy that imagined beyond which PPO takes no further step in an update."""

    optimiser: Literal["laprop", "adam"] = "laprop"
    """Optimiser of world model, policy and value."""
    warmup: int = 1000
    """Updates over which the learning rates rise linearly from 0."""
    weight_decay: float = 0.0
    """Share by which all parameters shrink at each update, whatever the learning rate."""

    act_on: Literal["posterior", "prior"] = "posterior"
    """Latent that the policy acts on: that of the current observation, or the world model's prediction of it, which has
    not seen the observation."""
    first_action: Literal["policy", "random"] = "policy"
    """Choice of the first action of an episode: by the policy, or at random."""
    seq_reset: bool = True
    """Clearing of the memory where an episode begins within a replayed window."""
    acting_state: Literal["carried", "window"] = "carried"
    """State of the memory when acting: carried from step to step, or computed anew from the last acting_window
    steps."""
    acting_window: int = 16
    """Steps that acting_state=window looks back."""
    lambda_boot: Literal["next", "same"] = "next"
    """Value that the lambda-return bootstraps from: that of the next state, or (biased) that of the same state."""
    reward_index: Literal["after", "early"] = "after"
    """Memory output from which an imagined reward and continuation are predicted: the one after the action, or the one
    before it, which credits an action's reward to the next action."""
    mask_after_term: bool = True
    """Masking of imagined steps that follow an imagined end of the episode."""
    actor_norm: Literal["update", "forward"] = "update"
    """Moments at which the statistics that normalise the policy's input are updated: once an update, or at every
    evaluation of the policy."""
    life_loss_term: bool = True
    """Lost lives count as terminations for the world model; the episode continues."""

    eval_envs: int = 10
    """Environments stepped in parallel in an evaluation."""
    eval_episodes: int = 100
    """Episodes of an evaluation, a multiple of eval_envs."""
    eval_greedy: bool = True
    """Greedy evaluation: the most likely action instead of a sampled one."""
    eval_quota: Literal["fixed", "first"] = "fixed"
    """Episodes that an evaluation counts: equally many of each environment, or the first that end (biased towards short
    ones)."""

    ARGUMENTS: ClassVar = (
        *("world_learning_rate", "world_max_norm", "free_nats", "representation"),
        *("behaviour_learning_rate", "behaviour_max_norm", "discount", "return_lambda", "entropy", "slow_critic"),
        *("return_scale", "ppo_clip", "ppo_kl"),
    )
    """Numbers that are arguments of the compiled programs (see `engram.training.arguments`)."""

    def __post_init__(self):
        prefix = "drama."
        require_positive(self, prefix, "num_envs", "train_every", "temperature", "imagine_temperature", "batch_size")
        require_positive(self, prefix, "world_learning_rate", "world_max_norm", "imagine_batch", "context", "horizon")
        require_positive(self, prefix, "behaviour_learning_rate", "behaviour_max_norm", "ppo_clip", "ppo_epochs")
        require_positive(self, prefix, "ppo_minibatch", "acting_window", "eval_envs", "eval_episodes")
        require_share(self, prefix, "discount", "return_lambda", "slow_critic", "return_scale")
        require_not_negative(self, prefix, "warmup", "weight_decay", "entropy", "free_nats", "representation", "ppo_kl")
        require_at_least(self, prefix, 2, "batch_length")
        require_sizes(self, prefix, "actor", "critic")
        # An older version had a third kind, whose runs were trained on other targets and cannot be continued.
        require_one_of(self, prefix, ("after", "early"), "reward_index")
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
        # Every window that lies within the steps of one environment can be drawn; an update draws without replacement.
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
