"""Load modules from files: identify, open, build. Independent of hosts and nodes.

The modules are diffusers' and transformers' own classes. Both are imported inside functions, at first
use, because importing them takes seconds.
"""
