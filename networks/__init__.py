"""Loaded models and how they run. Independent of files, hosts and nodes."""
