"""Which setting is meant by a name that there is not: by the field's other words for it, or by its spelling."""

import difflib
from collections.abc import Iterable

from engram.errors import UnknownName

SAME: tuple[tuple[str, ...], ...] = (
    ("learning_rate", "lr", "step_size", "stepsize", "learningrate", "adam_lr"),
    ("learning_rate_end", "anneal_lr", "lr_end", "final_lr"),
    ("discount", "gamma"),
    ("gae_lambda", "lambda", "lam", "gae"),
    ("return_lambda", "lambda", "td_lambda"),
    ("entropy", "ent_coef", "entropy_coef", "entropy_coefficient", "ent_coeff", "entropy_cost"),
    ("value_coefficient", "vf_coef", "value_coef", "vf_coeff", "critic_coef"),
    ("clip", "clip_coef", "clip_range", "clip_eps", "clip_epsilon", "clipping"),
    ("value_clip", "clip_vloss", "vf_clip", "clip_value"),
    ("normalise_advantage", "norm_adv", "normalize_advantage"),
    ("max_grad_norm", "grad_clip", "clip_grad", "gradient_clip", "max_gradient_norm"),
    ("adam_eps", "eps", "epsilon"),
    ("num_envs", "n_envs", "num_environments", "envs", "parallel_envs"),
    ("num_steps", "n_steps", "rollout_length", "rollout_steps", "unroll_length", "horizon"),
    ("epochs", "update_epochs", "num_epochs", "n_epochs", "ppo_epochs"),
    ("minibatches", "num_minibatches", "n_minibatches", "minibatch_size", "batch_size"),
    ("batch_size", "batch", "minibatch_size"),
    ("batch_length", "seq_len", "sequence_length"),
    ("context", "seq_len", "sequence_length", "window", "block_size"),
    (
        "total_steps",
        "total_timesteps",
        "timesteps",
        "steps",
        "num_timesteps",
        "env_steps",
        "max_steps",
        "gradient_steps",
    ),
    ("width", "hidden_size", "hidden_dim", "d_model", "hidden", "embed_dim", "size", "units", "features"),
    ("hidden", "hidden_size", "hidden_sizes", "net_arch", "hidden_dims", "hidden_dim"),
    ("heads", "hidden_sizes", "net_arch", "hidden_layers"),
    ("layers", "num_layers", "n_layers", "depth"),
    ("dropout", "dropout_rate"),
    ("target_rate", "tau", "polyak", "ema"),
    ("replay", "buffer_size", "replay_size", "capacity", "buffer"),
    ("prefill", "learning_starts", "start_steps"),
    ("train_every", "train_freq", "train_frequency", "train_ratio"),
    ("weight_decay", "wd", "l2"),
    ("warmup", "warmup_steps"),
    ("normalise", "normalize", "norm_obs", "normalize_observation", "normalise_observation", "obs_norm"),
    ("normalise_reward", "normalize_reward", "norm_reward", "reward_norm"),
    ("previous_action", "prev_action", "last_action"),
    ("previous_reward", "prev_reward", "last_reward"),
    ("time_limit", "max_episode_steps", "episode_length"),
    ("memory", "rnn", "model", "cell", "memories", "backbone", "mixer"),
    ("memories", "memory", "models"),
    ("memory_options", "memory_kwargs", "rnn_options"),
    ("algorithm", "algo", "agent", "method", "algorithms"),
    ("algorithms", "algorithm", "algos"),
    ("env", "env_id", "environment", "env_name", "task", "game", "envs"),
    ("envs", "env", "environments"),
    ("games", "game", "env"),
    ("eval_env", "test_env", "evaluation_env"),
    ("dataset", "data", "data_path", "datasets"),
    ("seeds", "num_seeds", "n_seeds", "num_runs"),
    ("seed", "random_seed"),
    ("episodes", "num_episodes", "n_episodes", "eval_episodes"),
    ("eval_episodes", "num_episodes", "n_episodes", "episodes"),
    ("greedy", "deterministic", "eval_greedy"),
    ("eval_greedy", "deterministic", "greedy"),
    ("eval_points", "eval_interval", "eval_freq", "eval_every", "num_evals"),
    ("log_points", "log_interval", "log_freq", "log_every"),
    ("checkpoint_seconds", "save_interval", "save_freq", "checkpoint_interval", "checkpoint_every"),
    ("wandb", "track", "wandb_mode", "use_wandb"),
    ("out", "output", "output_dir", "outdir", "logdir", "log_dir", "save_dir", "run_dir"),
    ("quiet", "silent", "no_progress"),
    ("resume", "restore", "load", "continue", "checkpoint"),
    ("gif_steps", "video", "render", "gif"),
)
"""A name in this suite, and what the same thing is called elsewhere."""


def meant(name: str, known: Iterable[str]) -> list[str]:
    """The names in `known` that `name` may stand for, likeliest first, at most three.

    Args:
        name: a name such as `lr`, `ppo.lr` or `--ppo.lr`.
        known: names of one form, `ppo.learning_rate` or `--ppo.learning-rate`.
    """
    group, last = split(name)
    # Those of the group that is named come first.
    parts = dict(sorted(((n, split(n)) for n in known), key=lambda item: item[1][0] != group))
    leaves = [leaf for _, leaf in parts.values()]
    same = [n for word in words_for(last) for n, (_, leaf) in parts.items() if leaf == word]
    longer = [n for word in words_for(last) for n, (_, leaf) in parts.items() if leaf.endswith(f"_{word}")]
    vocabulary = dict.fromkeys([*leaves, *(word for words in SAME for word in words[1:])])
    near = [w for match in difflib.get_close_matches(last, vocabulary, n=3, cutoff=0.6) for w in words_for(match)]
    alike = [n for word in near for n, (_, leaf) in parts.items() if leaf == word]
    return list(dict.fromkeys(same or longer or alike))[:3]


def words_for(word: str) -> list[str]:
    """A word, and what its like is called here."""
    return [word, *(here for here, *elsewhere in SAME if word in elsewhere)]


def split(name: str) -> tuple[str, str]:
    """Group and last part of a dotted name, without dashes."""
    group, _, leaf = name.removeprefix("--").replace("-", "_").lower().rpartition(".")
    return group, leaf


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for `name`, which is no `kind` of those `known`. The message offers what may be meant."""
    known = list(known)
    close = meant(name, known)
    if close:
        return UnknownName(f"unknown {kind} {name!r}: did you mean {' or '.join(close)}?")
    return UnknownName.among(kind, name, [n for n in known if split(n)[0] == split(name)[0]] or known)
