"""What each PyTorch function means on packed blocks: one handler a function, registered when its module is imported."""

from headspark.packed.ops import convolution, norms, pointwise, pooling

__all__ = ["convolution", "norms", "pointwise", "pooling"]
