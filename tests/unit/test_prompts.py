"""Instructions, sizes and caption handling are diffusers' own."""

from __future__ import annotations

import builtins
import inspect

import drawing
import pytest
import tiny
from sana_nodes.networks import prompts, resolutions


def default_instruction(pipeline) -> str:
    return "\n".join(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)


def test_instructions_are_the_pipelines():
    from diffusers import SanaPipeline, SanaSprintPipeline, SanaVideoPipeline

    assert default_instruction(SanaSprintPipeline) == prompts.IMAGE_INSTRUCTION
    assert default_instruction(SanaPipeline) == prompts.IMAGE_INSTRUCTION
    assert default_instruction(SanaVideoPipeline) == prompts.VIDEO_INSTRUCTION


def test_sizes_are_the_pipelines():
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma
    from diffusers.pipelines.sana import pipeline_sana as sana
    from diffusers.pipelines.sana_video import pipeline_sana_video as video

    tables = {
        "1024px": alpha.ASPECT_RATIO_1024_BIN,
        "512px": alpha.ASPECT_RATIO_512_BIN,
        "2048px": sigma.ASPECT_RATIO_2048_BIN,
        "4096px": sana.ASPECT_RATIO_4096_BIN,
        "video 480p": video.ASPECT_RATIO_480_BIN,
        "video 720p": getattr(video, "ASPECT_RATIO_720_BIN", None),
    }
    assert list(resolutions.BIN_NAMES) == list(tables)
    for name, table in tables.items():
        for ratio, (height, width) in (table or {}).items():
            assert resolutions.bins_of(name)[float(ratio)] == (int(width), int(height))


@pytest.mark.parametrize("size", [(1024, 1024), (1920, 1080), (640, 2000), (3, 1), (1000, 1001)])
def test_resolution_chooses_as_diffusers(size):
    from diffusers.image_processor import PixArtImageProcessor
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    width, height = drawing.call("SanaResolution", width=size[0], height=size[1])
    theirs = PixArtImageProcessor.classify_height_width_bin(size[1], size[0], ratios=ASPECT_RATIO_1024_BIN)
    assert (height, width) == theirs


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="choose one of 1024px"):
        resolutions.nearest_size(10, 10, "8K")
    with pytest.raises(ValueError, match="0 x 10"):
        resolutions.nearest_size(0, 10, "1024px")
    with pytest.raises(ValueError, match="choose one of image, video, none, custom"):
        prompts.choose_instruction("poem")
    with pytest.raises(ValueError, match="max_sequence_length is 0"):
        prompts.tokenize_prompt(None, "x", max_sequence_length=0)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny.DEMO / "tokenizer"), local_files_only=True)


def test_kept_states_are_the_first_and_the_prompts(tokenizer):
    tokens = prompts.tokenize_prompt(tokenizer, "A red ring", prompts.IMAGE_INSTRUCTION)
    instruction = tokenizer.encode(prompts.IMAGE_INSTRUCTION)
    assert tokens.first_kept == len(instruction) - 1
    assert tokenizer.decode(tokens.ids[tokens.first_kept + 1 :]).strip() == "red ring"
    plain = prompts.tokenize_prompt(tokenizer, "A red ring")
    assert plain.first_kept == 1 and plain.ids[0] == tokenizer.bos_token_id


def test_clean_caption_names_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "ftfy":
            raise ModuleNotFoundError("No module named 'ftfy'", name="ftfy")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="ftfy is not installed: pip install"):
        prompts.clean_prompt("x", clean_caption=True)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -1.0])
def test_guidance_must_be_a_number(guidance):
    with pytest.raises(ValueError, match="guidance_scale is"):
        drawing.call("SanaEncodePrompt", clip=None, text="x", guidance_scale=guidance)
