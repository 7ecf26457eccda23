"""Options of the experiments, as scripts and Python take them. Their docstrings are the `--help` text.

Nothing here needs JAX, so that help is quick.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from engram.agents.common.checks import (
    require_at_least,
    require_inner_share,
    require_not_negative,
    require_positive,
    require_seed,
    require_sizes,
    require_some,
)
from engram.configs.arguments import Positional
from engram.configs.store import Head
from engram.errors import BadRequest
from engram.training.mirror import opened

Split = Literal["train", "test", "heldout"]
Tier = Literal["random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"]
Format = Literal["npz", "d4rl", "minari"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True)
class Output:
    """Destination of a run, and its display."""

    out: Path | None = None
    """Run folder (default: runs/<preset>/<env or dataset>-<memory>-<time>)."""
    resume: bool = False
    """Continuation of the run in --out from its newest intact checkpoint (a folder without one starts from the
    beginning)."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Mode of Weights & Biases."""
    quiet: bool = False
    """No progress display."""
    devices: int | None = None
    """Devices of this machine over which the seeds are spread (default: as many as there are and divide --seeds). Bits
    depend on the seeds of a device, not on the number of devices."""

    mirror: str | None = None
    """URL of a copy of the run folder (s3://, gs://, file://, ... as fsspec knows them), brought up to date after each
    checkpoint. With --resume an empty folder is first fetched from there. Of several runs each is copied below it, by
    its path."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "devices")
        if self.mirror is not None:
            opened(self.mirror)


@dataclass(frozen=True)
class Distributed:
    """Several processes that train one run together, on one machine or several."""

    distributed: bool = False
    """Start of this process as one of several that train the run. SLURM, Open MPI and TPUs say who they are; elsewhere
    the three options below do."""
    coordinator: str | None = None
    """Address HOST:PORT of the first process."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, counted from 0."""

    def __post_init__(self):
        given = (self.coordinator, self.processes, self.process)
        require_at_least(self, "--", 1, "processes")
        require_at_least(self, "--", 0, "process")
        if None in given and any(value is not None for value in given):
            raise BadRequest("--coordinator, --processes and --process go together")
        if self.process is not None and self.processes is not None:
            if not self.distributed:
                raise BadRequest("--coordinator, --processes and --process need --distributed")
            if self.process >= self.processes:
                raise BadRequest(f"--process {self.process}: {self.processes} processes are counted from 0")


@dataclass(frozen=True)
class Launcher:
    """Engine that trains cells, and what each of them gets."""

    name: Head[Literal["local", "slurm", "ray"]] = "local"
    """Engine that trains: processes of this machine, jobs of SLURM, or tasks of Ray. --jobs is the number at the same
    time with each."""
    retries: int = 3
    """Attempts after a crash or the loss of a machine, 5, 10, 20, ... seconds later. Preemptions do not count."""
    cpus: int = 2
    """Cores of a cell (slurm, ray)."""
    gpus: int = 0
    """GPUs of a cell (slurm, ray)."""
    memory_gb: int = 8
    """Memory of a cell, in GB (slurm, ray)."""
    hours: float = 24.0
    """Hours after which a job is stopped with a checkpoint, and queued again (slurm)."""
    partition: str = ""
    """Partition of the jobs (slurm)."""
    account: str = ""
    """Account of the jobs (slurm)."""
    qos: str = ""
    """Quality of service of the jobs (slurm)."""
    constraint: str = ""
    """Features that a machine must have (slurm)."""
    setup: tuple[str, ...] = ()
    """Lines of shell before a job begins, such as "module load cuda" (slurm)."""
    address: str = "auto"
    """Address of the cluster (ray): auto for the one that this machine belongs to, local for one of this machine alone
    that ends with the command, or ray://HOST:PORT."""
    detach: bool = False
    """End of the command as soon as all jobs are queued; repeat it for the table, or --watch (slurm)."""

    def __post_init__(self):
        require_at_least(self, "launcher.", 0, "retries", "gpus")
        require_at_least(self, "launcher.", 1, "cpus", "memory_gb")
        require_positive(self, "launcher.", "hours")
        for f in fields(self):
            engines = ENGINES_WITH.get(f.name)
            if engines and self.name not in engines and getattr(self, f.name) != f.default:
                raise BadRequest(f"launcher.{f.name} is for {' and '.join(engines)}, not for {self.name}")


ENGINES_WITH = {
    **dict.fromkeys(("cpus", "gpus", "memory_gb"), ("slurm", "ray")),
    **dict.fromkeys(("hours", "partition", "account", "qos", "constraint", "setup", "detach"), ("slurm",)),
    "address": ("ray",),
}
"""Engines that take a setting of the launcher, where not all do."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run from its newest checkpoint."""

    run: Positional[Path]
    """Run folder."""
    episodes: int = 64
    """Episodes per seed."""
    seed: int = 1_000
    """Seed of the evaluation's environments."""
    greedy: bool | None = None
    """Greedy actions: the most likely one instead of a sampled one (default: as the run was configured)."""
    gif_steps: int = 150
    """Steps of the first seed to draw into eval.gif (0: draw nothing)."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "episodes")
        require_at_least(self, "--", 0, "gif_steps")
        require_seed(self, "--", "seed")


@dataclass(frozen=True)
class Compare:
    """Rows and columns of a comparison. Any option of train.py can follow."""

    memories: tuple[str, ...] = ()
    """Memories, the columns of the table, for presets of agents with a memory (default: s5 gru none, of
    sequence policies dm attention mamba). Of single-step methods: those that encode histories, with --algorithms."""
    algorithms: tuple[str, ...] = ()
    """Algorithms, the columns of the table, for presets of planners and of single-step methods (default: all)."""
    envs: tuple[str, ...] = ()
    """Environment ids, the rows of the table (default: the preset's)."""
    datasets: tuple[str, ...] = ()
    """Recorded episodes, the rows of the table, for presets that learn from these alone (default: the preset's)."""
    seeds: int = 3
    """Seeds per cell."""
    tuned: Path | None = None
    """File with the winners of a sweep, best.json: each column has its winner's settings (default of --memories: all
    that have one). The seeds must not be those of the search."""
    match: Literal["none", "params", "flops", "state"] = "none"
    """Size that memories are made equal in by their width: parameters, operations of a step, or bytes of the state. The
    first column's is the size of all."""
    out: Path | None = None
    """Folder of the comparison (default: runs/compare/<preset>)."""
    x: Literal["env_steps", "wall_s"] = "env_steps"
    """Horizontal axis of the curves: steps, or seconds of training."""
    pictures: tuple[Literal["png", "pdf", "svg"], ...] = ("png",)
    """Formats of the pictures, each of which is written in all of them."""
    jobs: int = 1
    """Cells that are trained at the same time, each in a process of its own; with several on one machine, each has its
    share of the cores."""
    launcher: Launcher = Launcher()
    """Engine that trains the cells."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "seeds", "jobs")


@dataclass(frozen=True)
class Sweep:
    """Settings searched for each memory alike. Any option of train.py can follow."""

    space: tuple[str, ...] = ()
    """Settings that are searched, as setting=log:LOW:HIGH, setting=linear:LOW:HIGH (with :COUNT behind it for so many
    values) or setting=choice:A,B; setting+setting=... gives both one value."""
    memories: tuple[str, ...] = ()
    """Memories that are tuned, each by as many trials in the same space (default: those of compare.py)."""
    algorithms: tuple[str, ...] = ()
    """Algorithms that are tuned, for presets of planners and of single-step methods (default: all)."""
    envs: tuple[str, ...] = ()
    """Environment ids, on all of which a trial is trained (default: the preset's). Several need a common scale of
    returns, as tasks of popgym/ have, or games with known scores of random play."""
    datasets: tuple[str, ...] = ()
    """Recorded episodes in place of environments, for presets that learn from these alone (default: the preset's)."""
    trials: int | None = None
    """Trials of each memory (default: 32, or with --sampler grid all combinations)."""
    seeds: int = 2
    """Seeds of each trial."""
    seed: int = 1_000_000
    """Seed of the search: of the first run of each trial, from which the others count up, and of the sampler. A
    comparison of the winners needs other seeds."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Way to choose the settings of trials: by what earlier ones came to (tpe), by chance, or all combinations. With
    the last two all memories have the same."""
    match: Literal["none", "params", "flops", "state"] = "none"
    """Size that memories are made equal in by their width, before settings are searched: parameters, operations of a
    step, or bytes of the state. The first memory's is the size of all."""
    out: Path | None = None
    """Folder of the sweep (default: runs/sweep/<preset>)."""
    jobs: int = 1
    """Runs that are trained at the same time, each in a process of its own; with several on one machine, each has its
    share of the cores."""
    launcher: Launcher = Launcher()
    """Engine that trains the runs."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "trials", "seeds", "jobs")
        require_seed(self, "--", "seed")
        if self.launcher.detach:
            raise BadRequest("launcher.detach is not for a sweep, which chooses trials by the scores of others")


@dataclass(frozen=True)
class Watch:
    """Looking at what other commands train."""

    watch: float | None = None
    """Seconds between two looks at cells that other commands train, with a line for each, until all have ended; 0 for a
    single look. Nothing is trained; tables and pictures are of what is there."""

    def __post_init__(self):
        require_not_negative(self, "--", "watch")


@dataclass(frozen=True)
class Adapt:
    """How trained agents adapt within the trials of a `meta/` environment."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders."""
    splits: tuple[Split, ...] = ("train", "test", "heldout")
    """Splits of the tasks: those of training, others of the same distribution, tasks of another one. Members of a
    mixture that were not trained on are played on heldout alone."""
    lengths: tuple[int, ...] = (1, 4, 16)
    """Lengths of the trials, as multiples of the length in training."""
    ablations: tuple[Literal["frozen", "reset"], ...] = ("frozen", "reset")
    """Ablations of the memory in trials as long as in training: frozen after --freeze-after inner episodes, or cleared
    at each."""
    freeze_after: int = 1
    """Inner episodes before the memory is frozen (see --ablations)."""
    changes: tuple[Literal["off", "on", "oracle"], ...] | None = None
    """Ways to clear the memory where the task switches, in trials as long as in training: never, by a detector, or by
    the switch itself (default: all three, for environments whose task switches)."""
    eta: Literal["paper", "squared", "certified"] = "certified"
    """Prior of a change in the detector (see the planners' page on R-BOCPD). The paper's own raises a false alarm in
    more than half of all streams that do not change."""
    eta_delta: float = 0.05
    """Probability of a false alarm in a stream, with eta=certified."""
    trials: int = 256
    """Trials per seed of the run."""
    seed: int = 1_000
    """Seed of the trials."""
    greedy: bool | None = None
    """Greedy actions: the most likely one instead of a sampled one (default: as the run was configured)."""
    out: Path | None = None
    """Folder of the table and the figure (default: the run folder if there is one, else runs/adaptation)."""

    def __post_init__(self):
        require_some(self, "--", "splits", "lengths")
        require_sizes(self, "--", "lengths")
        require_at_least(self, "--", 2, "trials")
        require_at_least(self, "--", 0, "freeze_after")
        require_inner_share(self, "--", "eta_delta")
        require_seed(self, "--", "seed")


@dataclass(frozen=True)
class Atari100k:
    """Games and seeds of the benchmark. Any option of train.py can follow."""

    games: tuple[str, ...] = ()
    """Games of the benchmark (default: all 26)."""
    seeds: int = 5
    """Number of runs per game; their seeds count up from the preset's."""
    episodes: int | None = None
    """Episodes of a run's evaluation (default: the preset's)."""
    hours: float | None = None
    """Hours after which the benchmark stops, with the current run checkpointed (default: when all is done)."""
    out: Path | None = None
    """Folder of the benchmark (default: runs/atari-100k/<preset>-<memory>)."""
    jobs: int = 1
    """Runs that are trained at the same time, each in a process of its own; with several on one machine, each has its
    share of the cores."""
    launcher: Launcher = Launcher()
    """Engine that trains the runs."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "seeds", "episodes", "jobs")
        require_not_negative(self, "--", "hours")


@dataclass(frozen=True)
class Dream:
    """Draw what the world model of a run makes of fresh episodes."""

    run: Positional[Path]
    """Run folder."""
    context: int = 8
    """Steps that the world model sees."""
    horizon: int = 16
    """Steps that it imagines from the actions alone."""
    seed: int = 2_000
    """Seed of the episodes."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "context", "horizon")
        require_seed(self, "--", "seed")


@dataclass(frozen=True)
class Plot:
    """Learning curves of one or more runs in one picture."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("curves.png")
    """Picture to write, in the format of its ending: .png, .pdf, .svg, ..."""
    x: Literal["env_steps", "wall_s"] = "env_steps"
    """Horizontal axis: steps, or seconds of training."""
    metrics: tuple[str, ...] = ()
    """Metrics, a panel each (default: those of the agent). With these, runs may be of different agents."""
    labels: tuple[str, ...] = ()
    """Labels of the runs (default: the memory or algorithm, with what tells two runs apart)."""


@dataclass(frozen=True)
class Runs:
    """Run folders: what each holds and scored, and in which settings they differ."""

    folders: Positional[tuple[Path, ...]] = (Path("runs"),)
    """Run folders, or folders with run folders anywhere below."""
    where: tuple[str, ...] = ()
    """Settings that the runs must have, as setting=value; * stands for any letters (env=popgym/*Easy)."""
    diff: bool = False
    """Table of the settings in which the runs differ, instead of the list."""


@dataclass(frozen=True)
class Tiers:
    """Train PPO and record tiers of data."""

    out: Path | None = None
    """Folder of the datasets (default: runs/datasets/<env>-<memory>)."""
    tiers: tuple[Tier, ...] = TIERS
    """Tiers to make."""
    steps: int = 100_000
    """Steps of random, medium and expert, rounded to whole episodes (D4RL has 1,000,000); medium-expert gets those of
    both, and the replay tiers have what training played."""
    format: Format = "npz"
    """Format of the datasets: one .npz file a tier, D4RL's HDF5, or Minari datasets under <out>/minari."""
    quiet: bool = False
    """No progress display."""

    def __post_init__(self):
        require_some(self, "--", "tiers")
        require_at_least(self, "--", 1, "steps")


@dataclass(frozen=True)
class Expert:
    """Record the policy of a finished run."""

    run: Positional[Path]
    """Run folder of PPO; of several seeds the first is taken."""
    out: Path | None = None
    """Folder of the datasets (default: runs/datasets/<env>-<memory>)."""
    tiers: tuple[Literal["random", "expert"], ...] = ("random", "expert")
    """Tiers to make."""
    steps: int = 100_000
    """Steps of each tier, rounded to whole episodes."""
    format: Format = "npz"
    """Format of the datasets: .npz files, D4RL's HDF5, or Minari datasets under <out>/minari."""

    def __post_init__(self):
        require_some(self, "--", "tiers")
        require_at_least(self, "--", 1, "steps")


@dataclass(frozen=True)
class PendulumNoise:
    """Pendulum episodes of a scripted swing-up controller, with uniform actions at probabilities from 0 to 1."""

    out: Path
    """File or Minari folder, by its ending."""
    episodes: int = 80
    """Episodes of 200 steps at each of the five levels."""
    seed: int = 0
    """Seed of the episodes."""
    mask_velocity: bool = False
    """Observations without the angular velocity."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "episodes")
        require_seed(self, "--", "seed")


@dataclass(frozen=True)
class Convert:
    """Write a dataset in another format, by the ending of its name: .npz, .hdf5 (D4RL), .engram (a folder of arrays,
    which may be larger than memory), or none (Minari folder)."""

    source: Positional[Path]
    """File (.npz, .hdf5, .csv), folder .engram, or Minari folder."""
    out: Positional[Path]
    """File, folder NAME.engram, or Minari folder <root>/<namespace>/<name>-v0."""
    max_episode_steps: int | None = None
    """Steps after which the environment cut episodes, of files with D4RL's columns. Those without timeouts need it."""

    def __post_init__(self):
        require_at_least(self, "--", 1, "max_episode_steps")
