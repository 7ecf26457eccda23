"""R-BOCPD-UCRL2: speed against its NumPy mirror, and what the choices of eta do to stationary streams.

    python -m benchmarks.rbocpd                    # environment steps per second of vmapped seeds
    python -m benchmarks.rbocpd --false-alarms     # false-alarm rates and delays of the detector

Speed: all seeds in one compiled program against the same algorithm in NumPy (float64, one seed), same MDPs and
settings, taken in turn so that a noisy machine is noisy for both. Every round plays whole runs; compilation is not
counted.

False alarms: the fraction of stationary streams in which an alarm is ever raised, and the median delay after the law
turns into its reverse. All etas see the same streams, and the exact detector holds every sample.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.planners import change_points as rbocpd
from engram.agents.planners.ucrl import UCRL, UCRLSettings
from engram.envs.tabular.switching import RandomMDP
from engram.kernels.malloc import keep_freed_memory
from tests.oracles import ucrl as mirror

LAWS = {
    "O=2 fair": (0.5, 0.5),
    "O=2 (.7, .3)": (0.7, 0.3),
    "O=4 (.55, .25, .1, .1)": (0.55, 0.25, 0.1, 0.1),
    "O=8 (.3, .3, six of .067)": (0.3, 0.3, *[0.4 / 6] * 6),
}


def speed(arguments: argparse.Namespace) -> None:
    steps, seeds = arguments.steps, arguments.seeds
    quarter = steps // 4
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {seeds} seeds, {steps} steps\n")
    print("| O, A | forecasters | cap | NumPy steps/s | steps/s of all seeds | ratio | alarms per seed | overflows |")
    print("|---|---|---|---|---|---|---|---|")
    for states, actions in arguments.sizes:
        env = RandomMDP(states, actions, 0.3, changes=(quarter, 2 * quarter, 3 * quarter))
        for forecasters in rbocpd.FORECASTERS:
            settings = UCRLSettings(conf_scale=1.0, forecasters=forecasters, cap=arguments.cap)
            agent = UCRL(env, settings, "rbocpd-ucrl2", steps)
            init = jax.jit(jax.vmap(agent.init))
            length = steps // agent.steps_per_update

            def chunk(states, agent=agent, length=length):
                return jax.lax.scan(lambda s, _: jax.vmap(agent.update)(s), states, None, length=length)

            keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
            first = init(keys)
            run = jax.jit(chunk, donate_argnums=0).lower(first).compile()
            kernels, means, starts = (
                np.asarray(x[0], np.float64) for x in (first.env.kernels, first.env.means, first.env.starts)
            )
            ours, numpy, state = 0.0, 0.0, first
            for i in range(arguments.rounds):
                uniforms = np.random.default_rng(i).uniform(size=(steps, 2))
                began = time.perf_counter()
                mirror.run(kernels, means, starts, uniforms, "rbocpd-ucrl2", agent.settings)
                numpy += time.perf_counter() - began
                states_now = jax.block_until_ready(init(jax.vmap(jax.random.key)(jnp.arange(seeds) + i * seeds)))
                began = time.perf_counter()
                state, _ = jax.block_until_ready(run(states_now))
                ours += time.perf_counter() - began
            rates = [arguments.rounds * steps / numpy, arguments.rounds * steps * seeds / ours]
            overflows = 0 if forecasters == "grid" else int(state.detectors.overflow.sum())
            print(
                f"| {states}, {actions} | {forecasters} | {arguments.cap} | {rates[0]:,.0f} | {rates[1]:,.0f} "
                f"| {rates[1] / rates[0]:.0f}x | {np.mean(state.alarms):.1f} | {overflows} of {seeds} |",
                flush=True,
            )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def first_alarms(length: int, law: tuple[float, ...], streams: int, change: int, key: jax.Array) -> jax.Array:
    """The first alarm of every eta, `[etas, streams]`, `length` where there is none, in streams whose law is reversed
    after `change` samples.

    The weights without eta are the same for all etas, so one detector is enough.
    """
    etas = [rbocpd.make_eta(kind, 0.05) for kind in rbocpd.ETAS]
    symbols = len(law)
    cumulative = jnp.cumsum(jnp.array([law, law[::-1]]), axis=-1)[:, :-1]
    uniforms = jax.random.uniform(key, (length, streams))
    j = jnp.arange(length, dtype=float)

    def one(carry, now):
        det, first = carry
        t, u = now
        x = jnp.sum(cumulative[(t >= change).astype(int)] <= u[:, None], axis=-1)
        det, _ = jax.vmap(lambda d, s: rbocpd.update(d, s, etas[0]))(det, x)
        total = t + 1.0
        alarms = []
        for eta in etas:
            weights = det.excess + eta.log(total, j, symbols)
            best = jnp.max(jnp.where((j >= 1) & (j < total), weights, -jnp.inf), axis=-1)
            alarms.append(rbocpd.is_alarm(best))
        return (det, jnp.where(jnp.stack(alarms) & (first == length), t, first)), None

    dets = jax.tree.map(lambda x: jnp.broadcast_to(x, (streams, *x.shape)), rbocpd.init(symbols, length))
    start = (dets, jnp.full((len(etas), streams), length))
    return jax.lax.scan(one, start, (jnp.arange(length), uniforms))[0][1]


def false_alarms(arguments: argparse.Namespace) -> None:
    streams, length, batch = arguments.streams, arguments.length, 250
    print(
        f"{streams} stationary streams of {length} samples; delta 0.05\n"
        "delay: 500 streams with 200 samples before the change, those without a false alarm\n"
    )
    print("| law | eta | false alarms | rate | median delay |")
    print("|---|---|---|---|---|")
    for index, (name, law) in enumerate(LAWS.items()):
        keys = jax.random.split(jax.random.key(index), streams // batch)
        first = np.concatenate([first_alarms(length, law, batch, length, key) for key in keys], axis=1)
        after = np.asarray(first_alarms(600, law, 500, 200, jax.random.key(1000 + index)))
        for kind, row, delay in zip(rbocpd.ETAS, first, after, strict=True):
            late = np.median(delay[delay >= 200] - 199) if law != law[::-1] else np.nan
            alarms = int((row < length).sum())
            shown = "" if np.isnan(late) else f"{late:.0f}"
            print(f"| {name} | {kind} | {alarms} of {row.size} | {alarms / row.size:.4f} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--false-alarms", action="store_true", help="the table of false alarms instead of speed")
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cap", type=int, default=4096, help="cap of the detectors")
    size = lambda text: tuple(int(n) for n in text.split(","))  # noqa: E731
    parser.add_argument("--sizes", nargs="+", type=size, default=[(4, 3), (4, 7)], help="states,actions")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=1000)
    arguments = parser.parse_args()
    keep_freed_memory()
    (false_alarms if arguments.false_alarms else speed)(arguments)


if __name__ == "__main__":
    main()
