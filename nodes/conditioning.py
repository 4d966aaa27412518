"""sana/conditioning: text to CONDITIONING."""

from __future__ import annotations

import math

from .. import host
from ..model_loaders import prompts


class SanaEncodePrompt:
    DISPLAY_NAME = "Sana Encode Prompt"
    CATEGORY = "sana/conditioning"
    DESCRIPTION = "Encodes a prompt with SANA's text encoder, led by the instruction that SANA was trained with."
    SEARCH_ALIASES = ["sana", "clip text encode", "prompt", "complex human instruction"]
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The prompt for a SANA sampler, with the guidance scale.",)

    @classmethod
    def INPUT_TYPES(cls):
        text = {
            "multiline": True,
            "dynamicPrompts": True,
            "tooltip": "What to draw. Taken to the letter: no (word:1.2) weights.",
        }
        instruction = {
            "default": "image",
            "tooltip": "The text put before the prompt. image and video are the trained ones.",
        }
        guidance = {
            "default": 4.5,
            "min": 0.0,
            "max": 100.0,
            "step": 0.1,
            "tooltip": "SANA-Sprint's embedded guidance: how closely the picture follows the prompt. 1 to 9.",
        }
        length = {
            "default": 300,
            "min": 1,
            "max": 8192,
            "tooltip": "Tokens of the prompt that are used at most; SANA was trained with 300.",
            "advanced": True,
        }
        clean = {
            "default": False,
            "tooltip": "Remove links, HTML and odd characters first. Needs beautifulsoup4 and ftfy.",
            "advanced": True,
        }
        custom = {
            "multiline": True,
            "default": "",
            "tooltip": "The instruction's text when instruction is custom.",
            "advanced": True,
        }
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "Gemma-2 from SanaLoadPipeline or SanaLoadTextEncoder."}),
                "text": ("STRING", text),
                "instruction": (list(prompts.INSTRUCTIONS), instruction),
                "guidance_scale": ("FLOAT", guidance),
                "max_sequence_length": ("INT", length),
                "clean_caption": ("BOOLEAN", clean),
            },
            "optional": {"custom_instruction": ("STRING", custom)},
        }

    def encode(
        self, clip, text, instruction, guidance_scale, max_sequence_length, clean_caption, custom_instruction=""
    ):
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise ValueError(f"guidance_scale is {guidance_scale}; give a number from 0 up, such as 4.5")
        conditioning = host.current().encode_prompt(
            clip,
            text,
            instruction=prompts.choose_instruction(instruction, custom_instruction),
            max_sequence_length=max_sequence_length,
            clean_caption=clean_caption,
        )
        return ([[states, {**said, "guidance": float(guidance_scale)}] for states, said in conditioning],)
