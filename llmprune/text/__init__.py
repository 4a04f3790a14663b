"""Calibration tokens: from a text, from ranks, from the model."""
