"""Configuration of the world-model agent."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engram.agents.common.experiment import Experiment, require_at_least_one
from engram.agents.drama.settings import DramaSettings
from engram.errors import BadRequest


@dataclass(frozen=True)
class WorldSettings:
    """Sizes of the world model."""

    encoder: Literal["conv", "mlp"]
    """Of observations, and decoder likewise: convolutions for pictures, dense layers for vectors."""
    reconstruction: Literal["pixels", "binary", "symlog"]
    """What observations are: pixels (0 .. 255), entries that are 0 or 1, or numbers of any size."""
    categoricals: int
    """Categorical variables of the latent."""
    classes: int
    """Classes of each."""
    width: int
    """Width of the memory's input and output."""
    layers: int
    """Memory layers, one after another."""
    head: int
    """Hidden width of the predictors of reward and end."""
    channels: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Of the convolutions."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    """Of the convolutions."""
    kernel: int = 5
    """Width of the convolutions' kernels, odd."""
    norm: Literal["batch", "rms", "layer"] = "batch"
    """Normalisation of the convolutions: of the batch, or of each place."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions."""
    dense: tuple[int, ...] = ()
    """Sizes of the dense layers of an mlp encoder, and backwards of the decoder."""
    unimix: float = 0.01
    """Share of the uniform distribution in the latent's."""
    unimix_denominator: Literal["classes", "categoricals"] = "classes"
    """Spreads that share over the classes, or (wrong where they differ) over the number of categoricals."""
    dropout: float = 0.0
    """Of the output of each memory layer, in training."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value` (see the memory page in docs)."""

    def __post_init__(self):
        require_at_least_one(self, "world.", "categoricals", "classes", "width", "layers", "head")
        for name in ("unimix", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise BadRequest(f"world.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.encoder == "conv" and (self.kernel % 2 == 0 or len(self.channels) != len(self.strides)):
            raise BadRequest("world.kernel must be odd, and world.channels and world.strides of one length")


@dataclass(frozen=True, kw_only=True)
class DramaExperiment(Experiment):
    """A world model with a memory, and behaviour learned in its imagination."""

    agent: ClassVar[str] = "drama"
    choice: ClassVar[str] = "memory"

    memory: str = "mamba2"
    """Memory by its registered name, such as mamba2, s5, gru or none (an unknown name lists them all)."""
    drama: DramaSettings
    """Hyperparameters of the agent."""
    world: WorldSettings
    """Sizes of the world model."""
