"""Workflow files that no editor would write, by hypothesis, and what a command may make of one: no traceback, ever."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import image_files
from hypothesis import strategies as st

CODES = (0, 1, 2)
CLASSES = (
    *("VAEDecode", "VAEEncode", "CLIPTextEncode", "ControlNetApplyAdvanced", "SanaLoadPipeline", "SanaLoadVAE"),
    *("SanaLoadTransformer", "SanaLoadLora", "SanaEncodePrompt", "SanaResolution", "SanaEmptyVideoLatent"),
    *("SanaSCMSample", "SanaFlowSample", "SanaFlowSigmas", "SanaFlowSampler", "SanaImg2ImgLatent", "SanaSaveVideo"),
    *("KSampler", "", "no\x1b[31m"),
)
"""Classes beside those of PARTS: without a model they can only be refused."""

IMAGES = ("rgba.png", "anim.gif", "small.png", "cut.jpg", "none.png", "../x.png", "rgba.png [output]", "text.png")
SIZES = (0, 1, 2, 8, 32, 64, 96, -1, 10**6, 2**64, 10**400)
"""Numbers on both sides of every limit, and none between that would cost memory or time."""

WIDGETS = {
    "image": st.sampled_from(IMAGES),
    "channel": st.sampled_from(("alpha", "red", "grey")),
    "filename_prefix": st.sampled_from(
        ("a", "b/c", "%width%_%batch_num%", "../out", "/abs", "", "a\0b", "x" * 300, "\ud800")
    ),
    "format": st.sampled_from(("png", "jpg", "webp", "gif", "mp4-h264", "bmp")),
    "max_timesteps": st.sampled_from((1.5708, 1e-9, 5e-324, 0, 2)),
    "denoise": st.sampled_from((1.0, 0.5, 1e-9, 0, -1)),
    "resize_source": st.booleans(),
    "steps": st.sampled_from((1, 2, 1000, 1001)),
    **{name: st.sampled_from(SIZES) for name in ("width", "height", "batch_size", "x", "y", "frames")},
    **{name: st.integers(-3, 3) for name in ("start", "count", "stride", "seed")},
}
"""Values for inputs by name; other inputs get any JSON."""

PARTS = {
    "LoadImage": ("image",),
    "LoadImageMask": ("image", "channel"),
    "SaveImage": ("images", "filename_prefix"),
    "PreviewImage": ("images",),
    "ImageBatch": ("image1", "image2"),
    "ImageCompositeMasked": ("destination", "source", "x", "y", "resize_source", "mask"),
    "SanaEmptyLatent": ("width", "height", "batch_size"),
    "SanaCropToSize": ("images", "width", "height"),
    "SanaSelectFrames": ("images", "start", "count", "stride"),
    "SanaSaveFrames": ("images", "format", "filename_prefix"),
    "SanaSCMSigmas": ("steps", "max_timesteps", "intermediate_timesteps", "denoise"),
    "SetLatentNoiseMask": ("samples", "mask"),
}
"""Inputs of the classes that make whole graphs, in any order."""

NUMBERS = st.one_of(st.sampled_from(SIZES), st.integers(), st.floats(allow_nan=False))
TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(("1", "4.5", "nan", "inf", "false", "9" * 5000, "\ud800")))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.just("__value__")), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def _inputs(draw, class_type: str, ids: list[str]) -> dict:
    link = st.tuples(st.sampled_from(ids), st.integers(0, 2)).map(list)
    odd_link = st.lists(st.one_of(st.sampled_from([*ids, "99"]), st.integers(-2, 2), st.floats()), max_size=3)
    inputs = {}
    for name in PARTS.get(class_type, ("model", "samples", "vae", "steps", "filename_prefix")):
        usual = WIDGETS.get(name, link)
        if (kind := draw(st.integers(0, 15))) < 13:
            inputs[name] = draw(usual)
        elif kind < 15:
            inputs[name] = draw(st.one_of(JSON, odd_link))
    if draw(st.integers(0, 7)) == 0:
        inputs[draw(st.text(max_size=5))] = draw(st.one_of(JSON, link))
    return inputs


@st.composite
def _node(draw, ids: list[str]):
    if draw(st.integers(0, 25)) == 0:
        return draw(JSON)
    class_type = draw(st.one_of(st.sampled_from(list(PARTS)), st.sampled_from(CLASSES)))
    node = {"class_type": class_type, "inputs": draw(_inputs(class_type, ids))}
    if draw(st.integers(0, 25)) == 0:
        node[draw(st.sampled_from(("class_type", "inputs", "_meta", "is_changed")))] = draw(JSON)
    if draw(st.integers(0, 9)) == 0:
        node.pop(draw(st.sampled_from(("class_type", "inputs"))))
    return node


@st.composite
def graphs(draw) -> dict:
    """Up to eight nodes, most of them such as a person would connect."""
    ids = [str(number) for number in range(draw(st.integers(1, 8)))]
    graph = {"0": {"class_type": "LoadImage", "inputs": {"image": draw(st.sampled_from(IMAGES))}}}
    graph |= {key: draw(_node(ids)) for key in ids[1:]}
    graph["s"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [draw(st.sampled_from(ids)), 0], "filename_prefix": "s"},
    }
    return graph


SOUND = {
    "LoadImage": {"image": st.sampled_from(("rgba.png", "anim.gif", "small.png", "cut.jpg"))},
    "LoadImageMask": {"image": st.sampled_from(("rgba.png", "small.png")), "channel": st.just("alpha")},
    "ImageBatch": {"image1": "IMAGE", "image2": "IMAGE"},
    "ImageCompositeMasked": {
        **{"destination": "IMAGE", "source": "IMAGE", "mask": "MASK", "resize_source": st.booleans()},
        **{"x": st.integers(0, 90), "y": st.sampled_from((0, "7", 12.5, 60))},
    },
    "SanaCropToSize": {"images": "IMAGE", "width": st.integers(1, 90), "height": st.sampled_from((8, "16", 31.9))},
    "SanaSelectFrames": {"images": "IMAGE", "start": st.integers(-4, 4), "count": st.just(0), "stride": st.just(1)},
    "SaveImage": {"images": "IMAGE", "filename_prefix": st.sampled_from(("a", "b/c", 2024, "%width%_%batch_num%"))},
    "PreviewImage": {"images": "IMAGE"},
    "SanaSaveFrames": {
        **{"images": "IMAGE", "format": st.sampled_from(("png", "jpg", "webp")), "filename_prefix": st.just("f")},
    },
}
"""Classes with inputs that fit: a strategy for a value, or the kind of an earlier node's output."""

GIVEN = {"LoadImage": {"IMAGE": 0, "MASK": 1}, "LoadImageMask": {"MASK": 0}}
GIVEN |= {name: {"IMAGE": 0} for name in ("ImageBatch", "ImageCompositeMasked", "SanaCropToSize", "SanaSelectFrames")}


@st.composite
def sound_graphs(draw) -> dict:
    """Graphs that ComfyUI would run; a cut file or a frame that is not there fails as a node."""
    graph, outputs = {}, {"IMAGE": [["0", 0]], "MASK": [["0", 1]]}
    names = ["LoadImage", *draw(st.lists(st.sampled_from(list(SOUND)), max_size=6)), "SaveImage"]
    for number, class_type in enumerate(names):
        values = {
            name: outputs.get(kind) if isinstance(kind, str) else kind for name, kind in SOUND[class_type].items()
        }
        inputs = {name: draw(st.sampled_from(v) if isinstance(v, list) else v) for name, v in values.items()}
        graph[str(number)] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        for kind, output in GIVEN.get(class_type, {}).items():
            outputs[kind] = [*outputs[kind], [str(number), output]] if number else outputs[kind]
    return graph


DAMAGES = (
    lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"),
    lambda text: text.encode("utf-16", "surrogatepass"),
    lambda text: text[: len(text) // 2].encode(errors="replace"),
    lambda text: text.replace("0", "NaN", 1).encode(errors="replace"),
    lambda text: text.replace("0", "1e400", 1).encode(errors="replace"),
    lambda text: text.replace('"inputs"', '"class_type"', 1).encode(errors="replace"),
    lambda text: text.replace("0", "[" * 2000 + "]" * 2000, 1).encode(errors="replace"),
    lambda text: ("[" * 100_000 + text).encode(errors="replace"),
    lambda text: ('{"prompt": ' + text + "}").encode(errors="replace"),
)

WORKFLOWS = st.one_of(
    sound_graphs().map(lambda graph: json.dumps(graph).encode()),
    graphs().map(lambda graph: json.dumps(graph).encode()),
    st.tuples(graphs(), st.sampled_from(DAMAGES)).map(lambda pair: pair[1](json.dumps(pair[0]))),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
)
"""Bytes of a workflow file."""


def prepare(home: Path) -> None:
    """The images that the graphs name, below ``home``."""
    for name in ("input", "output", "models"):
        (home / name).mkdir(exist_ok=True)
    for name in IMAGES:
        if name in image_files.MAKERS:
            image_files.MAKERS[name](home / "input" / name)


def run(data: bytes, home: Path) -> tuple[int, str]:
    """Exit code and standard error of ``sana-nodes run`` of a file; AssertionError for what is wrong."""
    from sana_nodes import cli

    (home / "workflow.json").write_bytes(data)
    places = [part for name in ("input", "output", "models") for part in (f"--{name}", str(home / name))]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["run", str(home / "workflow.json"), "--host", "embedded", *places])
    told = err.getvalue()
    assert code in CODES, f"exit code {code}"
    assert "Traceback" not in told and "Traceback" not in out.getvalue(), told
    if code:
        assert out.getvalue() == "" and told.splitlines()[-1].startswith("sana-nodes: "), told
    else:
        files = out.getvalue().splitlines()
        assert files and all(Path(file).is_file() for file in files)
    assert all(len(line) < 3000 for line in told.splitlines()), "a line of more than 3000 characters"
    return code, told
