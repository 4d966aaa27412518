"""The nodes of long videos on both hosts: against the dense oracle, going on, saving while sampling, and bad input."""

from __future__ import annotations

import logging
from pathlib import Path

import drawing
import filming
import long_films as films
import pytest
import torch
from long_oracle import Oracle
from reading import decoded
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.model_loaders import long_state
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.networks.latent_spaces import WAN, normalise
from sana_nodes.samplers import block_causal


@pytest.fixture
def parts(host, long_folder):
    return films.load()


def oracle(folder, contexts, frames, seed=5) -> torch.Tensor:
    """The latents of a story of one prompt for each block of two, by dense passes in float64 over all so far."""
    from diffusers import SanaVideoTransformer3DModel

    network = SanaVideoTransformer3DModel.from_pretrained(folder / "transformer")
    noise, clean = torch.Generator().manual_seed(seed), torch.zeros(1, 16, 0, 4, 4, dtype=torch.float64)
    lengths = block_causal.block_lengths(frames, 2)
    contexts = [context.double() for context in contexts]
    sigmas = block_causal.parse_times("1000, 960, 889, 727")
    for number, length in enumerate(lengths):
        x = torch.randn(1, 16, length, 4, 4, generator=noise).double()
        seen = [contexts[min(block + 1, number)] for block in range(number + 1)]
        for sigma, following in zip(sigmas.double(), sigmas.double()[1:]):
            times = [0.0] * number + [float(sigma * 1000)]
            x = x - sigma * Oracle(network, lengths)(torch.cat([clean, x], 2), seen, times)[:, :, -length:]
            if following > 0:
                x = (1 - following) * x + following * torch.randn(x.shape, generator=noise)
        clean = torch.cat([clean, x], 2)
    return clean


def test_a_story_is_the_dense_oracles(parts, long_folder):
    positive = films.story(parts, "a red ring", "a blue square falls", "a green disc")
    latent, state = films.sampled(parts, positive)
    expected = oracle(long_folder, [states for states, _ in positive], 7)
    assert films.apart(normalise(WAN, latent["samples"].double()), expected) < 1e-4
    assert (state.frames, state.start, state.blocks) == (7, 5, 2)


def test_a_longer_video_begins_with_the_shorter_ones_frames(parts):
    positive = films.prompt(parts)
    short, long = (films.sampled(parts, positive, frames)[0]["samples"] for frames in (17, 33))
    assert films.apart(long[:, :, :5], short) < 1e-6
    assert films.apart(films.sampled(parts, positive, 17, seed=6)[0]["samples"], short) > 0.01


def test_going_on_is_an_unbroken_run(parts, host, tmp_path):
    """Through a file too, with another prompt, and a state may be gone on from twice."""
    unbroken = films.story(parts, "a ring", "a square", starts=(0, 17 / 16))
    whole, _ = films.sampled(parts, unbroken, 33)
    ring, square = (films.prompt(parts, text) for text in ("a ring", "a square"))
    first, state = films.sampled(parts, ring, 17)
    saved, path = drawing.call("SanaSaveVideoState", state=state, filename_prefix="states/going on")["result"]
    assert saved is state and path.endswith(".state.safetensors")
    (name,) = (
        n
        for n in NODE_CLASS_MAPPINGS["SanaLoadVideoState"].INPUT_TYPES()["required"]["state_name"][0]
        if n.startswith("states/going on")
    )
    assert name.endswith(" [output]") and NODE_CLASS_MAPPINGS["SanaLoadVideoState"].VALIDATE_INPUTS(name) is True
    (loaded,) = drawing.call("SanaLoadVideoState", state_name=name)
    for taken in (state, loaded, loaded):
        then, last = films.sampled(parts, square, 19, state=taken)
        assert films.apart(torch.cat([first["samples"], then["samples"]], 2), whole["samples"]) < 1e-5
    assert (state.frames, loaded.frames, last.frames) == (5, 5, 9)
    other, _ = films.sampled(parts, square, 19, state=state, seed=77)
    assert films.apart(other["samples"], then["samples"]) > 0.01
    Path(path).unlink()


def test_recaching_and_a_window_count(parts):
    positive = films.story(parts, "a red ring", "a blue square falls", "a green disc")
    usual, _ = films.sampled(parts, positive)
    for change in ({"recache": False}, {"cached_blocks": 1}):
        assert films.apart(films.sampled(parts, positive, **change)[0]["samples"], usual["samples"]) > 1e-3
    assert films.apart(films.sampled(parts, positive, cached_blocks=2)[0]["samples"], usual["samples"]) < 1e-5


def test_saving_while_sampling_gives_the_same_frames(parts, caplog):
    """The file of three blocks is the decoded latent; gone on with, another file has the frames that follow."""
    positive = films.story(parts, "a red ring", "a blue square falls", "a green disc")
    latent, _ = films.sampled(parts, positive)
    path, state = films.saved(parts, positive)["result"]
    expected = drawing.decode(parts[2], latent).flatten(0, -4)
    assert drawing.same_pixels(decoded(path), expected)
    following = films.prompt(parts, "a yellow star")
    then, _ = films.sampled(parts, following, 19, state=state)
    whole = {"samples": torch.cat([latent["samples"], then["samples"]], 2)}
    frames = drawing.decode(parts[2], whole).flatten(0, -4)
    again, last = films.saved(parts, following, frames=16, state=state)["result"]
    assert drawing.same_pixels(decoded(again), frames[25:]) and last.frames == 11


class Stop(Exception):
    pass


def stopping(monkeypatch, host, at: int, error):
    """The ``at``-th step told to a host's sampler raises."""
    from sana_nodes.nodes import long_video

    function, count = block_causal.sample_blocks, []

    def counted(model, x, sigmas, extra_args, callback, *given, **options):
        def told(state):
            count.append(1)
            if len(count) == at:
                raise error
            callback(state)

        return function(model, x, sigmas, extra_args, told, *given, **options)

    from dataclasses import replace

    from sana_nodes import samplers

    row = replace(long_video.BLOCKS, function=counted)
    monkeypatch.setattr(long_video, "BLOCKS", row)
    monkeypatch.setitem(samplers.SAMPLERS, "blocks", row)


@pytest.mark.parametrize("kind", ["interrupt", "error"])
def test_what_is_stopped_leaves_a_file_of_the_blocks_so_far(parts, host, monkeypatch, caplog, kind):
    positive = films.prompt(parts)
    path, _ = films.saved(parts, positive)["result"]
    before, whole = set(Path(path).parent.iterdir()), decoded(path)
    error = host.interrupts[0]() if kind == "interrupt" else Stop("no more memory")
    stopping(monkeypatch, host, 10, error)
    with caplog.at_level(logging.WARNING), pytest.raises(type(error)):
        films.saved(parts, positive)
    (left,) = set(Path(path).parent.iterdir()) - before
    assert left.suffix == ".mkv" and drawing.same_pixels(decoded(left), whole[:17])
    assert f"Stopped after 2 of 3 blocks: {left} has 17 of 25 frames." in caplog.text
    monkeypatch.undo()
    assert drawing.same_pixels(decoded(films.saved(parts, positive)["result"][0]), whole)


def test_stopped_in_the_first_block_leaves_nothing(parts, host, monkeypatch):
    positive = films.prompt(parts)
    path, _ = films.saved(parts, positive)["result"]
    before = set(Path(path).parent.iterdir())
    stopping(monkeypatch, host, 2, Stop("no more memory"))
    with pytest.raises(Stop):
        films.saved(parts, positive)
    assert set(Path(path).parent.iterdir()) == before


def test_prompts_begin_with_the_nearest_block_and_the_log_says_where(parts, caplog):
    with caplog.at_level(logging.INFO):
        films.sampled(parts, films.story(parts, "a", "b", starts=(0, 1.0)))
    assert "prompt 2 begins with block 3 of 3, at frame 17" in caplog.text


SPRINT = "is SANA-Sprint, not LongSANA"


def test_bad_input_is_said_before_any_work(host, parts, video_references, monkeypatch):
    ordinary = drawing.call("SanaLoadPipeline", pipeline="tiny-video")
    monkeypatch.setattr(type(drawing.network_of(parts[0])), "forward", None)
    positive = films.prompt(parts)
    for run in (films.sampled, films.saved):
        with pytest.raises(
            ValueError, match="is SANA-Video, not LongSANA.*sample it with Sana Flow Sample.*variant to long"
        ):
            run(ordinary, positive)
        with pytest.raises(ValueError, match="timesteps is '1, 2'; give falling numbers"):
            run(parts, positive, timesteps="1, 2")
        with pytest.raises(ValueError, match="state is a dict; give the state of Sana Long Video Sample"):
            run(parts, positive, state={})
        with pytest.raises(ValueError, match="prompt 3 begins with block 2 of 3, and prompt 2 with block 2"):
            run(parts, films.story(parts, "a", "b", "c", starts=(0, 0.5, 0.6)))
        with pytest.raises(ValueError, match="prompt 2 begins after the end of the video"):
            run(parts, films.story(parts, "a", "b", starts=(0, 100.0)))
    with pytest.raises(ValueError, match="the latent has 3 frames, fewer than one block of 10"):
        films.sampled(parts, positive, 9, block_frames=10)
    with pytest.raises(
        ValueError, match="frames is 9, less than one block: give 37 or more, or a smaller block_frames"
    ):
        films.saved(parts, positive, 9, block_frames=10)
    with pytest.raises(ValueError, match="width is 40; give a multiple of 16"):
        films.saved(parts, positive, width=40)
    with pytest.raises(ValueError, match="the VAE is the LTX-2 video VAE, but this MODEL's latents are of the Wan 2.1"):
        films.saved((*parts[:2], drawing.call("SanaLoadPipeline", pipeline="tiny-video-ltx2")[2]), positive)
    with pytest.raises(ValueError, match="is LongSANA, which is sampled block by block: use Sana Long Video Sample"):
        filming.sampled(parts, filming.latent(parts[2]))
    held = filming.latent(parts[2], torch.rand(1, 64, 64, 3), frames=9)
    asked = {"model": parts[0], "positive": positive, "latent_image": held, "block_frames": 2}
    with pytest.raises(ValueError, match="LongSANA does not go with a noise mask"):
        drawing.call("SanaLongVideoSample", **asked)


def test_a_state_of_another_size_model_or_window_is_refused(parts):
    positive = films.prompt(parts)
    _, state = films.sampled(parts, positive, 17)
    wide = drawing.call("SanaEmptyVideoLatent", vae=parts[2], frames=17, width=64, height=32)[0]
    asked = {"model": parts[0], "positive": positive, "latent_image": wide, "state": state, **films.BLOCKS}
    with pytest.raises(
        ValueError, match="the state is of 1 video.s. of 4 x 4 latent cells .* and the latent of 1 of 8 x 4"
    ):
        drawing.call("SanaLongVideoSample", **asked)
    with pytest.raises(ValueError, match="the state was made with cached_blocks 0, not 3: set cached_blocks to 0"):
        films.sampled(parts, positive, 19, state=state, cached_blocks=3)
    state.model = "another"
    with pytest.raises(ValueError, match="the state is of another model"):
        films.sampled(parts, positive, 19, state=state)


def test_prompts_in_order(parts):
    one = films.prompt(parts)
    with pytest.raises(ValueError, match="the first prompt starts at 3 s; give it 0"):
        drawing.call("SanaPromptSchedule", conditioning=one, start=3.0)
    first = drawing.call("SanaPromptSchedule", conditioning=one)[0]
    second = drawing.call("SanaPromptSchedule", conditioning=one, start=5.0, previous=first)[0]
    with pytest.raises(ValueError, match="starts at 4 s and the one before it at 5 s"):
        drawing.call("SanaPromptSchedule", conditioning=one, start=4.0, previous=second)
    with pytest.raises(ValueError, match="conditioning holds 2 prompts"):
        drawing.call("SanaPromptSchedule", conditioning=second)
    assert len(first) == 1 and "sana_start" not in one[0][1]


def test_what_is_no_state_file_is_refused(tmp_path, host):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.state.safetensors")
    with pytest.raises(UnusableFile, match="is not the state of a long video"):
        long_state.read_state(tmp_path / "a.state.safetensors")
    (tmp_path / "b.state.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnusableFile, match="cannot be read"):
        long_state.read_state(tmp_path / "b.state.safetensors")
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "c.state.safetensors", {"sana_state": '{"version": 1, "cached_blocks": "x"}'}
    )
    with pytest.raises(UnusableFile, match="has no cached_blocks"):
        long_state.read_state(tmp_path / "c.state.safetensors")
    check = NODE_CLASS_MAPPINGS["SanaLoadVideoState"].VALIDATE_INPUTS
    assert "there is no saved state called '../x'" in check("../x") and check() is True


def test_the_samplers_settings(host):
    (sigmas,) = drawing.call("SanaLongVideoSigmas")
    assert torch.allclose(sigmas, torch.tensor([1.0, 0.96, 0.889, 0.727, 0.0]))
    check = NODE_CLASS_MAPPINGS["SanaLongVideoSigmas"].VALIDATE_INPUTS
    assert check(timesteps="1000, 500") is True and check() is True
    for text in ("", "500, 1000", "1000, 1000", "2000", "a", "nan", "0"):
        assert "give falling numbers" in check(timesteps=text)
