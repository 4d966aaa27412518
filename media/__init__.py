"""Frames to files: the formats, the writer, and the graph inside the file. Nothing here knows a host or a node."""
