"""The ops on a GPU: `make gpu-bench`."""
