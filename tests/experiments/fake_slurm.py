"""Commands of SLURM that run jobs on this machine: `sbatch`, `srun`, `sacct` and `scontrol requeue`."""

import os
import sys
from pathlib import Path
from typing import Any

COMMON = """
import os, pathlib, re, subprocess, sys, time
home = pathlib.Path({home!r})
"""
COMMANDS = {
    "sbatch": """
number = 100 + len(list(home.glob("*.sh")))
script = home / f"{number}.sh"
script.write_text(pathlib.Path(sys.argv[1]).read_text())
array = re.search(r"--array=.?0-(\\d+)", script.read_text())
names = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [str(number)]
for name in names:
    (home / f"{name}.state").write_text("PENDING")
    subprocess.Popen([sys.executable, str(home / "machine.py"), name], start_new_session=True, stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Submitted batch job {number}")
""",
    "machine.py": """
name = sys.argv[1]
job, _, index = name.partition("_")
variables = {"SLURM_JOB_ID": job, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"}
if index:
    variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
state, again = home / f"{name}.state", home / f"{name}.requeue"
while True:
    state.write_text("RUNNING")
    with open(home / f"{name}.output", "a") as output:
        code = subprocess.call(["bash", str(home / f"{job}.sh")], env={**os.environ, **variables}, stdout=output,
                               stderr=output)
    if state.read_text().startswith("CANCELLED"):
        break
    if not again.exists():
        state.write_text("FAILED" if code else "COMPLETED")
        break
    again.unlink()
""",
    "srun": """
words = sys.argv[1:]
while words and words[0].startswith("--"):
    words = words[1:] if words[0] == "--unbuffered" else words[2:]
os.execvp(words[0], words)
""",
    "sacct": """
print("JobID|State|NodeList")
for file in home.glob("*.state"):
    print(f"{file.stem}|{file.read_text()}|here")
""",
    "scontrol": """
assert sys.argv[1] == "requeue"
(home / f"{sys.argv[2]}.requeue").touch()
""",
}


def install(home: Path, monkeypatch: Any) -> None:
    """Puts the commands on the PATH, with all that they write in the folder `home`."""
    commands = home / "commands"
    commands.mkdir(parents=True)
    for name, code in COMMANDS.items():
        file = (home if name.endswith(".py") else commands) / name
        file.write_text(f"#!{sys.executable}\n{COMMON.format(home=str(home))}{code}")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
