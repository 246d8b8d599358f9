"""The loop that every task runs, with its checkpoints, logs, optimizers and config checks."""
