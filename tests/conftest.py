"""Programs that a test compiles are kept for the other tests, the processes that they start, and the next time."""

import os
from pathlib import Path

# Set before JAX is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
# Not only those that took over a second: a process that resumes compiles many small ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
