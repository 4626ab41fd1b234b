"""What the README's numbers come from: `python -m benchmarks`. Each is a ratio against a baseline of the same run."""
