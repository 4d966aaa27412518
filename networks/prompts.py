"""Prompts for SANA's text encoder: instructions, caption cleaning and the selection of hidden states.

Ported from diffusers' SanaSprintPipeline (_get_gemma_prompt_embeds, encode_prompt), with one
difference: padding is not computed. Gemma is causal and diffusers pads on the right with a mask, so
padding does not change the selected states, and the transformer masks it out.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_INSTRUCTION = "\n".join(
    [
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for "
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing "
        "street lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering "
        "glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    ]
)
"""SanaSprintPipeline's and SanaPipeline's complex_human_instruction."""

VIDEO_INSTRUCTION = "\n".join(
    [
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable "
        "for video generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, motion, and "
        "temporal relationships to create vivid and dynamic scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat slowly settling into a curled "
        "position, peacefully falling asleep on a warm sunny windowsill, with gentle sunlight filtering through "
        "surrounding pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing "
        "street lamps gradually lighting up, a diverse crowd of people in colorful clothing walking past, and a "
        "double-decker bus smoothly passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    ]
)
"""SanaVideoPipeline's complex_human_instruction."""

LONG_INSTRUCTION = IMAGE_INSTRUCTION.replace("'Enhanced prompt'", '"Enhanced prompt"')
"""That of NVlabs' scripts for LongSANA: the one for images, in their quotes."""

INSTRUCTIONS = {
    "image": IMAGE_INSTRUCTION,
    "video": VIDEO_INSTRUCTION,
    "none": "",
    "custom": "",
    "long": LONG_INSTRUCTION,
}


@dataclass(frozen=True)
class Prompt:
    """A prompt to encode: its text, the instruction before it, and as in tokenize_prompt."""

    text: str
    instruction: str = IMAGE_INSTRUCTION
    max_sequence_length: int = 300
    clean_caption: bool = False

    def tokens(self, tokenizer) -> PromptTokens:
        return tokenize_prompt(tokenizer, self.text, self.instruction, self.max_sequence_length, self.clean_caption)


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of instruction and prompt together, and the first index whose state is kept.

    The states used are those of ``ids[0]`` and of ``ids[first_kept:]``.
    """

    ids: tuple[int, ...]
    first_kept: int


def choose_instruction(name: str, custom: str | None = None) -> str:
    """The text of the instruction ``name``."""
    if name not in INSTRUCTIONS:
        raise ValueError(f"instruction is {name!r}; choose one of {', '.join(INSTRUCTIONS)}")
    return (custom or "") if name == "custom" else INSTRUCTIONS[name]


def clean_prompt(prompt: str, clean_caption: bool = False) -> str:
    """The prompt in lower case and stripped; with ``clean_caption``, cleaned by diffusers' caption cleaner.

    Cleaning needs beautifulsoup4 and ftfy; ImportError if one is missing.
    """
    if not clean_caption:
        return prompt.lower().strip()
    try:
        import bs4  # noqa: F401
        import ftfy  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"clean_caption needs the packages beautifulsoup4 and ftfy, and {error.name} is not installed: "
            "pip install beautifulsoup4 ftfy, or switch clean_caption off"
        ) from error
    from diffusers import SanaSprintPipeline

    pipeline = SanaSprintPipeline.__new__(SanaSprintPipeline)
    return pipeline._clean_caption(pipeline._clean_caption(prompt))


def tokenize_prompt(
    tokenizer, prompt: str, instruction: str = "", max_sequence_length: int = 300, clean_caption: bool = False
) -> PromptTokens:
    """Tokens of ``instruction + prompt``, truncated as in diffusers.

    ``max_sequence_length``: the maximum number of states, 1 to 8192, including that of the first token.
    """
    if not 1 <= max_sequence_length <= 8192:
        raise ValueError(f"max_sequence_length is {max_sequence_length}; give a number from 1 to 8192")
    limit = max_sequence_length
    if instruction:
        limit += len(tokenizer.encode(instruction)) - 2
    ids = tokenizer(
        instruction + clean_prompt(prompt, clean_caption),
        max_length=max(limit, 1),
        truncation=True,
        add_special_tokens=True,
    ).input_ids
    if not ids:
        raise ValueError("the prompt gave no tokens; the tokenizer's files may be damaged")
    return PromptTokens(tuple(ids), max(limit - (max_sequence_length - 1), 0))
