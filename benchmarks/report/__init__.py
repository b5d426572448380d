"""README.md and pages of docs/ from `benchmarks/results` and the settings: `make results`."""
