"""Pure mathematics: tensors in, tensors out. Nothing here knows a host, a file or a node."""
