"""The paper's recipe (5.1): schedule, task, loop."""
