"""A loaded model at work: what it does when it runs. Nothing here knows a file, a host or a node."""
