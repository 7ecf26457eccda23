"""Planted bugs: mistakes that the tests must notice, each with a test that does.

    python -m tests.planted_bugs                # plants every bug in a copy of the repository and runs its test
    python -m tests.planted_bugs --only reset   # those whose file or reason contains the word

A bug replaces a piece of a file that occurs there once. The exit code is 0 if every test failed on its bug. What a tier
must notice is a promise about that tier: `fast` is `make test`, `slow` is what `make test-all` adds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bug:
    """A mistake in one place."""

    file: str
    """Path of the file."""
    right: str
    """Piece of the file, which occurs there once."""
    wrong: str
    """Replacement that makes it wrong."""
    test: str
    """Test that fails on it, as pytest names it."""
    reason: str
    """What goes wrong, in a few words."""
    tier: Literal["fast", "slow"] = "fast"
    """Tier that notices it."""


BUGS: tuple[Bug, ...] = (
    Bug(
        "agents/offline/base.py",
        "optax.incremental_update(learned, target, ",
        "optax.incremental_update(target, learned, ",
        "tests/agents/offline/test_offline_values.py::test_data_are_an_argument_of_the_program",
        "target networks follow the wrong way",
    ),
    Bug(
        "agents/offline/base.py",
        "self.view.normalise(obs), reward, reset)",
        "obs, reward, reset)",
        "tests/agents/offline/test_bc.py::test_losses_are_cross_entropy_and_squared_error_in_the_actions_bounds",
        "observations are not standardised in evaluations",
    ),
    Bug(
        "agents/offline/data.py",
        "row = step + episode",
        "row = step + 0",
        "tests/agents/offline/test_offline_values.py::test_transitions_are_those_of_the_episodes",
        "observations of other steps",
    ),
    Bug(
        "agents/offline/data.py",
        "reset=offset <= 0",
        "reset=offset < 0",
        "tests/agents/offline/test_sequence_policy.py::test_padding_is_inert",
        "padding is seen by the memory",
    ),
    Bug(
        "agents/offline/view.py",
        "centre=((low + high) / 2)",
        "centre=((low - high) / 2)",
        "tests/agents/offline/test_offline_values.py::test_actions_are_rescaled_by_their_bounds_and_back",
        "centre of the actions",
    ),
    Bug(
        "agents/offline/bc.py",
        "jnp.where(reset, target, to_go - reward)",
        "to_go - reward",
        "tests/agents/offline/test_bc.py::test_return_and_time_start_afresh_with_an_episode",
        "return to go is not reset",
    ),
    Bug(
        "agents/offline/bc.py",
        "(to_go / self.settings.return_scale)",
        "to_go",
        "tests/agents/offline/test_bc.py::test_the_policy_is_given_the_scaled_return_and_the_share_of_the_longest_episode",
        "return to go is not scaled",
    ),
    Bug(
        "agents/offline/bc.py",
        "(*carry, (wanted, wanted, acting[2]))",
        "(*carry, acting)",
        "tests/agents/offline/test_bc.py::test_what_is_asked_for_is_what_is_achieved",
        "all targets are the first",
        "slow",
    ),
    Bug(
        "agents/offline/td3bc.py",
        "noise = jnp.clip(noise, -s.noise_clip, s.noise_clip)",
        "noise = noise + 0.0",
        "tests/agents/offline/test_td3bc.py::test_noise_on_the_target_action_is_clipped_and_so_is_the_action",
        "noise is not clipped",
    ),
    Bug(
        "agents/offline/td3bc.py",
        "jax.lax.stop_gradient(jnp.mean(jnp.abs(value)))",
        "jnp.mean(jnp.abs(value))",
        "tests/agents/offline/test_td3bc.py::test_policy_gradient_is_that_of_equation_5_and_does_not_depend_on_the_scale_of_values",
        "gradient of the scale of values",
    ),
    Bug(
        "agents/offline/iql.py",
        "(advantage < 0)",
        "(advantage > 0)",
        "tests/agents/offline/test_iql.py::test_losses_and_gradients_are_those_of_equations_5_to_7",
        "expectile upside down",
    ),
    Bug(
        "agents/offline/iql.py",
        "fixed(jnp.min(twins, axis=0))",
        "fixed(jnp.max(twins, axis=0))",
        "tests/agents/offline/test_iql.py::test_losses_and_gradients_are_those_of_equations_5_to_7",
        "the larger of two values",
    ),
    Bug(
        "agents/offline/cql.py",
        "jnp.argmax(jnp.min(",
        "jnp.argmax(jnp.max(",
        "tests/agents/offline/test_cql.py::test_greedy_actions_have_the_largest_smaller_value_or_are_the_policys_mean",
        "acts on the larger of two values",
    ),
    Bug(
        "agents/offline/cql.py",
        " - math.log(3 * s.samples)",
        "",
        "tests/agents/offline/test_cql.py::test_conservative_term_of_continuous_actions_is_an_integral",
        "a sum instead of an integral",
    ),
    Bug(
        "agents/offline/odice.py",
        "(backward, -share, forward)",
        "(backward, share, forward)",
        "tests/agents/offline/test_odice.py::test_projection_is_of_all_parameters_as_one_vector",
        "sign of the projection",
    ),
    Bug(
        "agents/offline/odice.py",
        "jnp.clip(residual, 0.0, GREATEST_WEIGHT)",
        "jnp.abs(residual)",
        "tests/agents/offline/test_odice.py::test_policy_imitates_with_the_positive_residuals",
        "negative residuals are imitated",
    ),
    Bug(
        "agents/offline/bisimulation.py",
        "jnp.sqrt(fixed(squared))",
        "jnp.sqrt(squared)",
        "tests/agents/offline/test_bisimulation.py::test_losses_are_those_of_the_definition_and_each_trains_its_own_part",
        "the bisimulation loss trains the model",
    ),
    Bug(
        "agents/offline/bisimulation.py",
        "self.bisimulation.weight * distance_loss",
        "0.0 * distance_loss",
        "tests/agents/offline/test_bisimulation.py::test_pasts_that_make_no_difference_become_alike_and_the_return_rises",
        "no bisimulation loss",
        "slow",
    ),
    Bug(
        "agents/offline/sequence_policy.py",
        "self.action_head(y_obs)",
        "self.action_head(y_action)",
        "tests/agents/offline/test_sequence_policy.py::test_no_prediction_sees_what_it_predicts[gru]",
        "the action is predicted from itself",
    ),
    Bug(
        "agents/offline/sequence_policy.py",
        "to_go -= reward.reshape(lanes) / self.settings.return_scale",
        "to_go -= 0.0",
        "tests/agents/offline/test_sequence_policy.py::test_the_return_to_go_falls_by_the_rewards",
        "the return to go does not fall",
    ),
    Bug(
        "agents/offline/sequence_policy.py",
        "epoch_ends = updates % s.epoch == 0",
        "epoch_ends = state.updates % s.epoch == 0",
        "tests/agents/offline/test_sequence_policy.py::test_teacher_is_the_policy_at_the_end_of_the_epoch_before",
        "the teacher is one update late",
    ),
    Bug(
        "agents/offline/sequence_policy.py",
        "mask = age <= t",
        "mask = age < t",
        "tests/agents/offline/test_sequence_policy.py::test_both_ways_of_acting_are_the_same_where_the_window_holds_the_episode",
        "acting does not see the first step",
    ),
    Bug(
        "agents/drama/agent.py",
        'd = d[1:] if self.settings.reward_index == "after" else d[:-1]',
        'd = d[:-1] if self.settings.reward_index == "after" else d[1:]',
        "tests/agents/drama/test_drama.py::test_rewards_and_ends_are_read_after_the_action[after-1]",
        "rewards are read one step early",
    ),
    Bug(
        "agents/drama/agent.py",
        "1.0 - ended[None]",
        "jnp.ones_like(ended[None])",
        "tests/agents/drama/test_drama.py::test_nothing_counts_after_an_end[after-0]",
        "imagination goes on after an end of the context",
    ),
    Bug(
        "agents/drama/agent.py",
        "d = clear(reset, acting.d)",
        "d = acting.d",
        "tests/agents/drama/test_drama.py::test_an_opening_clears_what_was_carried",
        "reset of the acting state",
    ),
    Bug(
        "agents/drama/agent.py",
        "s.slow_critic * slow + (1.0 - s.slow_critic) * new",
        "s.slow_critic * new + (1.0 - s.slow_critic) * slow",
        "tests/agents/drama/test_drama.py::test_losses_of_behaviour_by_definition[next]",
        "the slow critic is fast",
    ),
    Bug(
        "agents/drama/agent.py",
        '(count == 0) | (metrics["loss/kl"] <= s.ppo_kl)',
        'metrics["loss/kl"] <= s.ppo_kl + 1e9',
        "tests/agents/drama/test_drama_ppo.py::test_an_update_ends_where_the_policy_has_moved_too_far",
        "PPO never stops",
    ),
    Bug(
        "agents/drama/agent.py",
        "log_prob = policy.log_prob(action) if",
        'log_prob = self._policy(state.behaviour["actor"], state.actor_norm, features).log_prob(action) if',
        "tests/agents/drama/test_drama_ppo.py::test_the_old_policy_is_the_one_that_imagined",
        "ratios against another policy",
    ),
    Bug(
        "agents/drama/laprop.py",
        "(rate / momentum_weight)",
        "rate",
        "tests/agents/drama/test_laprop.py",
        "no bias correction",
    ),
    Bug(
        "worldmodels/world_model.py",
        "valid = ~reset[1:]",
        "valid = ~reset[:-1]",
        "tests/worldmodels/test_world_model.py::test_every_term_by_definition[True]",
        "predictions across a reset",
    ),
    Bug(
        "worldmodels/world_model.py",
        "latents.kl(target, jax.lax.stop_gradient(prior))",
        "latents.kl(target, prior)",
        "tests/worldmodels/test_world_model.py::test_where_the_gradients_of_the_divergences_go",
        "the representation loss moves the prior",
    ),
    Bug(
        "worldmodels/twohot.py",
        "return symexp(jax.nn.softmax(logits) @",
        "return (jax.nn.softmax(logits) @",
        "tests/worldmodels/test_twohot.py::test_round_trip",
        "symlog is not undone",
    ),
    Bug(
        "worldmodels/replay.py",
        "trained=put(state.trained, 0)",
        "trained=state.trained",
        "tests/worldmodels/test_replay.py::test_windows_are_rows_of_one_lane_one_after_another",
        "counts of overwritten rows",
    ),
    Bug(
        "worldmodels/replay.py",
        "return age + length <= state.filled",
        "return age < state.filled",
        "tests/worldmodels/test_replay.py::test_windows_are_rows_of_one_lane_one_after_another",
        "windows cross the newest row",
    ),
    Bug(
        "worldmodels/latents.py",
        "one_hot = one_hot + probs - jax.lax.stop_gradient(probs)",
        "one_hot = one_hot + 0.0",
        "tests/worldmodels/test_latents.py::test_samples_carry_the_gradient_of_the_probabilities",
        "no gradient through samples",
    ),
    Bug(
        "worldmodels/networks.py",
        "x.shape[:-3], self.kernel // 2",
        "x.shape[:-3], 1",
        "tests/worldmodels/test_networks.py::test_the_encoder_layer_by_layer[5]",
        "padding of wide kernels",
    ),
    Bug(
        "worldmodels/networks.py",
        "use_running_average=not train",
        "use_running_average=train",
        "tests/worldmodels/test_networks.py::test_batch_statistics_move_in_training_alone",
        "batch statistics in inference",
    ),
)


def copy_repository(to: Path) -> None:
    """Copies what git knows of the repository, links included."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)


def is_noticed(bug: Bug, copy: Path) -> str | None:
    """Plants `bug` in the copy and takes it out again; returns None if its test failed, else what happened."""
    path = copy / bug.file
    text = path.read_text()
    if text.count(bug.right) != 1:
        return f"the piece occurs {text.count(bug.right)} times in {bug.file}"
    env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", bug.test]
    path.write_text(text.replace(bug.right, bug.wrong))
    try:
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    if done.returncode == 1:
        return None
    return "its test passes" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}"


def is_marked_slow(bug: Bug, copy: Path) -> bool:
    """Whether the fast tier leaves the test of `bug` out."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", bug.test]
    env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, check=False).returncode == 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="word in the file's name or the reason of the bugs to plant")
    only = parser.parse_args().only
    bugs = [bug for bug in BUGS if only in bug.file or only in bug.reason]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_repository(copy)
        for bug in bugs:
            started = time.monotonic()
            trouble = is_noticed(bug, copy)
            if trouble is None and is_marked_slow(bug, copy) != (bug.tier == "slow"):
                trouble = f"its test is not in the tier {bug.tier}"
            missed += trouble is not None
            verdict = "noticed" if trouble is None else f"MISSED: {trouble}"
            print(f"{verdict:8} {bug.tier} {bug.file}: {bug.reason} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs are noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
