"""The paper's experiments, one command each; see docs/experiments.md."""
