"""Train PPO with a memory on a POPGym task, look at the numbers, and draw the curves.

python examples/train_and_plot.py
"""

import engram


def main(total_steps: int = 60_000, out: str = "runs/examples/repeat-previous") -> None:
    run = engram.train("popgym-fast", memory="s5", seeds=2, total_steps=total_steps, out=out, resume=True)
    for row in list(records(run.metrics()))[-4:]:
        print(row)
    print("final return of each seed:", run.summary["eval_return"]["per_seed"])
    print("curves:", run.plot())


def records(metrics):
    """The evaluation's returns, whether the metrics are a DataFrame or a list of dicts."""
    rows = metrics if isinstance(metrics, list) else metrics.to_dict("records")
    return (row for row in rows if row["metric"] == "eval/return")


if __name__ == "__main__":
    main()
