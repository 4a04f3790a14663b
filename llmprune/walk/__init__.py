"""Bring in one block after another and observe what enters its layers."""
