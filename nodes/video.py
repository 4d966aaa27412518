"""sana/video: frames to files that play, frames to pictures, and frames out of frames."""

from __future__ import annotations

from .. import host
from ..media import writer
from ..media.formats import FRAME_FORMATS, VIDEO_FORMATS


def _file_inputs() -> dict:
    fps = {
        "default": 16.0,
        "min": 0.01,
        "max": 1000.0,
        "step": 0.01,
        "tooltip": "Frames per second; 16 is SANA-Video's.",
    }
    kind = {
        "default": "mp4-h264",
        "tooltip": "mp4 plays everywhere, webm is smaller, mkv-ffv1 loses nothing, gif and webp are moving pictures.",
    }
    quality = {
        "default": 80,
        "min": 1,
        "max": 100,
        "tooltip": "More is better and larger; mkv-ffv1 and gif do not use it.",
    }
    return {
        "fps": ("FLOAT", fps),
        "format": (list(VIDEO_FORMATS), kind),
        "quality": ("INT", quality),
        "filename_prefix": _prefix_input("video/Sana"),
    }


def _prefix_input(prefix: str):
    return ("STRING", {"default": prefix, "tooltip": "Folder and beginning of the name, under the output folder."})


HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def _said_of_file(fps=None, format=None, quality=None, filename_prefix=None):
    """True, or what is wrong with a file to be written and its folder; ComfyUI shows it before it runs anything."""
    try:
        usual = next(iter(VIDEO_FORMATS))
        writer.check_video(1 if fps is None else fps, format or usual, 1 if quality is None else quality)
        if filename_prefix is not None:
            writer.check_folder(host.current().save_target(filename_prefix, 16, 16).folder)
    except (OSError, ValueError) as error:
        return str(error)
    except Exception as error:  # folder_paths raises a bare Exception for a prefix that leaves the output folder
        return f"filename_prefix is {filename_prefix!r}: {error}"
    return True


def _save(pieces, count: int, size, fps, format, quality, filename_prefix, prompt, extra_pnginfo, audio=None):
    """Write pieces of frames to the next file of a prefix, with progress; returns the ``ui`` and the path."""
    here, kind = host.current(), VIDEO_FORMATS[format]
    target = here.save_target(filename_prefix, size[1], size[0])
    path = target.path(kind.suffix)
    with here.progress(count, "saving") as bar:
        counted = _counting(pieces, bar)
        writer.write_video(path, counted, fps, format, quality, here.tags(prompt, extra_pnginfo), audio)
    shown = here.shown(target, [path], kind.plays)
    return shown if kind.plays else {"files": shown["images"]}, str(path)


def _counting(pieces, bar):
    """The frames of ``pieces`` one by one, each counted, so that an interrupt is noticed at once."""
    for piece in pieces:
        for i in range(len(piece)):
            yield piece[i : i + 1]
            bar.update(1)


class SanaSaveVideo:
    DISPLAY_NAME = "Sana Save Video"
    CATEGORY = "sana/video"
    DESCRIPTION = (
        "Saves frames as a file that plays, with the workflow inside: drop it on the canvas to open the graph."
    )
    SEARCH_ALIASES = ["sana", "save video", "video combine", "mp4", "webm", "gif", "webp", "export"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "path")
    OUTPUT_TOOLTIPS = ("The frames, unchanged.", "The file's path.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The frames in order."}), **_file_inputs()},
            "optional": {"audio": ("AUDIO", {"tooltip": "Sound, cut at the end of the frames; not for gif and webp."})},
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, fps=None, format=None, quality=None, filename_prefix=None):
        return _said_of_file(fps, format, quality, filename_prefix)

    def save(self, images, fps, format, quality, filename_prefix, audio=None, prompt=None, extra_pnginfo=None):
        writer.check_video(fps, format, quality, audio)
        shown, path = _save(
            [images],
            len(images),
            images.shape[1:3],
            fps,
            format,
            quality,
            filename_prefix,
            prompt,
            extra_pnginfo,
            audio,
        )
        return {"ui": shown, "result": (images, path)}


class SanaDecodeSaveVideo:
    DISPLAY_NAME = "Sana Decode And Save Video"
    CATEGORY = "sana/video"
    DESCRIPTION = (
        "Decodes a video latent and saves it piece by piece, so that the length of the video costs no memory. "
        "Use it in place of VAEDecode and SanaSaveVideo for long videos."
    )
    SEARCH_ALIASES = ["sana", "sana video", "vae decode", "save video", "long video", "low memory"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file's path; of a batch, the last file's.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "A video latent; each video of a batch gets its own file."}),
                "vae": ("VAE", {"tooltip": "The model's video VAE, from SanaLoadPipeline or SanaLoadVAE."}),
                **_file_inputs(),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, fps=None, format=None, quality=None, filename_prefix=None):
        return _said_of_file(fps, format, quality, filename_prefix)

    def save(self, samples, vae, fps, format, quality, filename_prefix, prompt=None, extra_pnginfo=None):
        here, latents = host.current(), samples["samples"]
        spec = here.vae_spec(vae)
        if latents.ndim != 5:
            raise ValueError(f"the latent has the shape {list(latents.shape)}, which is no video's: use VAEDecode")
        size = [side * spec.spatial_ratio for side in latents.shape[-2:]]
        count, files = spec.frames(latents.shape[2]), []
        for video in latents.split(1):
            pieces = here.decode_frames(vae, video)
            shown, path = _save(pieces, count, size, fps, format, quality, filename_prefix, prompt, extra_pnginfo)
            files.append(shown)
        together = {key: [item for shown in files for item in shown[key]] for key in files[0] if key != "animated"}
        return {"ui": {**files[0], **together}, "result": (path,)}


class SanaSaveFrames:
    DISPLAY_NAME = "Sana Save Frames"
    CATEGORY = "sana/video"
    DESCRIPTION = "Saves frames as numbered pictures, each with the workflow inside."
    SEARCH_ALIASES = ["sana", "save image", "image sequence", "png sequence"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "folder")
    OUTPUT_TOOLTIPS = ("The frames, unchanged.", "The folder that they are in.")

    @classmethod
    def INPUT_TYPES(cls):
        kind = {"default": "png", "tooltip": "png loses nothing; jpg and webp are smaller."}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames in order."}),
                "format": (list(FRAME_FORMATS), kind),
                "filename_prefix": _prefix_input("frames/Sana"),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix=None):
        return _said_of_file(filename_prefix=filename_prefix)

    def save(self, images, format, filename_prefix, prompt=None, extra_pnginfo=None):
        if format not in FRAME_FORMATS:
            raise ValueError(f"format is {format!r}; choose one of {', '.join(FRAME_FORMATS)}")
        here, files = host.current(), []
        target = here.save_target(filename_prefix, images.shape[2], images.shape[1])
        tags = here.tags(prompt, extra_pnginfo)
        with here.progress(len(images), "saving") as bar:
            for i, frame in enumerate(images):
                files.append(writer.write_frame(target.path(FRAME_FORMATS[format], i), frame, tags))
                bar.update(1)
        return {"ui": here.shown(target, files, False), "result": (images, str(target.folder))}


class SanaSelectFrames:
    DISPLAY_NAME = "Sana Select Frames"
    CATEGORY = "sana/video"
    DESCRIPTION = "Some frames out of many. start -1 gives the last one, to continue a video from."
    SEARCH_ALIASES = ["sana", "image from batch", "last frame", "get frames", "trim", "skip frames"]
    FUNCTION = "select"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The frames chosen, in order.",)

    @classmethod
    def INPUT_TYPES(cls):
        start = {"default": 0, "min": -1_000_000, "max": 1_000_000, "tooltip": "The first frame; below 0 from the end."}
        count = {"default": 0, "min": 0, "max": 1_000_000, "tooltip": "How many frames at most; 0 is all that follow."}
        stride = {"default": 1, "min": 1, "max": 1_000_000, "tooltip": "Every how manieth frame."}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames to choose from."}),
                "start": ("INT", start),
                "count": ("INT", count),
                "stride": ("INT", stride),
            }
        }

    def select(self, images, start, count, stride):
        if not -len(images) <= start < len(images):
            raise ValueError(
                f"start is {start} and there are {len(images)} frames: give {-len(images)} to {len(images) - 1}"
            )
        if stride < 1 or count < 0:
            raise ValueError(
                f"stride is {stride} and count is {count}; give a stride of 1 or more and a count of 0 or more"
            )
        chosen = images[start % len(images) :: stride]
        return (chosen[:count] if count else chosen,)
