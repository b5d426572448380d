"""The oracle: each op in plain PyTorch, on any device and float dtype, and short enough to be believed."""
