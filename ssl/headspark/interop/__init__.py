"""Exchange weights with other tools: one file a foreign format."""

from headspark.interop.nnssl import *  # noqa: F403
