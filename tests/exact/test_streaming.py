"""Video autoencoders piece by piece give what diffusers gives at once, in memory that length does not change."""

from __future__ import annotations

import pytest
import tiny
import torch
from sana_nodes.model_loaders.vae import load_vae
from sana_nodes.networks import streaming
from sana_nodes.networks.streaming import Tiles, decode_pieces, encode_pieces

MAKERS = {
    "wan": tiny.wan_vae,
    "ltx2": tiny.ltx2_vae,
    "ltx2, not causal": lambda: tiny.ltx2_vae(decoder_causal=False),
}

ROUNDING = 3e-5
"""Of values up to about 1, by the order in which float32 sums are taken: 1.1e-5 was seen with LTX-2."""


@pytest.fixture(scope="module", params=list(MAKERS))
def pair(request, tmp_path_factory):
    """A random autoencoder of diffusers and ours over its files."""
    folder = tmp_path_factory.mktemp("vae")
    MAKERS[request.param]().save_pretrained(folder)
    theirs = type(load_vae(folder).module).from_pretrained(folder)
    return theirs.eval(), load_vae(folder)


def sizes(spec, cells: int, latent_frames: int):
    return cells * spec.spatial_ratio, (latent_frames - 1) * spec.temporal_ratio + 1


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@torch.no_grad()
def test_decoding(pair, frames):
    theirs, ours = pair
    latents = torch.randn(2, ours.spec.latent_channels, frames, 2, 2, generator=torch.Generator().manual_seed(frames))
    pieces = list(decode_pieces(ours.module, ours.spec, latents, "cpu", torch.float32))
    whole = theirs.decode(latents, return_dict=False)[0]
    assert whole.shape[2] == sizes(ours.spec, 1, frames)[1]
    assert (torch.cat(pieces, dim=2) - whole).abs().max() < ROUNDING
    if getattr(theirs.decoder, "is_causal", True):
        assert len(pieces) == (frames + 1) // streaming.PIECE, "each piece gives its frames at once"


@pytest.mark.parametrize("frames,extra", [(1, 0), (2, 0), (3, 2), (6, 3)])
@torch.no_grad()
def test_encoding(pair, frames, extra):
    theirs, ours = pair
    side, count = sizes(ours.spec, 1, frames)
    pixels = torch.rand(1, count + extra, side, side, 3, generator=torch.Generator().manual_seed(frames))
    mine = encode_pieces(ours.module, ours.spec, pixels, "cpu", torch.float32)
    whole = theirs.encode(pixels[:, :count].movedim(-1, 1) * 2 - 1).latent_dist.mode()
    assert mine.shape == whole.shape and mine.shape[2] == frames
    assert (mine - whole).abs().max() < ROUNDING


@torch.no_grad()
def test_one_run_does_not_disturb_another(pair):
    _, ours = pair
    latents = torch.randn(2, 1, ours.spec.latent_channels, 5, 2, 2)
    alone = [torch.cat(list(decode_pieces(ours.module, ours.spec, x, "cpu", torch.float32)), dim=2) for x in latents]
    both = [decode_pieces(ours.module, ours.spec, x, "cpu", torch.float32) for x in latents]
    mixed = list(zip(*both))
    for i in range(2):
        assert (torch.cat([pair[i] for pair in mixed], dim=2) - alone[i]).abs().max() < 1e-5


@torch.no_grad()
def test_tiles_that_cover_everything_change_nothing(pair):
    _, ours = pair
    latents = torch.randn(1, ours.spec.latent_channels, 3, 2, 3)
    arguments = (ours.module, ours.spec, latents, "cpu", torch.float32)
    whole = torch.cat(list(decode_pieces(*arguments)), dim=2)
    tiled = torch.cat(list(decode_pieces(*arguments, Tiles(8, 2))), dim=2)
    assert (whole - tiled).abs().max() < 1e-5


@torch.no_grad()
def test_tiles_are_put_in_their_places(pair):
    """Windows know less than the whole near their edges; misplaced ones would resemble it nowhere."""
    _, ours = pair
    latents = torch.randn(1, ours.spec.latent_channels, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 5, 6 * ours.spec.spatial_ratio, 5 * ours.spec.spatial_ratio, 3)
    for run, given in ((lambda *a: torch.cat(list(decode_pieces(*a)), dim=2), latents), (encode_pieces, pixels)):
        whole, tiled = (run(ours.module, ours.spec, given, "cpu", torch.float32, t) for t in (None, Tiles(4, 2)))
        assert whole.shape == tiled.shape
        assert torch.corrcoef(torch.stack([whole.flatten(), tiled.flatten()]))[0, 1] > 0.7


def test_tiles_reach_both_ends():
    assert Tiles(8, 2).starts(8) == [0] and Tiles(8, 2).starts(5) == [0]
    assert Tiles(8, 2).starts(20) == [0, 6, 12] and Tiles(8, 2).starts(9) == [0, 1]
