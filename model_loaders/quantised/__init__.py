"""Quantised weights: a registry of formats."""
