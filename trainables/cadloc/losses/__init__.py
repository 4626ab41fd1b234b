"""Choices; see the modules."""
