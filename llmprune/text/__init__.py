"""Calibration tokens: the text sources (`sources/`) and the tools that they share."""
