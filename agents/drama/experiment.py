"""Configuration of the world-model agent."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from engram.agents.common.checks import require_at_least, require_share_below_one, require_sizes
from engram.agents.common.experiment import Experiment
from engram.agents.drama.settings import DramaSettings
from engram.errors import BadRequest


@dataclass(frozen=True)
class WorldSettings:
    """Sizes of the world model. The defaults are those published for Atari."""

    encoder: Literal["conv", "mlp"] = "conv"
    """Kind of encoder and decoder of observations: convolutions for pictures, dense layers for vectors."""
    reconstruction: Literal["pixels", "binary", "symlog"] = "pixels"
    """Kind of observations that are reconstructed: pixels (0 .. 255), entries that are 0 or 1, or numbers of any
    size."""
    categoricals: int = 32
    """Number of categorical variables in the latent."""
    classes: int = 32
    """Number of classes of each categorical variable of the latent."""
    width: int = 512
    """Width of the memory's input and output."""
    memory_width: int = 0
    """Width of the memory where it differs from width: linear projections lead to it and back (0: the same, without
    projections)."""
    layers: int = 2
    """Number of memory layers, one after another."""
    head: int = 256
    """Hidden width of the predictors of reward and continuation."""
    channels: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Output channels of each convolution."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    """Stride of each convolution."""
    kernel: int = 5
    """Width of the kernels of all convolutions, an odd number."""
    norm: Literal["batch", "rms", "layer"] = "batch"
    """Normalisation after each convolution: over the batch, or over the channels of each position (rms, layer)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the convolutions compute."""
    dense: tuple[int, ...] = ()
    """Sizes of the dense layers of an mlp encoder; the decoder has them in reverse order."""
    unimix: float = 0.01
    """Share of the uniform distribution that is mixed into each categorical variable."""
    unimix_denominator: Literal["classes", "categoricals"] = "classes"
    """Divisor of the uniform share: the number of classes, or (a fault of the published code where they differ) the
    number of categorical variables."""
    dropout: float = 0.0
    """Dropout rate of each memory layer's output, in training."""
    memory_options: tuple[str, ...] = (
        "mamba2.state=16",
        "mamba2.expand=2",
        "mamba2.head=64",
        "mamba.start=published",
        "mamba2.start=published",
    )
    """Options of memories as `memory.option=value` (see the memory page in docs). Those of memories other than the
    chosen one have no effect."""

    def __post_init__(self):
        require_at_least(self, "world.", 1, "categoricals", "classes", "width", "layers", "head")
        require_at_least(self, "world.", 1, "kernel")
        require_at_least(self, "world.", 0, "memory_width")
        require_sizes(self, "world.", "channels", "strides", "dense")
        require_share_below_one(self, "world.", "unimix", "dropout")
        if self.encoder == "conv" and (self.kernel % 2 == 0 or len(self.channels) != len(self.strides)):
            raise BadRequest("world.kernel must be odd, and world.channels and world.strides of one length")


@dataclass(frozen=True, kw_only=True)
class DramaExperiment(Experiment):
    """A world model with a memory, and behaviour learned in its imagination."""

    agent: ClassVar[str] = "drama"
    choice: ClassVar[str] = "memory"

    env: str = "atari/Boxing"
    """Environment id, such as atari/Pong, gymnax/Catch-bsuite or my_module:MyEnvironment."""
    total_steps: int = 100_000
    """Environment steps per seed (rounded up to whole log points)."""
    memory: str = "mamba2"
    """Memory by its registered name, such as mamba2, s5, gru or none, or as my_module:MyMemory (an unknown name shows
    close matches)."""
    drama: DramaSettings = field(default_factory=DramaSettings)
    """Hyperparameters of the agent."""
    world: WorldSettings = field(default_factory=WorldSettings)
    """Sizes of the world model."""
