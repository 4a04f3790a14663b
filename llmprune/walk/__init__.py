"""Load one block after another, run it, and observe the inputs of its layers."""
