"""sana/video: frames to videos, frames to images, and frames out of frames."""

from __future__ import annotations

from contextlib import closing

from .. import host
from ..media import formats, thumbnail, writer
from ..media.formats import FRAME_FORMATS, VIDEO_FORMATS, frame_format
from ..media.pixels import check_frames
from . import checks, rules


def file_inputs() -> dict:
    fps = {
        "default": 16.0,
        "min": 0.01,
        "max": 1000.0,
        "step": 0.01,
        "tooltip": "Frames per second; SANA-Video makes 16. gif plays at most 50, webp at most 90.",
    }
    available = list(formats.available())
    kind = {
        "default": available[0],
        "tooltip": "mp4 plays everywhere, webm is smaller, mkv-ffv1 is lossless, gif and webp are animated images.",
    }
    quality = {
        "default": 80,
        "min": 1,
        "max": 100,
        "tooltip": "Higher is better and larger; mkv-ffv1 and gif do not use it.",
    }
    return {
        "fps": ("FLOAT", fps),
        "format": (available, kind),
        "quality": ("INT", quality),
        "filename_prefix": prefix_input("video/Sana"),
    }


def prefix_input(prefix: str):
    return ("STRING", {"default": prefix, "tooltip": "Folder and start of the file name, below the output folder."})


HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def check_file(filename_prefix=None, **_):
    """True, or what is wrong with the prefix or its folder, before anything runs and without making anything."""
    try:
        if filename_prefix is not None:
            host.current().check_prefix(filename_prefix)
    except (OSError, ValueError) as error:
        return str(error)
    return True


class Saves:
    """What the nodes that save have in common."""

    VALIDATE_INPUTS = checks.Validation(check_file, rules.sound_fits, otherwise="filename_prefix")


def target_of(prefix: str, size) -> host.SaveTarget:
    """Where files of a prefix, for frames of ``size`` (height, width), are saved next."""
    here = host.current()
    here.check_prefix(prefix)
    return here.save_target(prefix, size[1], size[0])


def _save(pieces, count: int, size, fps, format, quality, filename_prefix, prompt, extra_pnginfo, audio=None):
    """Write pieces of frames to the next file of a prefix, with progress; returns the ``ui`` and the path."""
    here = host.current()
    target = target_of(filename_prefix, size)
    kind, tags = VIDEO_FORMATS[format], here.tags(prompt, extra_pnginfo)
    small = None if kind.plays else thumbnail.Thumbnail(count, fps)
    with here.progress(count, "saving") as bar:
        counted = _counting(pieces, bar)
        frames = counted if small is None else small.noting(counted)
        path = writer.write_video(target.names(kind.suffix), frames, fps, format, quality, tags, audio)
    return here.shown(target, [path], kind.plays, small), str(path)


def _counting(pieces, bar):
    """The frames of ``pieces`` one by one, each counted, so that an interrupt is noticed at once."""
    for piece in pieces:
        for i in range(len(piece)):
            yield piece[i : i + 1]
            bar.update(1)


class SanaSaveVideo(Saves):
    DISPLAY_NAME = "Sana Save Video"
    CATEGORY = "sana/video"
    DESCRIPTION = "Saves frames as a video with the workflow inside: drop the file on the canvas to load the workflow."
    SEARCH_ALIASES = ["sana", "save video", "video combine", "mp4", "webm", "gif", "webp", "export"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING", "VIDEO")
    RETURN_NAMES = ("images", "path", "video")
    OUTPUT_TOOLTIPS = (
        "The frames, unchanged.",
        "The file's path.",
        "The frames with their rate and sound, for core nodes that take a video.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The frames in order."}), **file_inputs()},
            "optional": {
                "audio": (
                    "AUDIO",
                    {"tooltip": "Sound: cut at the last frame, or silent up to it; not for gif and webp."},
                )
            },
            "hidden": HIDDEN,
        }

    def save(self, images, fps, format, quality, filename_prefix, audio=None, prompt=None, extra_pnginfo=None):
        check_frames(images)
        writer.check_video(fps, format, quality, audio)
        file = (fps, format, quality, filename_prefix, prompt, extra_pnginfo)
        shown, path = _save([images], len(images), images.shape[1:3], *file, audio)
        return {"ui": shown, "result": (images, path, host.current().video(images, fps, audio))}


class SanaDecodeSaveVideo(Saves):
    DISPLAY_NAME = "Sana Decode And Save Video"
    CATEGORY = "sana/video"
    DESCRIPTION = (
        "Decodes a video latent and saves it piece by piece, so that a longer video takes no more memory. "
        "Use it in place of VAE Decode and Sana Save Video for long videos."
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
                "vae": ("VAE", {"tooltip": "The model's video VAE, from Sana Load Pipeline or Sana Load VAE."}),
                **file_inputs(),
            },
            "hidden": HIDDEN,
        }

    def save(self, samples, vae, fps, format, quality, filename_prefix, prompt=None, extra_pnginfo=None):
        here, latents = host.current(), samples["samples"]
        spec = here.vae_spec(vae)
        if latents.ndim != 5:
            raise ValueError(f"the latent has the shape {list(latents.shape)}, which is not a video's: use VAE Decode")
        size = [side * spec.spatial_ratio for side in latents.shape[-2:]]
        count, files = spec.frames(latents.shape[2]), []
        for video in latents.split(1):
            pieces = here.decode_frames(vae, video)
            shown, path = _save(pieces, count, size, fps, format, quality, filename_prefix, prompt, extra_pnginfo)
            files.append(shown)
        together = {key: [item for shown in files for item in shown[key]] for key in files[0] if key != "animated"}
        return {"ui": {**files[0], **together}, "result": (path,)}


class SanaSaveFrames(Saves):
    DISPLAY_NAME = "Sana Save Frames"
    CATEGORY = "sana/video"
    DESCRIPTION = "Saves frames as numbered images, each with the workflow inside."
    SEARCH_ALIASES = ["sana", "save image", "image sequence", "png sequence"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "folder")
    OUTPUT_TOOLTIPS = ("The frames, unchanged.", "The folder of the images.")

    @classmethod
    def INPUT_TYPES(cls):
        kind = {"default": "png", "tooltip": "png is lossless; jpg and webp are smaller. jpg holds no alpha."}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames in order."}),
                "format": (list(FRAME_FORMATS), kind),
                "filename_prefix": prefix_input("frames/Sana"),
            },
            "hidden": HIDDEN,
        }

    def save(self, images, format, filename_prefix, prompt=None, extra_pnginfo=None):
        here, files = host.current(), []
        check_frames(images)
        target = target_of(filename_prefix, images.shape[1:3])
        names = target.names(frame_format(format).suffix)
        written = writer.write_frames(names, images, format, here.tags(prompt, extra_pnginfo))
        with here.progress(len(images), "saving") as bar, closing(written):
            for path in written:
                files.append(path)
                bar.update(1)
        return {"ui": here.shown(target, files, False), "result": (images, str(target.folder))}


class SanaSelectFrames:
    DISPLAY_NAME = "Sana Select Frames"
    CATEGORY = "sana/video"
    DESCRIPTION = "Selects some of the frames. A start of -1 gives the last one, to continue a video from."
    SEARCH_ALIASES = ["sana", "image from batch", "last frame", "get frames", "trim", "skip frames"]
    FUNCTION = "select"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The selected frames, in order.",)

    @classmethod
    def INPUT_TYPES(cls):
        start = {
            "default": 0,
            "min": -1_000_000,
            "max": 1_000_000,
            "tooltip": "The first frame; below 0 from the end.",
        }
        count = {
            "default": 0,
            "min": 0,
            "max": 1_000_000,
            "tooltip": "How many frames at most; 0 for all that follow.",
        }
        stride = {"default": 1, "min": 1, "max": 1_000_000, "tooltip": "Takes every n-th frame."}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames to select from."}),
                "start": ("INT", start),
                "count": ("INT", count),
                "stride": ("INT", stride),
            }
        }

    VALIDATE_INPUTS = checks.Validation(None, rules.selection_fits)

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
