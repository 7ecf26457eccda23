"""Act with a trained policy in a gymnasium loop, and draw what its memory holds.

The agent learns CartPole without velocities in JAX. Then it balances gymnasium's own CartPole, one step at a time.

    python examples/policy_in_gymnasium.py
"""

import gymnasium
import matplotlib
import numpy as np

import engram

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(total_steps: int = 200_000, out: str = "runs/examples/cartpole") -> None:
    run = engram.train(
        "gymnax", memory="gru", observation={"keep": (0, 2)}, total_steps=total_steps, out=out, resume=True
    )
    policy = engram.load(run.folder).policy(greedy=True)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    angles, states, values, done = [], [], [], False
    while not done:
        action = policy(obs)
        angles.append(obs[2])
        states.append(np.concatenate([np.ravel(leaf) for leaf in leaves(policy.memory)]))
        values.append(policy.value)
        obs, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
    print(f"balanced for {len(angles)} steps")

    figure, (top, middle, bottom) = plt.subplots(3, sharex=True, figsize=(8, 6), layout="constrained")
    top.plot(angles)
    top.set_ylabel("angle of the pole")
    middle.plot(values)
    middle.set_ylabel("value")
    bottom.imshow(np.array(states).T, aspect="auto", cmap="coolwarm", interpolation="nearest")
    bottom.set_ylabel("entries of the memory")
    bottom.set_xlabel("step")
    path = run.folder / "memory.png"
    figure.savefig(path, dpi=110)
    print("picture:", path)


def leaves(state):
    """The arrays of a memory's state, whatever its structure."""
    if isinstance(state, dict):
        state = tuple(state.values())
    return [array for part in state for array in leaves(part)] if isinstance(state, tuple | list) else [state]


if __name__ == "__main__":
    main()
