"""PPO takes no action that is forbidden, learns under the masks under which it acted, and needs them."""

import signal
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram import api
from engram.agents import registry
from engram.errors import BadRequest, Interrupted
from engram.training.loop import TrainingRun
from tests.envs.own_masks import Ranked, RankedState
from tests.experiments.runs import TINY, assert_same_end, rows_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")

STRICT = "gymnasium/tests.envs.own_masks:Strict-v0?disable_env_checker=true"
RANKED = "tests.envs.own_masks:Ranked"
LEARNS = TINY | {
    **{"env": RANKED, "total_steps": 12_000, "log_points": 1, "seeds": 2},
    **{"ppo__num_envs": 16, "ppo__num_steps": 32, "ppo__minibatches": 2, "ppo__epochs": 4, "ppo__eval_envs": 16},
    **{"ppo__learning_rate": 0.02, "ppo__learning_rate_end": 0.02, "ppo__eval_greedy": True, "ppo__discount": 0.5},
}


def trained(folder, options, resume=False):
    return api.train("debug", **options, out=folder, resume=resume, quiet=True)


def built(options) -> Any:
    return registry.build(api.make_config("debug", **TINY, **options)[1])


def test_what_only_masks_can_tell_is_learned_to_the_optimum(tmp_path):
    """The observation tells nothing: to take the last of the allowed actions is to rank them."""
    rows = rows_of(trained(tmp_path / "run", LEARNS).folder)
    np.testing.assert_allclose(rows[-1]["eval/return"], 1.0, rtol=1e-5)
    assert min(rows[-1]["train/return"]) > 0.3  # one forbidden action costs 1000


def test_without_its_masks_it_takes_what_is_forbidden(tmp_path):
    dropped = LEARNS | {"observation__action_mask": False}
    rows = rows_of(trained(tmp_path / "run", dropped).folder)
    assert max(rows[-1]["eval/return"]) < -100
    assert max(rows[-1]["train/return"]) < -100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "more"),
    [
        ("give=info", {"memory": "gru"}),
        ("give=dict&of=multi", {"seeds": 2}),
        ("give=tuple&of=multi", {"ppo__eval_greedy": True}),
    ],
)
def test_an_emulator_that_takes_nothing_forbidden_plays_on(options, more, tmp_path):
    """It raises where an action is forbidden, in training, in evaluations and afterwards."""
    run = trained(tmp_path / "run", TINY | {"env": f"{STRICT}&{options}"} | more)
    rows = rows_of(run.folder)
    assert np.max([row["loss/ratio_error"] for row in rows]) < 1e-5
    assert np.min(rows[-1]["eval/finished"]) == 1
    assert np.isfinite(api.evaluate(run.folder, episodes=3, gif_steps=0)["eval_return"]["mean"])


def test_the_learner_sees_the_masks_of_the_actor():
    """Each action has the probability that it was drawn with: what was forbidden has none in both."""
    agent = built({"ppo__num_envs": 4, "ppo__num_steps": 16, "ppo__minibatches": 1, "env": f"{RANKED}?sizes=[3,4]"})
    state = jax.jit(agent.init)(jax.random.key(0))
    before = state.memory
    _, rollout = jax.jit(agent._collect)(state, jax.random.key(1))
    assert rollout.mask.shape == (*rollout.reset.shape, 7)
    learner = jax.jit(partial(agent.network.apply, {"params": state.params}))
    _, policy, _ = learner(before, rollout.obs, rollout.reset, rollout.mask)
    np.testing.assert_allclose(policy.log_prob(rollout.action), rollout.log_prob, atol=1e-5)
    _, blind, _ = learner(before, rollout.obs, rollout.reset)
    assert np.abs(blind.log_prob(rollout.action) - rollout.log_prob).max() > 0.1
    sizes = np.array([rollout.mask[..., :3].sum(-1), rollout.mask[..., 3:].sum(-1)])
    assert (policy.entropy() <= np.log(sizes).sum(0) + 1e-5).all()
    assert (np.log(sizes).sum(0) - policy.entropy()).max() < 0.1  # a new policy is nearly uniform


@pytest.mark.slow
def test_a_resumed_run_with_masks_ends_as_an_unbroken_one(tmp_path, monkeypatch, capsys):
    options = TINY | {"env": f"{STRICT}&length=9", "log_points": 4, "checkpoint_seconds": 0, "seeds": 2}
    trained(tmp_path / "whole", options)
    save = TrainingRun.save

    def stop(self, chunk):
        if chunk == 2:
            signal.raise_signal(signal.SIGINT)
        save(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save", stop)
        with pytest.raises(Interrupted):
            trained(tmp_path / "broken", options)
    capsys.readouterr()
    trained(tmp_path / "broken", options, resume=True)
    assert "repeating" in capsys.readouterr().err
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


def test_without_masks_a_rollout_holds_none():
    """Nothing is carried, computed or kept for environments that have none."""
    agent = built({"env": f"{RANKED}?shown=false"})
    state = jax.eval_shape(agent.init, jax.random.key(0))
    _, rollout = jax.eval_shape(agent._collect, state, jax.random.key(1))
    assert rollout.mask is None


@pytest.mark.parametrize(("env", "eval_env"), [("", "?shown=false"), ("?shown=false", "?shown=true")])
def test_training_and_evaluation_have_masks_or_neither(env, eval_env):
    with pytest.raises(BadRequest, match=r"(env|eval_env) has an action_mask, (eval_env|env) has none"):
        built({"env": RANKED + env, "eval_env": RANKED + eval_env})
    built({"env": RANKED + env, "eval_env": RANKED + eval_env, "observation__action_mask": False})


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stuck", "late"])
def test_wrong_masks_are_one_line_unless_they_are_dropped(fault, tmp_path):
    env = TINY | {"env": f"gymnasium/tests.envs.own_masks:Loose-v0?disable_env_checker=true&fault={fault}"}
    with pytest.raises(BadRequest, match="action"):
        trained(tmp_path / "run", env)
    dropped = env | {"observation__action_mask": False}
    run = trained(tmp_path / "dropped", dropped)
    assert rows_of(run.folder)[-1]["eval/finished"] == [1]


def test_a_policy_that_acts_elsewhere_takes_the_mask_beside_the_observation(tmp_path):
    policy = trained(tmp_path / "run", TINY | {"env": STRICT}).policy()
    obs = np.zeros(2, np.float32)
    for i in range(5):
        assert policy(obs, action_mask=np.arange(5) == i) == i
        assert policy({"observation": obs, "action_mask": np.arange(5) == i}) == i
    with pytest.raises(BadRequest, match="action_mask"):
        policy(obs)


@pytest.mark.slow
def test_a_policy_of_an_environment_without_masks_refuses_one(tmp_path):
    policy = trained(tmp_path / "run", TINY | {"env": f"{RANKED}?shown=false"}).policy()
    policy(np.ones(1))
    with pytest.raises(BadRequest, match="gives no action_mask"):
        policy(np.ones(1), action_mask=np.ones(6))


def test_ranked_is_what_it_says():
    """The best of the allowed actions pays, in each component; a forbidden one costs."""
    env = Ranked((3, 2), length=2)
    state = RankedState(jnp.array([1, 1, 0, 1, 0], bool), jnp.zeros((), jnp.int32))
    for action, reward in {(1, 0): 0.5, (0, 0): 0.25, (2, 0): -999.75, (2, 1): -2000}.items():
        assert env.step(jax.random.key(1), state, jnp.array(action), None)[2] == pytest.approx(reward)
