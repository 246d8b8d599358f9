"""What a run measures at its evaluations."""
