"""Weights of a few bits with scales beside them: one registry of formats."""
