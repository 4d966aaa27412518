"""Fixtures: a models folder with small random models, and each host over it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# every processor then computes in float32 what is stored in bfloat16, in programs that tests start too
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has its own core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for work do not take a core from others

import gemma
import platforms
import small_batch
import tiny
from in_process import start_comfyui

TESTS = Path(__file__).parent
NO_COMFYUI = "COMFYUI_PATH names no ComfyUI checkout; set it to run the tests marked comfyui"


MARKERS = ("comfyui", "slow", "exact")
"""Folders of tests that give what is below them a marker of the same name."""


def pytest_collection_modifyitems(items):
    for item in items:
        for name in MARKERS:
            if name in item.path.relative_to(TESTS).parts:
                item.add_marker(name)
        if tiny.COMFYUI is None and item.get_closest_marker("comfyui"):
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A base directory as ComfyUI has it: models, input, output, custom_nodes, user, temp."""
    base = tmp_path_factory.mktemp("home")
    for name in ("models", "input", "output", "custom_nodes", "user", "temp"):
        (base / name).mkdir()
    for kind in ("diffusers", "diffusion_models", "vae", "text_encoders", "loras", "controlnet"):
        (base / "models" / kind).mkdir()
    (base / "custom_nodes" / "sana-nodes").symlink_to(tiny.REPOSITORY, target_is_directory=True)
    return base


@pytest.fixture(scope="session")
def reference(home):
    """The diffusers pipeline over a random SANA-Sprint that lies in models/ in every place we load from."""
    models = home / "models"
    folder = models / "diffusers" / "tiny"
    pipeline = tiny.sprint_pipeline(folder)
    for kind, part in (("diffusion_models", "transformer"), ("vae", "vae"), ("text_encoders", "text_encoder")):
        (models / kind / "tiny").symlink_to(folder / part, target_is_directory=True)
    (models / "text_encoders" / "tokenizer").symlink_to(folder / "tokenizer", target_is_directory=True)
    demo = models / "diffusers" / "sana-sprint-demo"
    demo.symlink_to(tiny.DEMO, target_is_directory=True)
    return pipeline


@pytest.fixture(scope="session")
def sana_reference(home, reference):
    """The diffusers pipeline over a random SANA that is not Sprint; a ControlNet of its size lies beside it."""
    models = home / "models"
    pipeline = tiny.image_pipeline(models / "diffusers" / "tiny-sana")
    (models / "diffusion_models" / "tiny-sana").symlink_to(models / "diffusers" / "tiny-sana" / "transformer")
    tiny.controlnet().save_pretrained(models / "controlnet" / "tiny-control")
    return pipeline


@pytest.fixture(scope="session")
def video_references(home, reference) -> dict:
    """diffusers' pipelines over random SANA-Video models that lie in models/diffusers: by the name of the folder."""
    folder = home / "models" / "diffusers"
    return {
        "tiny-video": tiny.video_pipeline(folder / "tiny-video", tiny.wan_vae(), tiny.video_transformer()),
        "tiny-video-ltx2": tiny.video_pipeline(
            folder / "tiny-video-ltx2", tiny.ltx2_vae(), tiny.ltx2_video_transformer()
        ),
    }


@pytest.fixture(scope="session")
def long_folder(home, reference) -> Path:
    """A random LongSANA in models/diffusers."""
    folder = home / "models" / "diffusers" / "tiny-long"
    tiny.long_pipeline(folder)
    return folder


@pytest.fixture(params=["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def host(request, home, reference):
    """Each host in turn, over the same models."""
    from sana_nodes import host as hosts

    if request.param == "comfyui":
        start_comfyui(home)
        yield hosts.use("comfyui")
    else:
        chosen = hosts.use("embedded")
        chosen.folders.models = [home / "models"]
        chosen.folders.input, chosen.folders.output = home / "input", home / "output"
        yield chosen
    hosts._current = None


LINKS = pytest.StashKey[str]()
"""What to print where links are refused."""


class RootIsNoTestPackage:
    """pytest imports a package's __init__.py by its folder's name; ours is the pack, and sana-nodes is not a name."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == tiny.REPOSITORY else None


def pytest_configure(config):
    config.pluginmanager.register(RootIsNoTestPackage())
    config.stash[LINKS] = platforms.copy_where_links_are_refused()


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[LINKS]:
        terminalreporter.write_line(config.stash[LINKS])


@pytest.fixture(scope="session")
def spiece() -> bytes:
    """Gemma's kind of SentencePiece model, small and trained here."""
    return gemma.spiece()


@pytest.fixture(scope="session")
def theirs(spiece, tmp_path_factory):
    """transformers' tokenizer of the same pieces; the folder with its tokenizer.json is its ``folder``."""
    folder = tmp_path_factory.mktemp("converted")
    tokenizer = gemma.converted(spiece, folder)
    tokenizer.folder = folder
    return tokenizer


@pytest.fixture
def no_host():
    """No host is in use when the test ends."""
    from sana_nodes import host as hosts

    yield
    hosts._current = None


@pytest.fixture
def place(tmp_path):
    """A workflow of core nodes, with folders for a batch of it."""
    return small_batch.Place(tmp_path)


@pytest.fixture(scope="session")
def s3_server():
    """moto's server for S3: the variables that lead s3fs to it."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server,s3]' s3fs")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install sana-nodes[s3]")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    yield {**address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server.stop()
