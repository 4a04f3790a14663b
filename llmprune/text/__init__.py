"""Calibration tokens: where they come from (`sources/`), and what that takes."""
