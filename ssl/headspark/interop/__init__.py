"""Exchange weights with other tools: one file a foreign format."""

from headspark.interop.nnssl import NnsslCheckpoint, read_nnssl, write_nnssl

__all__ = ["NnsslCheckpoint", "read_nnssl", "write_nnssl"]
