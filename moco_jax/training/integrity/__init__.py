"""Whether checkpoints are whole: checksums of states, and checkpoints as files."""
