"""The command that checks this machine: right results, and how fast."""
