"""Packing: one device trains many heads at once, stretch by stretch (continuous batching, for training).

A trial is a client. It keeps its configuration, its checkpoints and its validation, and sends the server one stretch of
its training at a time (`requests`). The server remembers nothing between stretches but what it has read of the samples:
one that is lost costs a stretch, and the client sends the same request again.
"""
