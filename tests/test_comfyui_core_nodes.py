"""ComfyUI's own nodes on our MODEL, CLIP, VAE and latents: each row of docs/core-nodes.md is true."""

from __future__ import annotations

import re

import conftest
import core_checks_model  # noqa: F401  registers its checks
import core_nodes
import drawing
import pytest
import tiny
import torch
from core_checks import CHECKS

TABLE = tiny.REPOSITORY / "docs" / "core-nodes.md"
FAMILIES = ("sprint", "image", "video")


def rows() -> dict[str, dict]:
    """The table's rows by node: what each family does, and the first ComfyUI that has the node."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if not line.startswith("| `") or len(cells) != 5:
            continue
        since = re.search(r"\(since ([\d.]+)\)", cells[0])
        for name in names:
            assert name not in found, f"{name} has two rows"
            states = dict(zip(FAMILIES, cells[1:4], strict=True))
            found[name] = {**states, "since": since.group(1) if since else None, "said": cells[4]}
    return found


ROWS = rows()


def test_every_row_has_a_check_and_every_check_a_row():
    assert set(ROWS) == set(CHECKS)


def test_every_row_says_what_happens():
    for name, row in ROWS.items():
        for family in FAMILIES:
            known = ("works", "refused", "not read", "pictures only", "video only")
            assert row[family] in known or re.fullmatch(r"works since [\d.]+", row[family]), f"{name}: {row}"
        assert row["said"], f"{name} says nothing"


@pytest.fixture(scope="module")
def rigs(home, reference, video_references):
    from sana_nodes import host as hosts

    conftest.start_comfyui(home)
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


@pytest.mark.comfyui
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
    elif state[0] == "refused":
        with pytest.raises(ValueError, match="SANA"):
            CHECKS[name](rigs[family])
    else:
        with pytest.raises((AssertionError, RuntimeError, IndexError, TypeError)):
            CHECKS[name](rigs[family])
