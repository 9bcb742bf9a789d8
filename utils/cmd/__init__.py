"""Correlation Mode Decomposition of any model."""
