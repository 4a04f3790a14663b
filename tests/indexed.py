"""lm-eval's index of its tasks, read once for all processes forked from the one that imports this."""

from llmprune_eval import tasks

tasks._manager()
