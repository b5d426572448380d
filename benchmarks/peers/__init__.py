"""Beside other libraries: `make peers`, `make bench-peers`."""
