"""Memory on a pretended card without ComfyUI: what stays there, what leaves it, and passes that do not fit."""

from __future__ import annotations

import contextlib
import logging

import card_cases
import drawing
import pytest
import torch
from sana_nodes import host as hosts
from sana_nodes.host.embedded import devices
from sana_nodes.networks import autoencoder, live_decoding
from sana_nodes.networks.memory import is_out_of_memory

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def here(home, reference, video_references):
    chosen = hosts.use("embedded")
    chosen.folders.models = [home / "models"]
    chosen.folders.input, chosen.folders.output = home / "input", home / "output"
    yield chosen
    hosts._current = None


def a_vae(name: str):
    return drawing.call("SanaLoadPipeline", pipeline=card_cases.VAES[name])[2]


@pytest.mark.parametrize("how", ["to its end", "interrupted", "with an error"])
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_a_video_autoencoder_keeps_nothing_on_the_card(here, monkeypatch, half, how):
    """Its convolutions' caches are 3.6 GB at 832 x 480 in float32."""
    with card_cases.a_card() as machine:
        vae = a_vae("Wan")
        given = card_cases.pixels("Wan") if half == "encode" else torch.randn(card_cases.LATENTS["Wan"])
        if how == "interrupted":
            monkeypatch.setattr("sana_nodes.host.embedded.vae._Run.report", stop_in_the_middle)
        elif how == "with an error":
            monkeypatch.setattr(type(vae.autoencoder.module.decoder.conv_out), "forward", stop_in_the_middle)
        expected = contextlib.nullcontext() if how == "to its end" else pytest.raises(KeyError, match="stop")
        with expected:
            getattr(vae, half)(given)
        del expected
        assert machine.used[0] == devices.weight_bytes(vae.autoencoder.module)
        devices.put_all_away()
        assert machine.used == [0] and machine.peak[0] > 0


def stop_in_the_middle(*_):
    raise KeyError("stop")


def test_models_that_fit_stay_on_the_card(here):
    with card_cases.a_card() as machine:
        parts = drawing.call("SanaLoadPipeline", pipeline="tiny")
        expected = drawing.ours(parts, card_cases.PROMPT)
        modules = parts[1].module, parts[0].module, parts[2].autoencoder.module
        assert [one.module for one in devices._resident] == list(modules)
        machine.begin()
        assert drawing.difference(drawing.ours(parts, card_cases.PROMPT, seed=1), expected) > 0.01
        assert machine.count.moved["to the card"] < 100 * KIB, "no weight moves again"


def test_models_that_do_not_fit_together_take_turns(here):
    """Each is the file's own tensors before and after: nothing is copied back from the card."""
    with card_cases.a_card() as machine:
        parts = drawing.call("SanaLoadPipeline", pipeline="tiny")
        expected = drawing.ours(parts, card_cases.PROMPT)
    modules = parts[1].module, parts[0].module, parts[2].autoencoder.module
    before = [[p.data_ptr() for p in module.parameters()] for module in modules]
    largest = max(map(devices.weight_bytes, modules))
    with card_cases.a_card(memory=largest + MIB) as machine:
        parts = drawing.call("SanaLoadPipeline", pipeline="tiny")
        modules = parts[1].module, parts[0].module, parts[2].autoencoder.module
        before = [[p.data_ptr() for p in module.parameters()] for module in modules]
        assert drawing.difference(drawing.ours(parts, card_cases.PROMPT), expected) < 1e-5
        assert len(devices._resident) < 3
        assert machine.count.moved["to the CPU"] < 200 * KIB, "results alone"
        devices.put_all_away()
        assert [[p.data_ptr() for p in module.parameters()] for module in modules] == before
        assert all(p.device.type == "cpu" for module in modules for p in module.parameters())


def test_gemmas_table_stays_in_main_memory(here):
    with card_cases.a_card() as machine:
        clip = drawing.call("SanaLoadPipeline", pipeline="tiny")[1]
        drawing.call("SanaEncodePrompt", clip=clip, text=card_cases.PROMPT)
        assert clip.module.embed_tokens.weight.device.type == "cpu" and clip.module.norm.weight.is_cuda
        assert machine.count.moved["to the card"] < devices.weight_bytes(clip.module) + 200 * KIB


def sizes_tried(monkeypatch) -> list:
    """The sizes of tiles of the passes that are begun from now on."""
    tried, true = [], autoencoder.Attempt.__init__
    note = lambda self, tile, *rest: tried.append(tile) or true(self, tile, *rest)  # noqa: E731
    monkeypatch.setattr(autoencoder.Attempt, "__init__", note)
    return tried


@pytest.mark.parametrize("name", ["DC-AE", "Wan"])
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_tiles_shrink_until_they_fit(here, monkeypatch, caplog, name, half):
    """The estimate is far too small here, so that each pass has to find out."""
    given = large(name, half)
    on_the_cpu = a_vae(name)
    expected = getattr(on_the_cpu, half)(given)
    tried = sizes_tried(monkeypatch)
    for constant, pixels in {"IMAGE_TILE": 128, "VIDEO_TILE": 64, "LEAST_TILE": 32}.items():
        monkeypatch.setattr(autoencoder, constant, pixels)
    with card_cases.a_card() as machine, caplog.at_level(logging.WARNING):
        vae = a_vae(name)
        forget_estimates(monkeypatch, vae)
        getattr(vae, half)(given)
        whole = machine.peak[0]
    with card_cases.a_card(memory=whole // 2) as machine:
        result = getattr(vae, half)(given)
        assert machine.used[0] == devices.weight_bytes(vae.autoencoder.module)
    assert tried[0] is None and tried[1] is None and len(tried) > 2 and tried[2:] == sorted(tried[2:], reverse=True)
    assert f"in tiles of {tried[2]} pixels or less" in caplog.text
    if name == "Wan":  # tiles of videos are blended: those of DC-AE are exact
        with on_the_cpu._run(half) as run:
            expected = getattr(on_the_cpu.autoencoder, half)(given, run, tried[-1])
    assert drawing.difference(result, expected) < 1e-4


def in_blocks(vae, latents: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """The frames of latents that come in blocks, as they are decoded."""
    return list(vae.stream(iter(latents.split(lengths, 2)), latents.shape[2]))


def decoders_made(monkeypatch) -> list[int | None]:
    """The sizes of tiles, in latent cells, of the decoders of blocks from now on."""
    made, true = [], live_decoding.decoder

    def noted(module, spec, device, tiles=None, has_room=None):
        made.append(tiles and tiles.size)
        return true(module, spec, device, tiles, has_room)

    monkeypatch.setattr(live_decoding, "decoder", noted)
    return made


@pytest.mark.parametrize("estimates", [False, True], ids=["found out", "estimated"])
def test_tiles_of_a_video_in_blocks_shrink_until_they_fit(here, monkeypatch, caplog, estimates):
    """With the true estimate what cannot fit is not begun."""
    latents, on_the_cpu = torch.randn(1, 16, 5, 8, 16, generator=torch.Generator().manual_seed(0)), a_vae("Wan")
    made = decoders_made(monkeypatch)
    for constant, pixels in {"VIDEO_TILE": 64, "LEAST_TILE": 32}.items():
        monkeypatch.setattr(autoencoder, constant, pixels)
    with card_cases.a_card() as machine:
        vae = a_vae("Wan")
        if not estimates:
            forget_estimates(monkeypatch, vae)
        frames, whole = in_blocks(vae, latents, [3, 2]), machine.peak[0]
        with vae._run("decoding") as run:
            needed = vae.autoencoder._frames_bytes(latents[:, :, :3], run)(None)
    assert drawing.difference(torch.cat(frames), on_the_cpu.decode(latents)[0]) < 1e-4 and made == [None]
    with card_cases.a_card(memory=needed if estimates else whole // 2) as machine, caplog.at_level(logging.WARNING):
        frames = in_blocks(vae, latents, [3, 2])
        assert machine.used[0] == devices.weight_bytes(vae.autoencoder.module)
    tried = made[1:]
    assert tried[-1] is not None and tried == (tried[-1:] if estimates else [None, 8, 4][: len(tried)])
    assert (f"in tiles of {8 * tried[-1]} pixels or less" in caplog.text) != estimates
    with on_the_cpu._run("decoding") as run:
        expected = on_the_cpu.autoencoder.decode(latents, run, 8 * tried[-1])
    assert drawing.difference(torch.cat(frames), expected[0]) < 1e-4


def test_a_video_in_blocks_goes_on_in_smaller_tiles_without_a_seam(here, monkeypatch):
    """Memory runs out in the middle of the second block and in the third; nothing is decoded or given twice."""
    latents, vae = torch.randn(1, 16, 9, 4, 8, generator=torch.Generator().manual_seed(0)), a_vae("Wan")
    for constant, pixels in {"VIDEO_TILE": 32, "LEAST_TILE": 16}.items():
        monkeypatch.setattr(autoencoder, constant, pixels)
    made, true, ends_at = decoders_made(monkeypatch), live_decoding.push_pieces, {None: (4, 1), 4: (2, 0)}

    def fails(coder, given, *rest):
        for number, piece in enumerate(true(coder, given, *rest)):
            if ends_at.get(made[-1]) == (given.shape[2], number):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield piece

    monkeypatch.setattr(live_decoding, "push_pieces", fails)
    frames = torch.cat(in_blocks(vae, latents, [3, 4, 2]))
    assert made == [None, 4, 2]
    with vae._run("decoding") as run:
        whole, larger, smaller = (vae.autoencoder.decode(latents, run, tile)[0] for tile in (None, 32, 16))
    expected = torch.cat([whole[:17], larger[17:25], smaller[25:]])
    assert drawing.difference(frames, expected) < 1e-5
    ends_at[2] = (2, 0)
    with pytest.raises(torch.OutOfMemoryError):
        in_blocks(vae, latents, [3, 4, 2])


def forget_estimates(monkeypatch, vae) -> None:
    kind = type(vae.autoencoder.memory)
    for method in ("encode", "decode", "encode_in_tiles", "decode_in_tiles"):
        monkeypatch.setattr(kind, method, lambda *_: 0, raising=False)


def large(name: str, half: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = {"DC-AE": (1, 32, 8, 8), "Wan": (1, 16, 2, 8, 16)}[name]
    if half == "decode":
        return torch.randn(latents, generator=generator)
    cell, frames = (32, 1) if name == "DC-AE" else (8, 5)
    return torch.rand(frames, latents[-2] * cell, latents[-1] * cell, 3, generator=generator)


def test_what_cannot_fit_is_not_tried(here, monkeypatch):
    tried = sizes_tried(monkeypatch)
    with card_cases.a_card(memory=24 * MIB):
        a_vae("DC-AE").decode(torch.randn(1, 32, 16, 16))
    assert len(tried) == 1 and tried[0] in (256, 512), "the whole image would take 42 MB"


def test_frames_that_were_decoded_before_it_ran_out_are_not_decoded_twice(here, monkeypatch):
    latent = torch.randn(1, 16, 5, 8, 8)
    vae = a_vae("Wan")
    expected = vae.decode(latent)
    true, count = type(vae.autoencoder)._decoded_pieces, []

    def fails(self, raw, run, tiles):
        for number, piece in enumerate(true(self, raw, run, tiles)):
            if tiles is None and number == 1:
                raise RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")
            count.append(tiles)
            yield piece

    monkeypatch.setattr(type(vae.autoencoder), "_decoded_pieces", fails)
    assert vae.decode(latent).shape == expected.shape and None in count and count[-1] is not None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (torch.OutOfMemoryError("HIP out of memory. Tried to allocate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.08 GB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt("out of memory"), False),
    ],
)  # fmt: skip
def test_what_says_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


def test_caches_of_tiles_stay_on_a_card_that_has_room(here):
    """Else they go over the bus twice for each piece and tile."""
    moved = {}
    for room in (80 << 30, 7 * MIB):
        with card_cases.a_card(memory=room) as machine:
            vae = a_vae("Wan")
            with vae._run("decode") as run:
                frames = vae.autoencoder.decode(filming_latent(), run, 32)
            moved[room] = machine.count.moved["to the CPU"] / frames.nbytes
    assert moved[80 << 30] < 2.5 < moved[7 * MIB], moved


def filming_latent() -> torch.Tensor:
    return torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
