"""ComfyUI's own nodes on our MODEL, CLIP, VAE and latents: each row of docs/core-nodes.md is true."""

from __future__ import annotations

import core_checks_model  # noqa: F401  registers its checks
import core_nodes
import drawing
import in_process
import pytest
import tiny
import torch
from core_checks import CHECKS, settings
from core_elsewhere import ELSEWHERE
from core_table import FAMILIES, rows

ROWS = rows()


@pytest.fixture(scope="module")
def rigs(home, reference, video_references):
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    hosts.use("comfyui")
    core_nodes.load_nodes()
    folder = home / "models" / "diffusion_models"
    tiny.transformer(seed=21).save_pretrained(folder / "twin-sprint")
    image = {"guidance_embeds": False, "qk_norm": None}
    tiny.transformer(seed=22, **image).save_pretrained(folder / "own-image")
    tiny.transformer(seed=23, **image).save_pretrained(folder / "twin-image")
    tiny.video_transformer(seed=24).save_pretrained(folder / "twin-video")
    sprint, clip, dc_ae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    video, video_clip, wan = drawing.call("SanaLoadPipeline", pipeline="tiny-video")

    def load(name):
        return drawing.call("SanaLoadTransformer", model_name=name)[0]

    picture = own_image = load("own-image")
    yield {
        "sprint": core_nodes.Rig("sprint", sprint, load("twin-sprint"), clip, dc_ae, own_image, (1, 32, 8, 8), 32),
        "image": core_nodes.Rig("image", picture, load("twin-image"), clip, dc_ae, sprint, (1, 32, 8, 8), 32),
        "video": core_nodes.Rig("video", video, load("twin-video"), video_clip, wan, sprint, (1, 16, 2, 16, 16), 8),
    }
    hosts._current = None


def older_than(version: str | None) -> bool:
    import comfyui_version

    def parts(text):
        return tuple(int(part) for part in text.split("."))

    return version is not None and parts(comfyui_version.__version__) < parts(version)


@torch.inference_mode()  # as ComfyUI runs its nodes
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_core_node(rigs, name, family):
    row = ROWS[name]
    old = older_than(row["since"])
    assert old != (name in core_nodes.load_nodes()), f"{name} is said to be there since {row['since'] or '0.3.64'}"
    if old:
        pytest.skip(f"this ComfyUI has no {name}")
    state = row[family].partition(" since ")
    if state[0] == "works" and not older_than(state[2] or None):
        CHECKS[name](rigs[family])
    elif state[0] == "unsupported":
        with pytest.raises(ValueError, match="SANA"):
            CHECKS[name](rigs[family])
    else:
        ELSEWHERE[name](rigs[family])


@torch.inference_mode()
def test_an_area_on_a_video_of_32_pixel_cells(rigs):
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny-video-ltx2")
    CHECKS["ConditioningSetArea"](core_nodes.Rig("video", model, model, clip, vae, None, (1, 128, 2, 8, 8), 32))


def test_areas_that_touch_still_do_in_larger_cells(rigs):
    from sana_nodes.host.comfyui.patches import area_in_cells

    assert area_in_cells((8, 16, 0, 8), 2, 32) == (2, 4, 0, 2)
    assert area_in_cells((8, 16, 0, 8), 3, 8) == (8, 16, 0, 8)
    for edge in range(1, 31):  # 32 cells of 8 pixels, divided anywhere
        (_, left, _, start), (_, right, _, place) = (
            area_in_cells(area, 2, 32) for area in ((32, edge, 0, 0), (32, 32 - edge, 0, edge))
        )
        assert start == 0 and left >= 1 and right >= 1 and place + right in (8, 9) and abs(left - place) <= 1
        if 2 <= edge <= 29:
            assert left == place and place + right == 8
    assert area_in_cells(("percentage", 0.5, 0.25, 0.0, 0.25), 3, 8) == ("percentage", 1.0, 0.5, 0.25, 0.0, 0.0, 0.25)
    assert area_in_cells(("percentage", 1.0, 0.5, 0.25, 0.0, 0.0, 0.25), 2, 32) == ("percentage", 0.5, 0.25, 0.0, 0.25)


@torch.inference_mode()
def test_a_model_that_was_merged_is_its_own_again_afterwards(rigs):
    """The blocks' tables too, which we patch ourselves."""
    rig = rigs["sprint"]
    before = {key: value.clone() for key, value in rig.model.model_state_dict().items()}
    for ratio in (0.5, 0.2):
        merged = core_nodes.one("ModelMergeSimple", model1=rig.model, model2=rig.twin, ratio=ratio)
        rig.draw(merged)
    assert core_nodes.same(rig.draw(), rig.base)
    after = rig.model.model_state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@torch.inference_mode()
def test_our_empty_latent_says_the_size_of_its_cells(rigs):
    """KSampler fits it to a model with others, as ComfyUI does since 0.33 where a latent says so."""
    rig = rigs["video"]
    latent = drawing.call("SanaEmptyLatent", width=128, height=128)[0]
    drawn = core_nodes.one("KSampler", seed=1, denoise=1.0, **settings(rig, latent_image=latent))["samples"]
    cells = 4 if older_than("0.33.0") else 16
    assert drawn.shape == (1, 16, 1, cells, cells)


NOT_READ = [(name, family) for name, row in ROWS.items() for family in FAMILIES if row[family] == "not read"]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "family"), NOT_READ, ids="-".join)
def test_what_is_not_read_changes_nothing(rigs, name, family):
    """The run ends, and the latent is the same with the node and without it."""
    rig = rigs[family]
    more = {"guidance": 7.0} if name == "FluxGuidance" else {}
    changed = core_nodes.one(name, conditioning=rig.red, **more)
    assert "guidance" in changed[0][1], "the node left no trace"
    assert core_nodes.same(rig.draw(positive=changed), rig.base)


def test_some_rows_are_not_read():
    assert {name for name, _ in NOT_READ} == {"FluxGuidance", "FluxDisableGuidance"}
