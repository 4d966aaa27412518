"""Files to modules: recognise, open, build. Nothing here knows a host or a node.

The modules are diffusers' and transformers' own classes; both are imported inside functions, at
first use, because importing them takes seconds.
"""
