"""Programs that a test compiles are kept for the other tests, the processes that they start, and the next time."""

import os
from pathlib import Path

# Set before JAX is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
