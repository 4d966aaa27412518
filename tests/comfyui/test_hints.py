"""The images that lead a ControlNet: as many as there are, of any size, on both hosts as in ComfyUI's own nodes."""

from __future__ import annotations

import controlling
import drawing
import in_process
import pytest
import torch
from controlling import PROMPT


@pytest.fixture
def both(home, sana_reference):
    """Each host, set up when it is asked for."""
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)

    def use(name: str):
        chosen = hosts.use(name)
        if name == "embedded":
            chosen.folders.models = [home / "models"]
        return chosen

    yield use
    hosts._current = None


def led_by(host, images: torch.Tensor, batch: int, width=64, height=64, cfg=4.5) -> torch.Tensor:
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    led = controlling.controlled(host, images, parts[2])
    return drawing.flow(parts, PROMPT, "a green square", width, height, batch, steps=2, cfg=cfg, led=led)


def hints(count: int, width: int = 64, height: int = 64) -> torch.Tensor:
    return torch.cat([controlling.image(width, height, seed=seed) for seed in range(count)])


@pytest.mark.parametrize("cfg", [1.0, 4.5])
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_or_more_hints_than_images_on_both_hosts(both, count, batch, cfg):
    """With guidance two prompts run at once in ComfyUI, each with all the images."""
    mine = [led_by(both(name), hints(count), batch, cfg=cfg) for name in ("embedded", "comfyui")]
    assert drawing.difference(*mine) < 1e-4
    in_turn = torch.cat([hints(count)[number % count][None] for number in range(batch)])
    assert drawing.difference(mine[1], led_by(both("comfyui"), in_turn, batch, cfg=cfg)) < 1e-4
    if count > 1:
        first_alone = led_by(both("comfyui"), hints(1), batch, cfg=cfg)
        apart = (mine[1] - first_alone).abs().amax((1, 2, 3))
        assert [bool(one > 1e-3) for one in apart] == [number % count > 0 for number in range(batch)]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompts", [1, 2])
def test_the_network_is_given_what_comfyui_would_give_it(both, count, batch, prompts):
    import comfy.controlnet

    net, vae = applied(both("comfyui"), hints(count))
    x = torch.randn(batch * prompts, 32, 2, 2)
    given = net._hint(x, prompts)
    expected = comfy.controlnet.broadcast_image_to(vae.encode(hints(count)), len(x), prompts)
    assert drawing.difference(given.expand(len(x), -1, -1, -1), expected.expand(len(x), -1, -1, -1)) < 1e-5


def applied(host, images):
    """A ControlNet with its images, as ControlNetApplyAdvanced leaves it, and the VAE."""
    vae = drawing.call("SanaLoadVAE", vae_name="tiny", weight_dtype="fp32")[0]
    positive = [[torch.zeros(1, 3, 48), {}]]
    return controlling.controlled(host, images, vae)(positive, positive)[0][0][1]["control"], vae


def test_images_are_encoded_once_in_a_run(both, monkeypatch):
    net, vae = applied(both("comfyui"), hints(2))
    calls, true = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: (calls.append(len(pixels)), true(pixels))[1])
    for prompts, sides in ((1, (2, 2)), (2, (2, 2)), (1, (2, 2)), (1, (4, 2)), (1, (4, 2))):
        net._hint(torch.randn(3 * prompts, 32, *sides), prompts)
    assert calls == [2, 2], "once for each size"
    net._hint(torch.randn(1, 32, 4, 2), 1)
    assert calls == [2, 2, 1], "and for another batch"


@pytest.mark.parametrize("width,height", [(101, 64), (64, 101), (65, 33), (259, 220), (31, 500)])
def test_odd_sizes_on_both_hosts(both, width, height):
    mine = [led_by(both(name), hints(1, width, height), 1, 96, 64) for name in ("embedded", "comfyui")]
    assert drawing.difference(*mine) < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (32, 128)], ids=str)
def test_images_are_cropped_as_comfyui_crops_to_the_centre(both, size):
    """Against ComfyUI's own Lanczos, which cuts its 8 bits off where ours rounds them."""
    both("comfyui")
    import comfy.utils
    from sana_nodes.media.pictures import cover

    for width, height in ((101, 64), (64, 101), (65, 33), (259, 220), (220, 259), (259, 238), (31, 500), (241, 259)):
        image = steep(width, height)
        theirs = comfy.utils.common_upscale(image.movedim(-1, 0)[None], *size, "lanczos", "center")
        assert (cover(image, *size) - theirs[0].movedim(0, -1)).abs().max() <= 2 / 255 + 1e-6, (width, height)


def steep(width: int, height: int) -> torch.Tensor:
    """An image whose neighbouring pixels differ, so that one row or column too many shows."""
    rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
    return torch.stack([rows * 7 % 256, columns * 7 % 256, (rows + columns) * 5 % 256], dim=-1) / 255.0


def test_a_single_row_is_still_an_image(both):
    from sana_nodes.media.pictures import cover

    for rows, columns, width, height in ((2, 1, 64, 32), (1, 4, 32, 64)):
        covered = cover(torch.full((rows, columns, 3), 0.6), width, height)
        assert covered.shape == (height, width, 3) and (covered - 0.6).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_time_is_not_rounded(both, dtype):
    """ComfyUI rounds it to the dtype that is computed in; bfloat16 has no 889."""
    net, _ = applied(both("comfyui"), hints(1))
    net.manual_cast_dtype = dtype
    seen = []
    net.control_model.forward = lambda **given: seen.append(given) or {"input": []}
    from sana_nodes.samplers.flow_match import FlowMatch
    from sana_nodes.samplers.trigflow import TrigFlow, flow_time

    for sampling, sigma, time in (
        (FlowMatch(), 0.889, torch.tensor(889.0)),
        (TrigFlow(), 1.3, flow_time(torch.tensor(1.3))),
    ):
        net.model_sampling_current, net.timestep_range = sampling, (10.0, 0.0)
        net.get_control(torch.randn(1, 32, 2, 2), torch.tensor([sigma]), {"c_crossattn": torch.zeros(1, 3, 48)}, 1, {})
        assert seen[-1]["timesteps"].dtype == torch.float32 and abs(seen[-1]["timesteps"] - time).max() < 1e-2
        assert seen[-1]["x"].dtype == seen[-1]["hint"].dtype == seen[-1]["context"].dtype == dtype
