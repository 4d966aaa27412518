"""One file per autoencoder: its config, from shapes if the file has none, and its module."""
