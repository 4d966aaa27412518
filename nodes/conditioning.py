"""sana/conditioning: text to CONDITIONING."""

from __future__ import annotations

import math

from .. import host
from ..networks.prompts import INSTRUCTIONS, Prompt, choose_instruction
from ..samplers.block_causal import STARTS
from . import checks

NEGATIVE_PROMPT = (
    "A chaotic sequence with misshapen, deformed limbs in heavy motion blur, sudden disappearance, jump cuts, "
    "jerky movements, rapid shot changes, frames out of sync, inconsistent character shapes, temporal artifacts, "
    "jitter, and ghosting effects, creating a disorienting visual experience."
)
"""The negative prompt of diffusers' SanaVideoPipeline and NVlabs' video scripts."""


def _length_input():
    tip = "Maximum number of prompt tokens; SANA was trained with 300."
    return ("INT", {"default": 300, "min": 1, "max": 8192, "tooltip": tip, "advanced": True})


def _clean_input():
    tip = "Remove links, HTML and unusual characters first. Needs the packages beautifulsoup4 and ftfy."
    return ("BOOLEAN", {"default": False, "tooltip": tip, "advanced": True})


def _check_instruction(instruction=None, custom_instruction=None, **_):
    """True, or a message where the custom instruction is chosen and left empty."""
    if instruction == "custom" and custom_instruction is not None and not custom_instruction.strip():
        return "custom_instruction is empty, and instruction is custom: give its text, or choose none"
    return True


class SanaEncodePrompt:
    DISPLAY_NAME = "Sana Encode Prompt"
    CATEGORY = "sana/conditioning"
    DESCRIPTION = "Encodes a prompt with SANA's text encoder, after the instruction that SANA was trained with."
    SEARCH_ALIASES = ["sana", "clip text encode", "prompt", "complex human instruction"]
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The prompt for a SANA sampler, with the guidance scale.",)

    @classmethod
    def INPUT_TYPES(cls):
        text = {
            "multiline": True,
            "dynamicPrompts": True,
            "tooltip": "What to generate. Used literally: (word:1.2) weights are not supported.",
        }
        instruction = {
            "default": "image",
            "tooltip": "The instruction before the prompt. SANA was trained with image and video, LongSANA with long.",
        }
        guidance = {
            "default": 4.5,
            "min": 0.0,
            "max": 100.0,
            "step": 0.1,
            "tooltip": "SANA-Sprint's embedded guidance: how closely the image follows the prompt. 1 to 9 is useful.",
        }
        custom = {
            "multiline": True,
            "default": "",
            "tooltip": "The instruction used when instruction is custom.",
            "advanced": True,
        }
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "Gemma-2 from Sana Load Pipeline or Sana Load Text Encoder."}),
                "text": ("STRING", text),
                "instruction": (list(INSTRUCTIONS), instruction),
                "guidance_scale": ("FLOAT", guidance),
                "max_sequence_length": _length_input(),
                "clean_caption": _clean_input(),
            },
            "optional": {"custom_instruction": ("STRING", custom)},
        }

    VALIDATE_INPUTS = checks.Validation(_check_instruction)

    @staticmethod
    def prompts(text, instruction, max_sequence_length, clean_caption, custom_instruction="", **_) -> list[Prompt]:
        """What is encoded with these inputs; others may be encoded with it beforehand (Host.encode_prompts)."""
        chosen = choose_instruction(instruction, custom_instruction)
        return [Prompt(text, chosen, max_sequence_length, clean_caption)]

    def encode(self, clip, guidance_scale, **inputs):
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise ValueError(f"guidance_scale is {guidance_scale}; give a number of 0 or more, such as 4.5")
        (conditioning,) = host.current().encode_prompts(clip, self.prompts(**inputs))
        return ([[states, {**options, "guidance": float(guidance_scale)}] for states, options in conditioning],)


class SanaEncodeVideoPrompt:
    DISPLAY_NAME = "Sana Encode Video Prompt"
    CATEGORY = "sana/conditioning"
    DESCRIPTION = (
        "Encodes a prompt for SANA-Video, between the video instruction and the motion score. The negative prompt is "
        "encoded unchanged."
    )
    SEARCH_ALIASES = ["sana", "sana video", "text to video", "clip text encode", "prompt", "motion score"]
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The encoded prompt.", "The encoded negative prompt.")

    @classmethod
    def INPUT_TYPES(cls):
        prompt = {
            "multiline": True,
            "dynamicPrompts": True,
            "tooltip": "What the video shows. Used literally: (word:1.2) weights are not supported.",
        }
        negative = {
            "multiline": True,
            "dynamicPrompts": True,
            "default": NEGATIVE_PROMPT,
            "tooltip": "What the video should not show; used when cfg is above 1.",
        }
        instruction = {
            "default": "video",
            "tooltip": "The instruction before the prompt: video for SANA-Video, long as LongSANA was trained.",
        }
        motion = {
            "default": 30,
            "min": 0,
            "max": 1000,
            "tooltip": "The amount of motion, as in SANA-Video's training: about 5 for little, 30 for much.",
        }
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "Gemma-2 from Sana Load Pipeline or Sana Load Text Encoder."}),
                "prompt": ("STRING", prompt),
                "negative_prompt": ("STRING", negative),
                "motion_score": ("INT", motion),
                "max_sequence_length": _length_input(),
                "clean_caption": _clean_input(),
            },
            "optional": {"instruction": (["video", "long"], instruction)},
        }

    @staticmethod
    def prompts(
        prompt, negative_prompt, motion_score, max_sequence_length, clean_caption, instruction="video", **_
    ) -> list[Prompt]:
        """The prompt and the negative one; others may be encoded with them beforehand (Host.encode_prompts)."""
        limits = max_sequence_length, clean_caption
        positive = f"{prompt} motion score: {motion_score}."
        return [Prompt(positive, choose_instruction(instruction), *limits), Prompt(negative_prompt, "", *limits)]

    def encode(self, clip, **inputs):
        return tuple(host.current().encode_prompts(clip, self.prompts(**inputs)))


class SanaPromptSchedule:
    DISPLAY_NAME = "Sana Prompt Schedule"
    CATEGORY = "sana/conditioning"
    DESCRIPTION = (
        "Prompts one after another for a long video: each node adds one from a time on. It begins with the "
        "nearest block, which the log tells."
    )
    SEARCH_ALIASES = ["sana", "longsana", "prompt travel", "prompt switch", "story", "timeline"]
    FUNCTION = "schedule"
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The prompts so far, for Sana Long Video Sample or Sana Long Video Save.",)

    @classmethod
    def INPUT_TYPES(cls):
        start = {
            "default": 0.0,
            "min": 0.0,
            "max": 86400.0,
            "step": 0.01,
            "tooltip": "When the prompt begins, in seconds of this clip; the first prompt begins at 0.",
        }
        fps = {"default": 16.0, "min": 0.01, "max": 1000.0, "step": 0.01, "tooltip": "Frames per second of the video."}
        return {
            "required": {
                "conditioning": ("CONDITIONING", {"tooltip": "The prompt, from Sana Encode Video Prompt."}),
                "start": ("FLOAT", start),
                "fps": ("FLOAT", fps),
            },
            "optional": {"previous": ("CONDITIONING", {"tooltip": "The prompts before it, from the same node."})},
        }

    def schedule(self, conditioning, start, fps, previous=None):
        if len(conditioning) != 1:
            raise ValueError(f"conditioning holds {len(conditioning)} prompts; give one, and those before to previous")
        earlier = [options.get(STARTS, 0.0) / fps for _, options in previous or []]
        if not earlier and start != 0:
            raise ValueError(f"the first prompt starts at {start:g} s; give it 0, or the prompts before it as previous")
        if earlier and start <= earlier[-1]:
            raise ValueError(
                f"this prompt starts at {start:g} s and the one before it at {earlier[-1]:g} s: give a later start, or "
                "put them in order"
            )
        states, options = conditioning[0]
        return ([*(previous or []), [states, {**options, STARTS: start * fps}]],)
