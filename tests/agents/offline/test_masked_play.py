"""Masks of actions where agents learn from recorded episodes: the sequence policy takes nothing that is forbidden, and
those that would are refused, as are world models."""

import jax.numpy as jnp
import numpy as np
import pytest

from engram import api
from engram.agents import registry
from engram.agents.offline.view import DataView
from engram.envs.datasets import load, save
from engram.envs.datasets.episodes import Episodes, Origin
from engram.errors import BadRequest
from tests.experiments.runs import rows_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")

RANKED = "tests.envs.own_masks:Ranked"
LENGTH, ACTIONS, EPISODES = 8, 6, 12
SMALL = {"sequence__context": 4, "sequence__batch_size": 8, "sequence__eval_episodes": 8, "sequence__acting": "both"}
SMALL |= {"sequence__warmup": 1, "total_steps": 20, "log_points": 1, "eval_points": 1}
SMALL |= {"mixer__width": 16, "mixer__layers": 1, "memory": "gru"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Random actions, which tell nothing of what is allowed."""
    rng = np.random.default_rng(0)
    episodes = Episodes(
        obs=np.ones((EPISODES * (LENGTH + 1), 1), np.float32),
        action=rng.integers(ACTIONS, size=EPISODES * LENGTH).astype(np.int32),
        reward=rng.random(EPISODES * LENGTH).astype(np.float32) / LENGTH,
        terminated=np.ones(EPISODES, bool),
        lengths=np.full(EPISODES, LENGTH, np.int64),
        origin=Origin(env=RANKED),
        num_actions=ACTIONS,
    )
    path = tmp_path_factory.mktemp("data") / "ranked.npz"
    save(episodes, path)
    return str(path)


def trained(folder, dataset, env=""):
    return api.train("dm-pendulum", dataset=dataset, env=env, **SMALL, out=folder, quiet=True)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_sequence_policy_takes_what_is_allowed_alone(dataset, tmp_path):
    """A forbidden action costs 1000: without masks it is soon taken."""
    run = trained(tmp_path / "run", dataset)
    last = rows_of(run.folder)[-1]
    returns = {name: value[0] for name, value in last.items() if "return" in name}
    assert {"eval/return", "eval/recurrent_return"} < {*returns}
    assert min(returns.values()) >= 0
    blind = rows_of(trained(tmp_path / "blind", dataset, f"{RANKED}?shown=false").folder)[-1]
    assert blind["eval/return"][0] < -100
    assert blind["eval/recurrent_return"][0] < -100

    policy = run.policy()
    for i in range(ACTIONS):
        assert policy(np.ones(1), action_mask=np.arange(ACTIONS) == i) == i
    with pytest.raises(BadRequest, match="must be told which actions are allowed"):
        policy(np.ones(1))


def test_the_best_of_the_allowed_actions_is_chosen(dataset):
    view = DataView.of(load(dataset))
    logits = jnp.array([[0.0, 1, 2, 3, 4, 5], [0.0, 1, 2, 3, 4, 5]])
    mask = jnp.array([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    action, vector = view.decide(logits, mask)
    np.testing.assert_array_equal(action, [3, 5])
    np.testing.assert_array_equal(vector, np.eye(6)[[3, 5]])


def test_agents_that_heed_no_mask_refuse_environments_that_have_one(dataset):
    blind = {"offline": {"dataset": dataset, "algorithm": "bc"}, "drama-memorychain": {"env": RANKED}}
    for preset, changes in blind.items():
        config = api.make_config(preset, **changes)[1]
        with pytest.raises(BadRequest, match=r"has an action_mask, which .* do not heed") as error:
            registry.build(config)
        assert "\n" not in str(error.value)
