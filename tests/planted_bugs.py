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
    """Test that fails on it, as arguments of pytest."""
    reason: str
    """What goes wrong, in a few words."""
    tier: Literal["fast", "slow"] = "fast"
    """Tier that notices it."""


BUGS: tuple[Bug, ...] = (
    Bug(
        "agents/ppo/agent.py",
        "batch.reset, batch.mask, mutable",
        "batch.reset, mutable",
        "tests/agents/ppo/test_action_masks.py::test_an_emulator_that_takes_nothing_forbidden_plays_on[give=info-more0]",
        "PPO learns without the masks under which it acted",
    ),
    Bug(
        "agents/ppo/agent.py",
        "features, self.eval_env.action_mask(env_state))",
        "features)",
        "tests/agents/ppo/test_action_masks.py::test_an_emulator_that_takes_nothing_forbidden_plays_on[give=info-more0]",
        "evaluations take forbidden actions",
    ),
    Bug(
        "agents/common/distributions.py",
        "jnp.where(mask, logits, FORBIDDEN)",
        "jnp.where(mask, logits, logits - 8.0)",
        "tests/agents/common/test_distributions.py::test_a_masked_categorical_draws_what_is_allowed_alone",
        "forbidden actions are only unlikely",
    ),
    Bug(
        "experiments/recording.py",
        "allowed(jnp.zeros(mask.shape), mask)",
        "jnp.zeros(mask.shape)",
        "tests/envs/test_action_masks.py::test_random_play_that_is_recorded_takes_what_is_allowed_alone",
        "random play takes forbidden actions",
    ),
    Bug(
        "agents/offline/view.py",
        "jnp.argmax(allowed(out, mask), -1)",
        "jnp.argmax(out, -1)",
        "tests/agents/offline/test_masked_play.py::test_the_best_of_the_allowed_actions_is_chosen",
        "the sequence policy takes forbidden actions",
    ),
    Bug(
        "envs/host/pool.py",
        "if lost is None:",
        "if lost is not None:",
        "tests/envs/test_faulty_emulators.py::test_whole_numbers_that_float32_does_not_hold_are_named_once",
        "lost digits are not named",
    ),
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
        "seen = age <= t",
        "seen = age < t",
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
    Bug(
        "agents/planners/dynlin.py",
        "sample = (jnp.arange(U.shape[0]) == action) & (left == 0)",
        "sample = jnp.arange(U.shape[0]) == action",
        "tests/agents/planners/test_dynlin.py::test_step_by_step_against_the_mirror",
        "learns while it holds an arm",
    ),
    Bug(
        "agents/planners/dynlin.py",
        "gamma**2 * state.squared_counts",
        "gamma * state.squared_counts",
        "tests/agents/planners/test_dynlin.py::test_step_by_step_against_the_mirror",
        "the discount of squared counts is not squared",
    ),
    Bug(
        "agents/planners/base.py",
        "jnp.sum(steps.optimal - steps.mean)",
        "jnp.sum(steps.optimal - steps.reward)",
        "tests/agents/planners/test_dynlin.py::test_step_by_step_against_the_mirror",
        "regret of drawn rewards in place of means",
    ),
    Bug(
        "agents/planners/neucb.py",
        "jnp.where(norm > s.ball, s.ball / norm, 1)",
        "1",
        "tests/agents/planners/test_neucb.py::test_parameters_never_leave_the_ball",
        "no projection",
    ),
    Bug(
        "agents/planners/lsd.py",
        "lax.cummin(bounds, axis=1, reverse=True)",
        "lax.cummax(bounds, axis=1)",
        "tests/agents/planners/test_lsd.py::test_optimistic_payoffs",
        "looser bounds of payoffs",
    ),
    Bug(
        "agents/planners/stepmix.py",
        "share = self.settings.delta / (2.0 * (horizon + 1))",
        "share = self.settings.delta",
        "tests/agents/planners/test_stepmix.py::test_every_step_is_that_of_numpy",
        "no union bound",
    ),
    Bug(
        "agents/planners/ucrl.py",
        "kernel_width[:, None] / 2",
        "kernel_width[:, None]",
        "tests/agents/planners/test_ucrl.py::test_inner_maximum_is_that_of_the_linear_program",
        "an L1 ball twice as wide",
    ),
    Bug(
        "envs/tabular/switching.py",
        "jnp.sum(self.starts <= self.t, dtype=jnp.int32) - 1",
        "jnp.sum(self.starts < self.t, dtype=jnp.int32) - 1",
        "tests/envs/test_switching_mdp.py::test_steps_follow_the_arrays",
        "a change comes one step late",
    ),
    Bug(
        "agents/common/checks.py",
        '"be positive and finite", lambda value: 0 < value < math.inf',
        '"be positive and finite", lambda value: 0 <= value < math.inf',
        "tests/agents/common/test_checks.py",
        "0 passes as positive",
    ),
    Bug(
        "agents/common/returns.py",
        "next_value = jnp.where(truncated, final_value, next_value)",
        "next_value = jnp.where(terminated, final_value, next_value)",
        "tests/agents/common/test_returns.py::test_truncation_bootstraps_from_the_final_observation_and_not_from_the_next_episode",
        "a cut episode bootstraps from the next one",
    ),
    Bug(
        "agents/common/returns.py",
        "carry_on = jnp.where(terminated | truncated, 0.0, discount * gae_lambda)",
        "carry_on = jnp.where(terminated, 0.0, discount * gae_lambda)",
        "tests/agents/common/test_returns.py::test_truncation_bootstraps_from_the_final_observation_and_not_from_the_next_episode",
        "advantages cross a limit",
    ),
    Bug(
        "agents/common/returns.py",
        'mixed = value[1:] if bootstrap == "next" else value[:-1]',
        'mixed = value[:-1] if bootstrap == "next" else value[1:]',
        "tests/agents/common/test_returns.py::test_lambda_returns_of_three_steps_by_hand",
        "lambda-returns bootstrap from the step itself",
    ),
    Bug(
        "agents/common/evaluation.py",
        "counts &= ended < each",
        "counts &= ended <= each",
        "tests/agents/common/test_evaluation.py::test_quotas",
        "one episode too many is counted",
    ),
    Bug(
        "kernels/rows.py",
        "return jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), x, y)",
        "m = mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)); return m * x + ~m * y",
        "tests/kernels/test_rows.py",
        "resets multiply in place of selecting",
    ),
    Bug(
        "kernels/gru_scan.py",
        "return 0.5 * jnp.tanh(0.5 * x) + 0.5",
        "return 0.5 * jnp.tanh(x) + 0.5",
        "tests/kernels/test_scans.py::test_gru_scan_is_flax_gru_cell",
        "another gate",
    ),
    Bug(
        "memory/gru.py",
        "return gru_scan_step(state, self.inp(x), self.Wh, self.bh, reset)",
        "return gru_scan_step(state, self.inp(x), self.Wh, self.bh, None)",
        "tests/memory/test_contract.py -k gru",
        "one step forgets to reset",
    ),
    Bug(
        "memory/registry.py",
        'name, dot, option = target.rpartition(".")',
        'name, dot, option = target.partition(".")',
        "tests/memory/test_registry.py",
        "options of memories in modules with dots",
    ),
    Bug(
        "envs/wrappers.py",
        "delta = mean - self.mean",
        "delta = mean",
        "tests/envs/test_wrappers.py::test_normalised_observations_match_float64_over_the_stream",
        "running statistics drift",
    ),
    Bug(
        "envs/wrappers.py",
        "truncated | (time >= self.steps), info",
        "truncated | (time > self.steps), info",
        "tests/envs/test_wrappers.py::test_time_limit_truncates_and_never_terminates",
        "a limit one step late",
    ),
    Bug(
        "envs/registry.py",
        "given = {**spec.options, **options}",
        "given = {**options, **spec.options}",
        "tests/envs/test_registry.py::test_keyword_options_are_those_of_the_id",
        "keyword options lose against the id",
    ),
    Bug(
        "training/folder.py",
        'raise InUse(f"{self.path} is in use',
        'raise BadRequest(f"{self.path} is in use',
        "tests/training/test_folder.py::test_a_folder_in_use_is_refused_with_an_exit_code_of_its_own",
        "a folder in use is a bad request",
    ),
    Bug(
        "training/folder.py",
        "except OSError:  # there is no git",
        "except ValueError:  # there is no git",
        "tests/training/test_folder.py::test_versions_need_no_git",
        "git is needed",
    ),
    Bug(
        "training/display.py",
        "console.is_interactive",
        "console.is_terminal",
        "tests/training/test_display.py::test_lines_where_a_bar_cannot_be_drawn",
        "a bar on a dumb terminal",
    ),
    Bug(
        "training/metrics.py",
        'elif name.endswith("_last"):\n            out[name.removesuffix("_last")] = values[-1]',
        'elif name.endswith("_last"):\n            out[name.removesuffix("_last")] = values[0]',
        "tests/training/test_metrics.py::test_episode_means_weigh_episodes_not_updates",
        "counters of the first update",
    ),
    Bug(
        "training/statistics.py",
        "cut = len(ordered) // 4",
        "cut = len(ordered) // 3",
        "tests/training/test_statistics.py::test_interquartile_mean_drops_a_quarter_at_each_end",
        "another trimmed mean",
    ),
    Bug(
        "training/statistics.py",
        "half = np.where(error > 0, _t_quantile(_freedom(parts, arrays)) * error, 0.0)",
        "half = 1.96 * error",
        "tests/training/test_statistics.py::test_intervals_cover",
        "normal quantiles for few of them",
    ),
    Bug(
        "training/statistics.py",
        "small = np.take_along_axis(p, order, axis=-1) <= TEST_LEVEL / np.arange(p.shape[-1], 0, -1)",
        "small = np.take_along_axis(p, order, axis=-1) <= TEST_LEVEL",
        "tests/training/test_statistics.py::test_stars_seldom_err",
        "stars of a row uncorrected",
    ),
    Bug(
        "training/metrics.py",
        "[old if new is None else new for new, old in zip(values, before, strict=True)]",
        "values",
        "tests/training/test_metrics.py::test_a_seed_whose_episodes_did_not_end_keeps_its_last_return",
        "one without a number is left out of means",
    ),
    Bug(
        "experiments/tables.py",
        "return (np.array(scores, float) - low) / (high - low)",
        "return np.array(scores, float)",
        "tests/experiments/test_tables.py::test_scales_of_tasks_do_not_weigh",
        "raw returns of tasks are pooled",
    ),
    Bug(
        "agents/common/evaluation.py",
        "rows = each * (limit or GIVE_UP) + each - 1",
        "rows = each * (limit or GIVE_UP)",
        "tests/agents/common/test_evaluation.py::test_every_episode_of_an_emulator_ends_within_its_limit",
        "rows between episodes count against the limit",
    ),
    Bug(
        "configs/migrations.py",
        'rename(values, "drama", "lambda_", "return_lambda")',
        'rename(values, "drama", "lambda_", "lambda")',
        "tests/configs/test_store.py::test_configurations_of_the_first_version_mean_what_they_meant",
        "old Drama runs do not load",
    ),
    Bug(
        "configs/migrations.py",
        'default(values, "odice", "bounded", True)',
        'default(values, "odice", "bounded", False)',
        "tests/configs/test_store.py::test_runs_from_before_means_could_be_free_keep_theirs",
        "old ODICE runs change",
    ),
    Bug(
        "agents/registry.py",
        "if not isinstance(spec, AgentSpec):",
        "if spec is None:",
        "tests/test_plugins.py::test_names_of_agents_that_are_none",
        "anything passes as an agent",
    ),
    Bug(
        "configs/store.py",
        'values[name] = _override(current, nest(value), f"{prefix}{name}.", whole)',
        "values[name] = type(current)(**value)",
        "tests/configs/test_store.py::test_other_values_keep_what_they_do_not_name",
        "a changed group forgets the preset's other values",
    ),
    Bug(
        "experiments/policy.py",
        "            self.carry = self._observe(self.state, self.carry, self.action, seen, observe_key)",
        "            self.carry = self._start(self.state, seen, observe_key)",
        "tests/test_api.py::test_a_policy_acts_exactly_as_the_evaluation_does",
        "a policy forgets at every step",
    ),
    Bug(
        "configs/migrations.py",
        'rename(values, "drama", "lambda_", "return_lambda")',
        "pass",
        "tests/configs/test_store.py::test_configurations_of_the_first_version_mean_what_they_meant",
        "old Drama runs are not renamed",
    ),
    Bug(
        "configs/migrations.py",
        'default(values, "odice", "bounded", True)',
        'default(values, "odice", "bounded", False)',
        "tests/configs/test_store.py::test_runs_from_before_means_could_be_free_keep_theirs",
        "old ODICE policies lose their bound",
    ),
    Bug(
        "configs/store.py",
        "if kind is int and not real.is_integer():",
        "if False:",
        "tests/configs/test_store.py::test_damaged_files_say_so_in_one_line",
        "2.5 seeds are 2",
    ),
    Bug(
        "experiments/policy.py",
        "self.carry, self.action, self.info = None, None, {}",
        "self.action, self.info = None, {}",
        "tests/test_api.py::test_a_policy_acts_exactly_as_the_evaluation_does",
        "reset() leaves the memory as it was",
    ),
    Bug(
        "experiments/policy.py",
        "state = jax.tree.map(lambda x: x[seed], states)",
        "state = jax.tree.map(lambda x: x[0], states)",
        "tests/test_api.py::test_seeds_have_policies_of_their_own",
        "every seed's policy is the first",
    ),
    Bug(
        "agents/common/acting.py",
        "return showing(agent.env.evaluation_params(state.env, agent.eval_env.default_params), seen)",
        "return showing(agent.eval_env.default_params, seen)",
        "tests/test_api.py::test_a_policy_acts_exactly_as_the_evaluation_does",
        "a policy sees observations that are not normalised as in training",
    ),
    Bug(
        "agents/common/acting.py",
        "agent.eval_env.step(key, env_state, action, params(agent, state, seen))",
        "agent.eval_env.step(key, env_state, 0 * action, params(agent, state, seen))",
        "tests/test_api.py::test_a_policy_acts_exactly_as_the_evaluation_does",
        "a policy sees another action than it took",
    ),
    Bug(
        "scripts/command_line.py",
        "except EngramError as error:",
        "except (EngramError, ValueError) as error:",
        "tests/scripts/test_command_line.py::test_a_defect_in_a_builder_shows_its_traceback",
        "NumPy's errors are the user's",
    ),
    Bug(
        "training/folder.py",
        'raise InUse(f"{self.path} is in use',
        'raise BadRequest(f"{self.path} is in use',
        "tests/scripts/test_command_line.py::test_a_run_in_use_ends_with_4",
        "a run in use ends with 2",
    ),
    Bug(
        "training/checkpoint.py",
        "for chunk in reversed(checkpoints(root)):",
        "for chunk in checkpoints(root):",
        "tests/experiments/test_old_runs.py::test_they_are_evaluated",
        "the oldest checkpoint is taken",
    ),
    Bug(
        "training/checkpoint.py",
        'intact = manifest["crc32"] == _own_crc32(manifest)',
        "intact = True",
        "tests/training/test_corruption.py::test_no_damage_gives_a_wrong_state",
        "flipped bits of a manifest are believed",
    ),
    Bug(
        "training/checkpoint.py",
        "if error.errno not in ABSENT:",
        "if False:",
        "tests/training/test_corruption.py::test_what_cannot_be_read_is_not_damaged",
        "what cannot be read counts as damaged",
    ),
    Bug(
        "training/checkpoint.py",
        'kept = f"; it is kept as {set_aside(folder).name}" if training else ""',
        'kept = ""',
        "tests/experiments/test_resume.py::test_damaged_checkpoints_are_set_aside_loudly_and_never_count_again",
        "damaged checkpoints count as the newest",
    ),
    Bug(
        "training/loop.py",
        "                folder.check_place()\n",
        "",
        "tests/experiments/test_resume.py::test_a_folder_moved_or_removed_in_the_middle_ends_the_training",
        "a run whose folder is gone goes on elsewhere",
    ),
    Bug(
        "training/action_log.py",
        "if progress.played_crc32 not in (None, zlib.crc32(played.tobytes())) or not",
        "if not",
        "tests/training/test_action_log.py::test_emulators_that_did_something_else_on_the_way_are_refused",
        "a replay is compared at its end alone",
    ),
    Bug(
        "training/loop.py",
        "if signum in self._asked and signum != signal.SIGHUP:",
        "if signum in self._asked:",
        "tests/training/test_stopping.py::test_a_signal_is_a_request_and_the_second_one_stops_at_once",
        "a terminal that hangs up twice loses the chunk",
    ),
    Bug(
        "training/stderr.py",
        "            return self._stream.write(text)\n        except OSError:",
        "            return self._stream.write(text)\n        except ValueError:",
        "tests/training/test_stderr.py",
        "a lost reader ends the training",
    ),
    Bug(
        "experiments/cells.py",
        "train_apart(self.config, self.preset, self.folder, output, seconds)",
        'train_apart(self.config, "", self.folder, output, seconds)',
        "tests/scripts/test_compare.py",
        "cells forget their preset and are refused the next time",
    ),
    Bug(
        "agents/registry.py",
        "if spec.name != name:",
        "if False:",
        "tests/test_plugins.py::test_names_of_agents_that_are_none",
        "a run of an agent that is never found again",
    ),
    Bug(
        "experiments/train.py",
        "with closing(registry.build(config)) as made:",
        "if made := registry.build(config):",
        "tests/test_api.py::test_emulators_are_closed_and_policies_open_none",
        "training leaves its emulators open",
    ),
    Bug(
        "experiments/runs.py",
        '"seed": self.config.seed + index,',
        '"seed": index,',
        "tests/experiments/test_train.py::test_seeds_are_the_single_runs_with_those_seeds",
        "tidy rows name the wrong seed",
    ),
    Bug(
        "experiments/datasets.py",
        "if score >= MEDIUM:",
        "if score >= 2 * MEDIUM:",
        "tests/experiments/test_datasets.py::test_what_each_tier_is",
        "medium is twice as good",
        "slow",
    ),
    Bug(
        "experiments/atari100k.py",
        "runs = [GameRun(game, seed, out) for seed in seeds for game in games]",
        "runs = [GameRun(game, seed, out) for seed in range(options.seeds) for game in games]",
        "tests/experiments/test_atari100k.py::test_table_of_games_and_seeds",
        "the benchmark ignores the first seed",
    ),
    Bug(
        "experiments/train.py",
        'raise Interrupted("stopped; repeat',
        'return ("stopped; repeat',
        "tests/experiments/test_atari100k.py::test_time_stops_a_running_run",
        "time that is up counts as a failure",
    ),
    Bug(
        "experiments/adapt.py",
        "return replace(task, family=family, split=split, episodes=task.episodes * times, steps=task.steps * times)",
        "return replace(task, family=family, episodes=task.episodes * times, steps=task.steps * times)",
        "tests/experiments/test_adapt.py::test_longer_trials_switch_as_often_a_step",
        "adaptation is measured on the training's tasks",
    ),
    Bug(
        "src/engram/__init__.py",
        "from typing import TYPE_CHECKING, Any",
        "from typing import TYPE_CHECKING, Any\n\nimport numpy",
        "tests/test_api.py::test_importing_is_cheap_and_lazy",
        "import engram imports NumPy",
    ),
    Bug(
        "agents/ppo/agent.py",
        "return self.learn(state, memory_before, rollout, shuffle_key)",
        "return self.learn(state, state.memory, rollout, shuffle_key)",
        "tests/agents/ppo/test_ppo.py::test_first_ratio_is_one_in_rollouts_that_begin_within_episodes",
        "the learner begins in the memory with which the rollout ended",
    ),
    Bug(
        "agents/ppo/agent.py",
        "memory = jax.tree.map(lambda x: x[environments], memory_before)",
        "memory = jax.tree.map(lambda x: x[environments[::-1]], memory_before)",
        "tests/agents/ppo/test_ppo.py::test_first_ratio_is_one_in_rollouts_that_begin_within_episodes",
        "a minibatch has the memories of other environments",
    ),
    Bug(
        "agents/ppo/agent.py",
        "terminated = terminated | truncated",
        "terminated = terminated",
        "tests/agents/ppo/test_ppo.py::test_limits_can_be_treated_as_ends",
        "limits are never ends",
        "slow",
    ),
    Bug(
        "agents/ppo/conservative.py",
        "was = learning & ~acting.reset",
        "was = learning",
        "tests/agents/ppo/test_conservative.py::test_control_is_handed_over_once_an_episode_and_never_back",
        "the learner keeps control over the ends of episodes",
    ),
    Bug(
        "agents/offline/data.py",
        "reset=offset <= 0,",
        "reset=offset < 0,",
        "tests/agents/offline/test_sequence_policy.py::test_windows_begin_at_every_step_alike",
        "windows begin with a memory of their padding",
    ),
    Bug(
        "envs/vector.py",
        '"reset": done, "valid"',
        '"reset": terminated, "valid"',
        "tests/envs/test_vector.py::test_all_environments_that_end_at_once_restart",
        "memories are not reset at limits",
    ),
    Bug(
        "envs/vector.py",
        '"final_observation": last_obs}',
        '"final_observation": obs}',
        "tests/envs/test_vector.py::test_final_observation_is_the_last_of_the_episode_that_ended",
        "the final observation is that of the next episode",
    ),
    Bug(
        "envs/wrappers.py",
        "episode_return = state.episode_return + jnp.where(valid, reward, 0.0)",
        "episode_return = state.episode_return + reward",
        "tests/envs/test_wrappers.py::test_episode_statistics_add_up_raw_rewards_of_valid_steps",
        "rewards of no step are counted",
    ),
    Bug(
        "kernels/linear_scan.py",
        "        back = clear(reset_t, a_t * dx)",
        "        back = a_t * dx",
        "tests/kernels/test_scans.py -k gradient",
        "a gradient crosses a reset",
    ),
    Bug(
        "kernels/linear_scan.py",
        "jnp.where(reset_after, x_after, a_after * x + x_after)",
        "a_after * x + x_after",
        "tests/kernels/test_linear_associative.py",
        "associative scans never reset",
    ),
    Bug(
        "kernels/causal_conv.py",
        "(position >= opened[-1])",
        "(position > opened[-1])",
        "tests/kernels/test_causal_conv.py",
        "the first input of an episode is lost between chunks",
    ),
    Bug(
        "kernels/cpu/threefry2x32.cc",
        "x += k1, y += k2 + 4;",
        "x += k1, y += k2 + 3;",
        "tests/kernels/test_threefry.py::test_values_published_with_random123",
        "random numbers whose fourth key injection has the third one's count",
    ),
    Bug(
        "kernels/cpu/threefry2x32.cc",
        "std::min(rows, first + rows_per_task)",
        "std::min(rows - 1, first + rows_per_task)",
        "tests/kernels/test_threefry.py::test_shapes_that_broadcast_give_jaxs_bits",
        "random numbers without a last row",
    ),
    Bug(
        "kernels/host_call.py",
        "if np.shape(leaf) != result.shape:",
        "if np.ndim(leaf) != result.ndim:",
        "tests/kernels/test_host_call.py::test_a_result_of_another_shape_is_refused",
        "an emulator's observation of a wrong shape that is only refused by NumPy",
    ),
    Bug(
        "kernels/host_call.py",
        "error = next((error for error in self.kept if _beginning(error) in told), None)",
        "error = next(iter(self.kept), None)",
        "tests/kernels/test_host_call.py::test_each_thread_gets_its_own_error[by JAX]",
        "an error of another thread is told",
    ),
    Bug(
        "kernels/cpu/linear_scan.cc",
        "if (reset[t * s.B + b]) std::fill_n(now, s.D, 0.0f);",
        "if (reset[t * s.B + b]) now[0] = 0.0f;",
        "tests/kernels/test_scans.py -k linear",
        "the C++ kernel clears one entry",
    ),
    Bug(
        "kernels/cpu/delta_scan.cc",
        "if (x.reset[at.reset.At(t)]) std::fill_n(G, rows, Columns<N>{});",
        "",
        "tests/kernels/test_ffi.py -k delta_scan",
        "the C++ kernel's gradient crosses resets",
    ),
    Bug(
        "kernels/cpu/delta_scan.cc",
        "for (int64_t r = 0; r < s.K; ++r) dq[r] += k[r] * of_write;",
        "",
        "tests/kernels/test_ffi.py -k delta_scan",
        "the gradient of a query misses what its step wrote last",
    ),
    Bug(
        "kernels/cpu/recurrent_scan.cc",
        "opens ? Register{} : Get(dh_now + j, kWidth)",
        "Get(dh_now + j, kWidth)",
        "tests/kernels/test_scans.py -k gru",
        "the C++ kernel's gradient of a GRU crosses resets",
    ),
    Bug(
        "kernels/cpu/recurrent_scan.cc",
        "opens ? Register{} : dc * forget",
        "dc * forget",
        "tests/kernels/test_scans.py -k lstm",
        "the C++ kernel's gradient of an LSTM's cell crosses resets",
    ),
    Bug(
        "kernels/cpu/recurrent_scan.cc",
        "if (reset[at]) continue;",
        "",
        "tests/kernels/test_ffi.py -k gru_and_lstm",
        "the gradient of recurrent weights sees states that a reset cleared",
    ),
    Bug(
        "kernels/cpu/recurrent_scan.cc",
        "Get(found + r * W + j, opens ? 0 : valid)",
        "Get(found + r * W + j, valid)",
        "tests/kernels/test_ffi.py -k gru_and_lstm",
        "the gradient of a GRU's gate sees a state that a reset cleared",
    ),
    Bug(
        "kernels/delta_scan.py",
        "beta * read * c.from_start",
        "beta * k * c.from_start",
        "tests/kernels/test_scans.py -k delta",
        "what a chunk finds is read under the keys of writing",
    ),
    Bug(
        "kernels/cpu/selective_scan.cc",
        "if (in.reset[t * s.B]) std::fill(h, h + tile, Vector{});",
        "if (in.reset[t * s.B]) h[0] = Vector{};",
        "tests/kernels/test_ffi.py::test_all_shapes_match_float64",
        "the C++ kernel clears one row",
    ),
    Bug(
        "memory/s5.py",
        "gain = jnp.expm1(exponent) / eigenvalues",
        "gain = jnp.exp(self.log_dt)",
        "tests/memory/test_s5.py::test_equals_the_authors_layer_in_float64",
        "inputs are discretised by Euler's rule",
    ),
    Bug(
        "memory/layers.py",
        "jnp.where(reset, t, -begun)",
        "jnp.where(reset, 0, -begun)",
        "tests/memory/test_layers.py::test_shm",
        "rows of SHM's table are counted from the start of the sequence",
    ),
    Bug(
        "memory/s5.py",
        "lecun_normal(in_axis=-1, out_axis=-2)(key",
        "lecun_normal()(key",
        "tests/memory/test_s5.py::test_starts_with_the_authors_scale_of_b",
        "the input matrix begins at a scale that depends on the width",
    ),
    Bug(
        "memory/deltanet.py",
        "init_A_log(0.0)",
        "init_A_log(1.0)",
        "tests/memory/test_layers.py::test_gated_deltanet_starts_as_published",
        "no head of a gated DeltaNet begins with a slow decay",
    ),
    Bug(
        "memory/mamba2.py",
        "init_A_log(begin.a_min, begin.a_max)",
        "init_A_log(begin.a_min)",
        "tests/memory/test_starts.py -k evenly",
        "the fastest rate of Mamba-2 is always the published one",
    ),
    Bug(
        "memory/mamba.py",
        "step_bias(begin.dt_min, begin.dt_max)",
        "step_bias(begin.dt_min, 0.9)",
        "tests/memory/test_starts.py -k given",
        "the longest step of Mamba is always the same",
    ),
    Bug(
        "memory/stack.py",
        'check_flags("memory", reset, x.shape[:1])',
        "pass",
        "tests/memory/test_contract.py -k another_kind",
        "a step takes the reset of one row for all",
    ),
    Bug(
        "kernels/rows.py",
        'check_flags("rows to select", mask, leaf.shape[: mask.ndim], "the mask")',
        "pass",
        "tests/kernels/test_scans.py -k another_kind",
        "a step of a kernel takes the reset of one row for all",
    ),
    Bug(
        "kernels/gru_scan.py",
        'check_flags("gru_scan", reset, (T, B))',
        "pass",
        "tests/kernels/test_scans.py -k another_kind",
        "a GRU takes the reset of one row for all",
    ),
    Bug(
        "kernels/gru_scan.py",
        "if not xproj.size:",
        "if False:",
        "tests/kernels/test_scans.py -k nothing_to_do",
        "a GRU has no gradient over no steps",
    ),
    Bug(
        "memory/layers.py",
        "heads, x.shape[-1] // heads)",
        "heads, -1)",
        "tests/memory/test_contract.py -k empty",
        "memories with heads fail on a batch of no rows",
    ),
    Bug(
        "kernels/cpu/ffi.py",
        "except (OSError, subprocess.SubprocessError) as error:  # the former",
        "except subprocess.SubprocessError as error:  # the former",
        "tests/kernels/test_ffi.py -k next_compiler",
        "a compiler that cannot be executed ends the search for one",
    ),
    Bug(
        "memory/deltanet.py",
        "-jnp.exp(self.A_log)[:, None] * by_head",
        "-self.A_log[:, None] * by_head",
        "tests/memory/test_layers.py::test_deltanet",
        "channels of KDA decay by the logarithm of their rate",
    ),
    Bug(
        "memory/rwkv7.py",
        "removed * jnp.exp(-log_w)",
        "removed",
        "tests/memory/test_layers.py -k rwkv7",
        "RWKV-7 removes what its key holds after the decay",
    ),
    Bug(
        "memory/rwkv7.py",
        "(r, v, log_w, a, removed, written, r * self.bonus * written)",
        "(r, v, log_w, a, removed, written, r * self.bonus * k)",
        "tests/memory/test_layers.py -k rwkv7",
        "the bonus of RWKV-7 is of the key before its removal rate",
    ),
    Bug(
        "memory/lru.py",
        "gamma = jnp.sqrt(-jnp.expm1(-2 * neg_log_modulus))",
        "gamma = -jnp.expm1(-2 * neg_log_modulus)",
        "tests/memory/test_layers.py::test_lru",
        "inputs are normalised by a square",
    ),
    Bug(
        "memory/lru.py",
        ".sum((0, 2)))",
        ".mean((0, 2)))",
        "tests/memory/test_layers.py::test_rotrnn",
        "RotRNN's input has the variance of a weight, not of a head",
    ),
    Bug(
        "memory/mamba3.py",
        "(jnp.exp(rate) * (ends0 + starts))",
        "(ends0 + starts)",
        "tests/memory/test_layers.py::test_mamba3",
        "what is written once more does not fade",
    ),
    Bug(
        "memory/mamba3.py",
        "S = U + (last_ends[..., None] * last_k)[..., None] * last_v[..., None, :]",
        "S = U",
        "tests/memory/test_contract.py::test_contract -k mamba3",
        "the last write before a cut is lost",
    ),
    Bug(
        "kernels/angle_scan.py",
        "n = angle_scan_step(n, *now)",
        "n = clear(now[1], n) + now[0]",
        "tests/kernels/test_angle_scan.py::test_long_sums_stay_exact",
        "angles of a long episode lose their digits",
    ),
    Bug(
        "memory/tcn.py",
        "jnp.maximum(1 - jnp.maximum(lags - position, position - lags), 0)",
        "nn.relu(1 - jnp.abs(lags - position))",
        "tests/memory/test_layers.py -k tcn",
        "taps at whole steps move one way, whatever lies on the other",
    ),
    Bug(
        "memory/tcn.py",
        "middle + bounded(self.position - middle, middle)",
        "self.position",
        "tests/memory/test_layers.py -k tcn",
        "taps leave the window, and see nothing from then on",
    ),
    Bug(
        "memory/tcn.py",
        "jnp.sign(self.weight) * nn.relu(",
        "nn.relu(",
        "tests/memory/test_layers.py -k tcn",
        "squashed weights lose their sign",
    ),
    Bug(
        "memory/h3.py",
        "return q, k * v",
        "return k, q * v",
        "tests/memory/test_h3.py::test_h3",
        "the query of H3 writes and its key reads",
    ),
    Bug(
        "memory/h3.py",
        "self.width * (3 if",
        "self.width * (2 if",
        "tests/memory/test_h3.py::test_hyena",
        "the values of Hyena pass no short convolution",
    ),
    Bug(
        "memory/h3.py",
        "h, y = self.through_step(h, u, reset)",
        "h, y = self.through_step(h, q * u, reset)",
        "tests/memory/test_contract.py -k h3",
        "the actor writes what it reads",
    ),
    Bug(
        "memory/mom.py",
        "jnp.where(chosen[..., None], fading, 0)",
        "fading",
        "tests/memory/test_mom.py -k bit",
        "memories that are not chosen fade",
    ),
    Bug(
        "memory/mom.py",
        "jnp.where(chosen, nn.sigmoid(self.beta(x)), 0)",
        "nn.sigmoid(self.beta(x))",
        "tests/memory/test_mom.py -k bit",
        "memories that are not chosen are written",
    ),
    Bug(
        "memory/mom.py",
        "nn.softmax(logits, where=chosen)",
        "nn.softmax(logits) * chosen",
        "tests/memory/test_mom.py::test_mom",
        "weights of the chosen memories do not sum to 1",
    ),
    Bug(
        "memory/mom.py",
        "nn.softmax(logits, where=chosen)",
        "nn.softmax(lax.stop_gradient(logits), where=chosen)",
        "tests/memory/test_mom.py -k router_learns",
        "the router does not learn",
    ),
    Bug(
        "memory/mom.py",
        "jnp.repeat(chosen, self.heads, -1)",
        "jnp.tile(chosen, self.heads)",
        "tests/memory/test_mom.py::test_mom",
        "heads of one memory follow the choice of others",
    ),
    Bug(
        "kernels/marked_scan.py",
        "return select_rows(mark, moved, state), y",
        "return moved, y",
        "tests/memory/test_contract.py::test_contract -k seqboat",
        "an actor remembers steps that were not active",
    ),
    Bug(
        "kernels/marked_scan.py",
        "held[:, None] & (entry >= opened[..., None]) &",
        "held[:, None] &",
        "tests/kernels/test_marked_scan.py",
        "attention sees the active steps of other episodes",
    ),
    Bug(
        "kernels/marked_scan.py",
        "visible, age = visible | own, jnp.where(own, 0, age)",
        "visible, age = visible | own, age",
        "tests/kernels/test_marked_scan.py",
        "a step itself has the age of the last active one",
    ),
    Bug(
        "kernels/marked_scan.py",
        "& (age <= W)",
        "",
        "tests/memory/test_layers.py::test_seqboat",
        "a learner sees more active steps than an actor keeps",
    ),
    Bug(
        "memory/scout.py",
        "n, after = steps_of_episodes(reset, begun, self.every)",
        "n, after = jnp.arange(len(x))[:, None] + jnp.zeros_like(begun), begun",
        "tests/memory/test_layers.py::test_scout",
        "checkpoints are counted from the start of a sequence",
    ),
    Bug(
        "memory/scout.py",
        "n % self.every == self.every - 1",
        "n % self.every == 0",
        "tests/memory/test_layers.py::test_scout",
        "a checkpoint stands for the steps after it",
    ),
    Bug(
        "memory/scout.py",
        "n = where_reset(reset, jnp.zeros_like(n), n)",
        "n = n + 0",
        "tests/memory/test_contract.py::test_contract -k scout",
        "an actor counts on from the episode before",
    ),
    Bug(
        "memory/seqboat.py",
        "a = active + (p - lax.stop_gradient(p))",
        "a = active * p / lax.stop_gradient(p)",
        "tests/memory/test_layers.py::test_the_gradient_of_a_decision_of_seqboat_is_that_of_its_sigmoid",
        "steps that did not attend never learn to",
    ),
    Bug(
        "kernels/ttt_scan.py",
        "M = tuple((1 - alpha) * m - alpha * w for",
        "M = tuple((1 - alpha) * m for",
        "tests/memory/test_layers.py::test_ttt",
        "weights fade to those of an episode's start, not to 0",
    ),
    Bug(
        "kernels/ttt_scan.py",
        "M, A, S = jax.tree.map(partial(clear, reset), state)",
        "M, A, S = State(*jax.tree.map(partial(clear, reset), (state.M, None, state.S)))._replace(A=state.A)",
        "tests/kernels/test_scans.py::test_nothing_bad_survives_a_reset -k ttt",
        "a chunk's weights outlive a reset",
    ),
    Bug(
        "memory/layers.py",
        "lax.cummax(jnp.where(reset, t, -begun), axis=0)",
        "-begun",
        "tests/memory/test_layers.py::test_ttt",
        "chunks are counted from the start of a sequence",
    ),
    Bug(
        "kernels/gla_scan.py",
        "last * _over_state(of_state)",
        "last",
        "tests/memory/test_layers.py::test_signed_decays_count_parity",
        "a sign is lost where a sequence is cut",
    ),
    Bug(
        "kernels/gla_scan.py",
        "(jnp.cumsum(negative, 0), negative.sum(0))",
        "(jnp.cumsum(negative, 0) - negative, negative.sum(0))",
        "tests/memory/test_layers.py::test_signed_decays_count_parity",
        "a step does not take its own sign",
    ),
    Bug(
        "memory/mlstm.py",
        "jnp.exp(-m))[..., None]",
        "1.0)[..., None]",
        "tests/memory/test_layers.py::test_mlstm",
        "the normaliser of an mLSTM is at least 1 after it was divided",
    ),
    Bug(
        "kernels/slstm_scan.py",
        "m = select_rows(reset, jnp.full_like(m, NOTHING), m)",
        "m = clear(reset, m)",
        "tests/memory/test_layers.py::test_a_constant_input_gate_of_an_slstm_does_not_matter",
        "a cleared sLSTM divides by the exponential of a very small gate",
    ),
    Bug(
        "kernels/slstm_scan.py",
        "dn = back_n - dh * h_t / n_t",
        "dn = back_n",
        "tests/kernels/test_scans.py -k slstm",
        "the normaliser of an sLSTM has no gradient",
    ),
    Bug(
        "memory/ffm.py",
        "self.norm(self.mix(h)) * gate",
        "self.norm(self.mix(h) * gate)",
        "tests/memory/test_layers.py::test_ffm",
        "the output is gated before it is normalised",
    ),
    Bug(
        "memory/framestack.py",
        "causal_taps_step(state, x, range(self.frames), reset)",
        "causal_taps_step(state, x, range(self.frames)[::-1], reset)",
        "tests/memory/test_contract.py -k framestack",
        "the actor stacks frames in another order than the learner",
    ),
    Bug(
        "memory/tcn.py",
        '1 if self.positions == "learned" else self.dilation',
        "1",
        "tests/memory/test_layers.py::test_tcn",
        "taps of a dilated convolution have no gaps between them",
    ),
    Bug(
        "memory/rnn.py",
        "U, tau = fixed(W), lax.stop_gradient(b), self.radius * fixed(U), lax.stop_gradient(tau)",
        "U, tau = fixed(W), b, self.radius * fixed(U), lax.stop_gradient(tau)",
        "tests/memory/test_layers.py -k reservoir",
        "the bias of a reservoir is learned",
    ),
    Bug(
        "kernels/rnn_scan.py",
        "seen = _seen(rectified, previous)",
        "seen = previous",
        "tests/kernels/test_scans.py -k rnn",
        "gradients of weights from rectified units are those of linear ones",
    ),
    Bug(
        "kernels/lti_scan.py",
        "opened = opened.at[size:].set(opened[size:] | opened[:-size])",
        "opened = opened.at[size:].set(opened[size:])",
        "tests/kernels/test_scans.py -k lti",
        "sums over several steps cross a reset",
    ),
    Bug(
        "memory/lssl.py",
        "return 2 * X - X @ M @ X",
        "return X",
        "tests/memory/test_lssl.py::test_inverses_and_their_gradients",
        "step lengths and matrices of an LSSL get no gradient",
    ),
    Bug(
        "memory/lssl.py",
        "pivot = jnp.argmax(jnp.where(jnp.arange(n) >= k, jnp.abs(column), -1), -1)[..., None]",
        "pivot = jnp.full((*column.shape[:-1], 1), k)",
        "tests/memory/test_lssl.py::test_inverses_and_their_gradients",
        "elimination divides by zero",
    ),
    Bug(
        "kernels/kalman_scan.py",
        "mean, _ = linear_scan(kept * a, predicted",
        "mean, _ = linear_scan(kept, predicted",
        "tests/kernels/test_kalman_scan.py",
        "the belief does not fade over a step",
    ),
    Bug(
        "kernels/kalman_scan.py",
        "jnp.full_like(variance, FRESH), variance)",
        "jnp.zeros_like(variance), variance)",
        "tests/kernels/test_kalman_scan.py",
        "a new episode is certain of what it does not know",
    ),
    Bug(
        "kernels/newton_scan.py",
        "first = first.at[0].set(True)",
        "first = jnp.zeros_like(first).at[0].set(True)",
        "tests/kernels/test_newton_scan.py -k a_nan",
        "the corrections of Newton's method cross a reset",
    ),
    Bug(
        "kernels/newton_scan.py",
        "return _anywhere(jnp.any(flag, 0) if batched[0] else flag), False",
        "return _anywhere(flag), batched[0]",
        "tests/kernels/test_newton_scan.py -k several",
        "under vmap Newton's method and its replacement both run",
    ),
    Bug(
        "kernels/newton_scan.py",
        "failed = _anywhere(moving | lost.any())",
        "failed = _anywhere(moving)",
        "tests/kernels/test_newton_scan.py -k own",
        "a NaN of the iterations is returned as a result",
    ),
    Bug(
        "kernels/newton_scan.py",
        "later_J = [[_later(J[j][i])",
        "later_J = [[_later(J[i][j])",
        "tests/kernels/test_scans.py -k newton",
        "gradients of the LSTM's two parts are mixed up",
    ),
    Bug(
        "memory/s4d.py",
        "jnp.expm1(eigenvalues * dt) / eigenvalues",
        "dt",
        "tests/memory/test_layers.py::test_s4d_is_a_convolution",
        "the input of S4D is no longer held over a step",
    ),
    Bug(
        "memory/s4d.py",
        "n / (2 * np.arange(n // 2) + 1)",
        "n / (np.arange(n // 2) + 1)",
        "tests/memory/test_layers.py::test_s4d_starts_from_the_published_eigenvalues",
        "frequencies of S4D-Inv start at others than published",
    ),
    Bug(
        "memory/gla.py",
        "2.0 ** (-5 - ",
        "2.0 ** (-4 - ",
        "tests/memory/test_layers.py::test_relatives_of_gla",
        "heads of RetNet forget twice as fast",
    ),
    Bug(
        "kernels/max_plus_scan.py",
        "jnp.maximum(b + c, d)",
        "jnp.maximum(b, d)",
        "tests/kernels/test_max_plus_scan.py",
        "the largest exponent so far does not decay on a GPU",
    ),
    Bug(
        "kernels/window_scan.py",
        "visible = in_window & (position >= split(opened)[..., None])",
        "visible = in_window & (position > split(opened)[..., None] - 2)",
        "tests/kernels/test_scans.py -k window",
        "attention sees the end of the last episode",
    ),
    Bug(
        "memory/attention.py",
        "turned(keys, -distance[0])",
        "turned(keys, distance[0])",
        "tests/memory/test_layers.py -k attention",
        "keys of RoPE turn against queries",
    ),
    Bug(
        "memory/attention.py",
        "q + self.scale * self.of_distance",
        "q + self.of_distance",
        "tests/memory/test_layers.py -k attention",
        "the query of a distance is not scaled in Transformer-XL's positions",
    ),
    Bug(
        "memory/layers.py",
        "lax.cummax(jnp.where(reset, t, -begun), axis=0)",
        "-begun",
        "tests/memory/test_layers.py -k agalite",
        "the cosines of AGaLiTe run on through resets",
    ),
    Bug(
        "memory/agalite.py",
        "(2 * self.cosines * self.dot(s, query) + 1e-5)",
        "(self.cosines * self.dot(s, query) + 1e-5)",
        "tests/memory/test_layers.py -k agalite",
        "AGaLiTe divides by half of the sum",
    ),
    Bug(
        "memory/stack.py",
        "x = x + y if self.residual and not whole else y",
        "x = x + y if self.residual else y",
        "tests/memory/test_layers.py -k whole",
        "the output of a whole block is added to its input",
    ),
    Bug(
        "memory/layers.py",
        "sigmoid(z + z_x - bias)",
        "sigmoid(z + z_x + bias)",
        "tests/memory/test_layers.py -k whole",
        "gates of GTrXL begin open",
    ),
    Bug(
        "kernels/window_scan.py",
        "jnp.where(last >= 0, T - last, next_ + T) % W",
        "(next_ + T) % W",
        "tests/kernels/test_scans.py -k window",
        "the ring of attention does not begin anew with an episode",
    ),
    Bug(
        "kernels/cpu/window_scan.cc",
        "of_row[s.W - x] = d_bias[kLanes + x];",
        "of_row[x] = d_bias[kLanes + x];",
        "tests/kernels/test_ffi.py -k window",
        "the gradient of the bias of attention is that of the farthest step first",
    ),
    Bug(
        "kernels/cpu/window_scan.cc",
        "place.next = place.length = 0;",
        "place.length = 0;",
        "tests/kernels/test_scans.py -k window",
        "an actor's step keeps the ring of attention where it was at a reset",
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
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *bug.test.split()]
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
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", *bug.test.split()]
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
