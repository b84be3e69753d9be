"""What the experiments have in common, one job per file."""
