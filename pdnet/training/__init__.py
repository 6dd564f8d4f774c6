"""The paper's recipe (5.1), read from `loop`: schedule, task, checkpoints, several processes."""
