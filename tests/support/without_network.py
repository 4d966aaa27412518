"""Load a pipeline in a process whose sockets lead nowhere, and report what was looked up: for test_without_network.py.

python tests/support/without_network.py HOST HOME PIPELINE
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

LOOKED_UP: list[str] = []


def block_sockets() -> None:
    """Whatever looks a name up or connects is written down and refused."""

    def refuse(name: str):
        def refused(*args, **kwargs):
            LOOKED_UP.append(f"{name} {[str(value)[:80] for value in args if not isinstance(value, socket.socket)]}")
            raise OSError("this process has no network")

        return refused

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        setattr(socket, name, refuse(name))
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse(name))


def main(host: str, home: Path, pipeline: str) -> None:
    block_sockets()
    from sana_nodes import host as hosts

    if host == "comfyui":
        from in_process import start_comfyui

        start_comfyui(home)
        hosts.use(host)
    else:
        chosen = hosts.use(host)
        chosen.folders.models = [home / "models"]
    import drawing

    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline=pipeline)
    alone = drawing.call("SanaLoadTextEncoder", encoder_name=f"{pipeline}-text-encoder")[0]
    images = [drawing.ours((model, one, vae), "a red ring") for one in (clip, alone)]
    difference = drawing.difference(*images)
    loaded = list(LOOKED_UP)
    import huggingface_hub

    try:  # a lookup is seen: otherwise the list would be empty for nothing
        huggingface_hub.model_info("org/repository")
    except Exception as error:
        refusal = type(error).__name__
    found = {"loaded": loaded, "seen": len(LOOKED_UP) - len(loaded), "refusal": refusal, "difference": difference}
    found["offline"] = [name for name in os.environ if name.endswith("_OFFLINE")]
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
