"""``python -m sana_nodes`` is ``sana-nodes``; so is ``python FOLDER`` where only the folder is there."""

import sys

if not __package__:  # started as a folder: the package around this file has not been imported
    import importlib.util
    from pathlib import Path

    file = Path(__file__).resolve().with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("sana_nodes", file, submodule_search_locations=[str(file.parent)])
    assert spec and spec.loader
    sys.modules["sana_nodes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["sana_nodes"])
    sys.path.pop(0)  # this folder, whose nodes/ and media/ are not top-level packages

from sana_nodes.cli import main

sys.exit(main())
