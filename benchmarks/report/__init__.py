"""README.md, docs/results.md and docs/data.md from `benchmarks/results`: `make results`."""
