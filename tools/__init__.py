"""Programs that write what is shipped: ``python -m sana_nodes.tools.locales`` and ``…tools.workflows``."""
