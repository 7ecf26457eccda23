"""A sweep by hand: every setting is a run of its own, and the results are rows.

python examples/sweep.py
"""

import engram


def main(total_steps: int = 60_000, out: str = "runs/examples/sweep") -> None:
    rows = []
    for learning_rate in (5e-4, 2e-3):
        for entropy in (0.0, 0.01):
            run = engram.train(
                "popgym-fast",
                ppo={"learning_rate": learning_rate, "entropy": entropy, "entropy_end": entropy},
                total_steps=total_steps,
                out=f"{out}/lr{learning_rate}-entropy{entropy}",
                resume=True,
                quiet=True,
            )
            rows.append((run.summary["eval_return"]["mean"], learning_rate, entropy))
    for score, learning_rate, entropy in sorted(rows, reverse=True):
        print(f"return {score:6.3f}  learning rate {learning_rate:g}  entropy {entropy:g}")


if __name__ == "__main__":
    main()
