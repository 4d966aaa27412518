"""The embedded executor: values, links, order and files, against what ComfyUI 0.33 was seen to make of them.

tests/comfyui/test_same_graphs.py runs the same kinds of graph on a real ComfyUI.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import image_files
import same_graphs
from same_graphs import KEPT, Keep, node
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.embedded import graph as executor
from sana_nodes.host.embedded.folders import Folders
from sana_nodes.host.embedded.images import read_images

CLASSES = {**NODE_CLASS_MAPPINGS, "TestKeep": Keep}


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders([tmp_path / "models"], tmp_path / "input", tmp_path / "output", tmp_path / "temp")


@pytest.fixture
def run(folders):
    """Runs a graph; returns what Keep nodes were given and the Outcome."""

    def call(graph: dict, **options):
        KEPT.clear()
        outcome = executor.run(graph, CLASSES, folders, **options)
        return list(KEPT), outcome

    return call


@pytest.fixture
def problems(folders):
    """The lines of a graph's refusal."""

    def call(graph: dict) -> list[str]:
        with pytest.raises(executor.BadWorkflow) as caught:
            executor.check(graph, CLASSES, folders)
        return str(caught.value).splitlines()

    return call


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("whole", 128.0, 128),
        ("whole", "64", 64),
        ("whole", 4.7, 4),
        ("whole", True, 1),
        ("whole", {"__value__": 3}, 3),
        ("whole", " 7 ", 7),
        ("seed", 1e19, 10**19),
        ("real", "4.5", 4.5),
        ("real", 4, 4.0),
        ("text", 2024, "2024"),
        ("text", None, "None"),
        ("text", {"__value__": ["x", 1]}, "['x', 1]"),
        ("flag", 0, False),
        ("flag", "false", True),
        ("flag", None, False),
        ("choice", {"__value__": "second"}, "second"),
        ("checked", 7, 7),
        ("image", None, None),
    ],
)
def test_values_become_what_comfyui_makes_of_them(run, key, value, expected):
    (given,), _ = run({"1": node("TestKeep", name="x", **{key: value})})
    assert given[key] == expected and type(given[key]) is type(expected)


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("whole", "4.5", "whole is '4.5'; give a whole number"),
        ("whole", None, "whole is None; give a whole number"),
        ("whole", 5000, "whole is 5000; give a number from -10 to 4096"),
        ("whole", 10**400, "give a number from -10 to 4096"),
        ("whole", float("inf"), "whole is inf; give a whole number"),
        ("real", 10**400, "; give a number"),
        ("real", "nan", "real is nan; give a finite number from -1.0 to 100.0"),
        ("free", float("nan"), "free is nan; give a finite number"),
        ("choice", "third", "choice is 'third'; choose one of first, second"),
        ("choice", None, "choice is None; choose one of first, second"),
        ("checked", 10, "checked is above 9"),
        ("image", 5, "image must come from another node's IMAGE output, not be 5"),
        ("whole", ["2"], "whole is ['2']; a link is [\"node id\", output number]"),
        ("whole", ["2", 1, 1], "a link is"),
        ("whole", [2, 1], "a link is"),
        ("whole", ["2", 1.0], "a link is"),
        ("whole", ["77", 0], "whole comes from node 77, which is not in the workflow"),
        ("whole", ["2", 2], "whole comes from output 2 of node 2, which has 2"),
        ("whole", ["2", -3], "output -3 of node 2"),
        ("whole", ["2", 10**400], "of node 2, which has 2"),
        ("whole", ["2", 0], "whole takes INT, and output 0 of node 2 is IMAGE"),
    ],
)
def test_one_wrong_value_is_one_message_of_the_node_and_the_input(problems, key, value, expected):
    (line,) = problems({"1": node("TestKeep", name="x", **{key: value}), "2": node("TestKeep", name="y")})
    assert line.startswith("node 1 (TestKeep): ") and expected in line and len(line) < 600


def test_every_problem_is_told_and_a_workflow_of_many_is_told_in_part(problems):
    graph = {str(i): node("TestKeep", whole=9999) for i in range(2)}
    lines = problems(graph)
    assert len(lines) == 4 and sum("name is missing; give it a value" in line for line in lines) == 2
    lines = problems({str(i): node("TestKeep", name="x", whole=9999) for i in range(50)})
    assert len(lines) == executor.MOST_PROBLEMS + 1 and lines[-1] == "and 30 more"


def test_nodes_are_named_as_the_canvas_shows_them(problems):
    (line,) = problems({"1": node("LoadImageMask", image="a.png", channel="grey"), "2": keep_mask("1")})
    assert line.startswith("node 1 (Load Image (as Mask)): channel is 'grey'; choose one of alpha, red, green, blue")


def keep_mask(source: str) -> dict:
    return node("TestKeep", name="x", mask=[source, 0])


def test_what_no_output_needs_is_neither_checked_nor_run(run):
    started: list[str] = []
    graph = {
        "1": node("TestKeep", name="x"),
        "2": node("SanaSelectFrames", images=["9", 0], start="x"),
        "3": node("VAEDecode", samples=["3", 0]),
    }
    run(graph, started=lambda key, name: started.append(key))
    assert started == ["1"]


def test_unknown_inputs_are_noted_ignored_and_kept_in_the_metadata(run):
    notes: list[str] = []
    graph = {"1": node("SanaSCMSampler", other=5), "2": node("TestKeep", name="x", more=[])}
    with pytest.raises(executor.BadWorkflow, match="more is not one of its inputs, and another node is connected"):
        run(graph)
    graph["2"]["inputs"]["more"] = {"a": 1}
    (given,), _ = run(graph, noted=notes.append)
    assert "more" not in given and len(notes) == 1
    assert notes[0].startswith("node 2 (TestKeep): there is no input 'more', and its value is ignored; the inputs are")
    assert executor.check(graph, CLASSES).graph["2"]["inputs"]["more"] == {"a": 1}


def test_nodes_of_one_class_and_inputs_run_once(run):
    started: list[str] = []
    image = node("SanaSCMSigmas", steps=2, max_timesteps=1.5, intermediate_timesteps=1.3, denoise=1.0)
    keeps = {str(i): node("TestKeep", name="same") for i in (3, 4)}
    given, outcome = run({"1": image, **keeps}, started=lambda key, name: started.append(key))
    assert len(given) == 1 and started == ["3"] and outcome.values["4"] == outcome.values["3"]


def test_a_chain_of_2000_and_a_circle_of_2000(run, problems):
    given, _ = run(same_graphs.chain(2000))
    assert len(given) == 2000 and given[-1]["whole"] == 5 and given[-1]["text"] == "end"
    graph = same_graphs.chain(2000)
    graph["0"]["inputs"]["whole"] = ["1999", 1]
    (line,) = problems(graph)
    assert line.startswith("the workflow runs in a circle: 0 -> ") and "…" in line and len(line) < 200


def test_a_link_to_itself(problems):
    assert problems({"1": node("TestKeep", name="x", whole=["1", 1])}) == ["the workflow runs in a circle: 1 -> 1"]


def test_python_counts_outputs_from_the_end_as_comfyui_does(run):
    graph = {"1": node("TestKeep", name="a", whole=3), "2": node("TestKeep", name="b", whole=["1", -1])}
    given, _ = run(graph)
    assert [one["whole"] for one in given] == [3, 3]


def test_a_check_that_raises_is_a_refusal(problems):
    angles = {"max_timesteps": 5e-324, "intermediate_timesteps": 0.0}
    latent = {"latent_image": ["2", 0], "model": ["3", 0], "positive": ["4", 0]}
    lines = problems(
        {
            "1": node("SanaSCMSample", **latent, seed=0, steps=1, **angles, denoise=0.5, add_noise="enable"),
            "2": node("SanaEmptyLatent", width=64, height=64, batch_size=1),
            "3": node("SanaLoadTransformer", model_name="none", weight_dtype="default"),
            "4": node("CLIPTextEncode", clip=["5", 0], text="x"),
            "5": node("SanaLoadTextEncoder", encoder_name=5, weight_dtype="default", device="default"),
            "6": node("VAEDecode", samples=["1", 0], vae=["7", 0]),
            "7": node("SanaLoadVAE", vae_name="none", weight_dtype="default"),
            "8": node("SaveImage", images=["6", 0], filename_prefix="x"),
        }
    )
    assert len([line for line in lines if line.startswith("node 1 (Sana SCM Sample): ")]) == 1
    assert [line for line in lines if line.startswith("node 5 (Sana Load Text Encoder): encoder_name is 5; ")]
    assert len(lines) == 4


def test_a_check_makes_no_folder(folders, tmp_path):
    graph = {
        "1": node("SanaSCMSampler"),
        "2": node("LoadImage", image="missing.png"),
        "3": node("PreviewImage", images=["2", 0]),
        "4": node("SaveImage", images=["2", 0], filename_prefix="a/b/c"),
    }
    with pytest.raises(executor.BadWorkflow, match="there is no file 'missing.png' in"):
        executor.check(graph, CLASSES, folders)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_missing_or_outside_is_refused_before_a_node_runs(folders, problems):
    image_files.make(folders.input)
    for name, expected in (
        ("none.png", "image: there is no file 'none.png' in"),
        ("../x.png", "image: '../x.png' leads out of"),
        ("/etc/hostname", "image: '/etc/hostname' leads out of"),
        ("sub", "image: there is no file 'sub' in"),
        ("a\0b.png", "image: there is no file"),
        ("x" * 5000, "image: there is no file"),
        ("rgb.png [output]", "there is no file 'rgb.png' in"),
        (5, "image is 5; give a name"),
        (None, "image is None; give a name"),
    ):
        (line,) = problems({"1": node("LoadImage", image=name), "2": node("PreviewImage", images=["1", 0])})
        assert line.startswith("node 1 (Load Image): ") and expected in line


def test_names_of_the_other_folders_and_links_that_lead_out(folders, tmp_path):
    for folder in (folders.input, folders.output, folders.temp, folders.input / "clipspace", tmp_path / "disk"):
        folder.mkdir(parents=True)
        image_files.MAKERS["rgba.png"](folder / "a.png")
    (folders.input / "linked.png").symlink_to(tmp_path / "disk" / "a.png")
    (folders.input / "second").symlink_to(tmp_path / "disk", target_is_directory=True)
    names = {
        "a.png": folders.input,
        "a.png [input]": folders.input,
        "a.png [output]": folders.output,
        "a.png [temp]": folders.temp,
        "clipspace/a.png [input]": folders.input / "clipspace",
    }
    for name, folder in names.items():
        assert folders.input_file(name) == folder / "a.png"
    for name in ("linked.png", "second/a.png"):
        assert read_images(folders.input_file(name))[0].shape == (1, 40, 56, 3)
    with pytest.raises(ValueError, match="leads out of"):
        folders.input_file("second/../../disk/a.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    image_files.make(folder)
    return folder


DEEP = {"grey16.png": (1, 1e-6), "grey_alpha16.png": (2, 1e-4), "rgb16.png": (3, 1e-3), "rgba16.png": (4, 1e-3)}
"""Channels of each file, and how far FFmpeg's conversion to floats, which ComfyUI takes, is from its values / 65535."""


@pytest.mark.parametrize("swscale", ["installed", "8"])
@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_stay_sixteen_bits(files, monkeypatch, name, swscale):
    """swscale 8, of PyAV 14 and 15, converts grey to wrong floats."""
    if swscale == "8":
        monkeypatch.setitem(av.library_versions, "libswscale", (8, 3, 100))
    channels, bound = DEEP[name]
    expected = torch.from_numpy(image_files.noise(channels, most=65536) / 65535).float().view(40, 56, -1)
    image, mask = read_images(files / name)
    colours = expected[..., :3] if channels > 2 else expected[..., :1]
    assert image.dtype == torch.float32 and (image[0] - colours).abs().max() < bound
    if channels % 2:
        assert mask.shape == (1, 64, 64) and not mask.any()
    else:
        assert mask.shape == (1, 40, 56) and (1 - mask[0] - expected[..., -1]).abs().max() < bound


def test_transparency_of_palette_grey_and_rgb_is_the_mask(files):
    colours = image_files.noise(3)
    transparent = {"grey_trns.png": image_files.noise() == 7, "rgb_trns.png": (colours == colours[0, 0]).all(-1)}
    for name, expected in transparent.items():
        _, mask = read_images(files / name)
        # grey with transparency goes through floats, where FFmpeg's opaque is 255 of 256, as in ComfyUI
        assert expected.any() and (mask[0] - torch.from_numpy(expected).float()).abs().max() < 0.005
    _, mask = read_images(files / "palette_trns.png")
    assert mask.shape == (1, 40, 56) and len(mask.unique()) > 4


@pytest.mark.parametrize("name", ["anim.gif", "anim.webp", "anim.png"])
def test_animations_are_batches(files, name):
    image, mask = read_images(files / name)
    assert len(image) == len(mask) == 3 and not torch.equal(image[0], image[1])
    # each frame is the one before, moved by 7 pixels; GIF's palette is coarse
    assert (image[1] - image[0].roll(7, 1)).abs().mean() < (0.05 if name == "anim.gif" else 1e-6)


@pytest.mark.parametrize("name", ["cut.jpg", "text.png", "empty.png"])
def test_what_is_no_image_is_named(run, folders, name):
    image_files.make(folders.input)
    with pytest.raises(executor.NodeFailed, match=r"node 1 \(Load Image\): .*cannot be read as an image") as caught:
        run({"1": node("LoadImage", image=name), "2": node("PreviewImage", images=["1", 0])})
    assert name in str(caught.value) and not folders.temp.exists()


def test_previews_are_files_in_the_temp_folder(run, folders):
    image_files.make(folders.input)
    _, outcome = run({"1": node("LoadImage", image="anim.gif"), "2": node("PreviewImage", images=["1", 0])})
    paths = [Path(path) for path in outcome.previews["2"]]
    assert len(paths) == 3 and not outcome.saved["2"]
    assert all(path.parent == folders.temp and path.name.startswith("ComfyUI_temp_") for path in paths)


def test_older_folder_names_hold_models_too(tmp_path):
    folders = Folders(models=[tmp_path])
    assert folders.roots("diffusion_models") == [tmp_path / "unet", tmp_path / "diffusion_models"]
    assert folders.roots("text_encoders") == [tmp_path / "text_encoders", tmp_path / "clip"]
    assert folders.roots("vae") == [tmp_path / "vae"]
