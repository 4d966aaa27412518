"""What a node tells ComfyUI's editor: the files that it saved, what it is doing, and what a person should know."""

from __future__ import annotations

import logging
import sys
import uuid
from fractions import Fraction
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context

from ...media.writer import write_frames
from ..contract import SaveTarget

logger = logging.getLogger(__name__)

MIME = {".mkv": "video/x-matroska"}
"""The assets panel lists what it knows as an image, or by this."""


def shown(target: SaveTarget, files, animated: bool, small=None) -> dict:
    """The ``ui`` of a node that saved files: host.contract.Host.shown.

    ComfyUI's editor takes what is flagged as animated for a video, except webp and png: a gif is an image to it.
    """
    items = [{"filename": file.name, "subfolder": target.subfolder, "type": "output"} for file in files]
    if small is not None:
        items = [{**item, "format": MIME[Path(item["filename"]).suffix]} for item in items]
        return {"files": items, "sana_preview": _preview(small)}
    plays = animated and all(file.suffix != ".gif" for file in files)
    return {"images": items, "animated": (True,)} if plays else {"images": items}


def underlay(image) -> dict:
    """The ``ui`` of a node that shows an image [1, H, W, C] under its canvas."""
    return {"sana_underlay": _temporary(lambda names: next(write_frames(names(".png"), image[..., :3])))}


def _preview(small) -> list[str]:
    return _temporary(small.write)


def _temporary(write) -> list[str]:
    """The name of a file that ``write`` makes in ComfyUI's temporary folder; none where it cannot be written."""
    folder = Path(folder_paths.get_temp_directory())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = SaveTarget(folder, f"sana_preview_{uuid.uuid4().hex[:8]}", 1, "")
        return [write(target.names).name]
    except (OSError, ValueError) as error:  # the run itself goes well
        logger.warning("No preview: %s", error)
        return []


def note(text: str) -> None:
    """A line in the log, and a message on the page of whoever queued the run."""
    logger.warning(text)
    _send("sana-nodes.note", text)


def status(text: str) -> None:
    """What the node that runs is doing; the extension shows it in the node. An empty text when it is done."""
    if text:
        logger.info(text)
    _send("sana-nodes.status", text)


def _send(event: str, text: str) -> None:
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is None:  # ComfyUI's executor without its server
        return
    context = get_executing_context()
    instance.send_sync(event, {"text": text, "node": context and context.node_id}, instance.client_id)


def video(images, fps: float, audio):
    """A VIDEO of frames; ComfyUI 0.3.64 and later have the type."""
    from comfy_api.input_impl import VideoFromComponents
    from comfy_api.util import VideoComponents

    rate = Fraction(fps).limit_denominator(1001)
    return VideoFromComponents(VideoComponents(images=images[..., :3], audio=audio, frame_rate=rate))
