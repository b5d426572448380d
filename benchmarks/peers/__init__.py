"""Comparisons with other libraries: `make peers`, `make bench-peers`."""
