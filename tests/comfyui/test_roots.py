"""Several model roots in a real ComfyUI: extra_model_paths.yaml, over HTTP."""

from __future__ import annotations

import json

import drawing
import graphs
import tiny
from server import Server

FOLDERS = {"diffusers": "pipelines", "diffusion_models": "unet", "text_encoders": "clip", "vae": "vae", "loras": "lora"}


def test_models_of_extra_model_paths_are_offered_and_drawn_with(home, reference, tmp_path):
    """Each kind lies in a folder of another name, and only there."""
    for name in FOLDERS.values():
        (tmp_path / name).mkdir()
    tiny.sprint_pipeline(tmp_path / "pipelines" / "elsewhere")
    for kind, part in (("unet", "transformer"), ("vae", "vae"), ("clip", "text_encoder")):
        (tmp_path / "pipelines" / "elsewhere" / part).rename(tmp_path / kind / "elsewhere")
    (tmp_path / "pipelines" / "elsewhere" / "tokenizer").rename(tmp_path / "clip" / "tokenizer")
    tiny.write_lora(tmp_path / "lora" / "elsewhere.safetensors")
    lines = [f"  {kind}: {name}" for kind, name in FOLDERS.items()]
    config = tmp_path / "extra.yaml"
    config.write_text("\n".join(["shared:", f"  base_path: {tmp_path}", *lines]))
    with Server(home, "--extra-model-paths-config", str(config)) as server:
        known = json.loads(server.get("/object_info"))
        graph = graphs.example("unused")
        del graph["1"]
        loaders = {
            "SanaLoadTransformer": ("model_name", "elsewhere"),
            "SanaLoadTextEncoder": ("encoder_name", "elsewhere"),
            "SanaLoadVAE": ("vae_name", "elsewhere"),
        }
        for number, (name, (widget, choice)) in enumerate(loaders.items()):
            assert {choice, "tiny"} <= set(known[name]["input"]["required"][widget][0])
            more = {"device": "default"} if name == "SanaLoadTextEncoder" else {}
            graph[f"8{number}"] = graphs.node(name, **{widget: choice, "weight_dtype": "default", **more})
        graph["4"]["inputs"]["model"] = ["80", 0]
        graph["2"]["inputs"]["clip"] = ["81", 0]
        graph["5"]["inputs"]["vae"] = ["82", 0]
        drawn = server.pictures(graph)
        assert drawing.same_pixels(drawn, server.pictures(graphs.example("tiny")))
        changed = server.pictures(graphs.with_lora(graph, ("elsewhere.safetensors", 1.0)))
        assert not drawing.same_pixels(drawn, changed)
