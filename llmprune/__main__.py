"""`python -m llmprune` is `llmprune`."""

from llmprune.cli import main

main()
