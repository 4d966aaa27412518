"""One file for each autoencoder: its config, read off shapes where a file came without one, and its module."""
