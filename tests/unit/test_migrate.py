"""``sana-nodes migrate``: older packs' graphs become ours, in both formats, and what is lost is said."""

from __future__ import annotations

import json

import pytest
from sana_nodes import NODE_CLASS_MAPPINGS, cli
from sana_nodes.cli.calls import BadCall
from sana_nodes.cli.migrate import migrate
from sana_nodes.cli.older_packs import PASSED, RULES, UNKNOWN


def old_node(number, kind, values, inputs=(), outputs=(), pos=(0, 0)):
    return {
        "id": number,
        "type": kind,
        "pos": list(pos),
        "size": [200, 100],
        "mode": 0,
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": name, "type": type_, "links": []} for name, type_ in outputs],
        "widgets_values": values,
    }


def sprint_graph(sampler="scm", denoise=1, dtype="FP16") -> dict:
    """The shape of the older pack's example for SANA-Sprint."""
    cond = [("CONDITIONING", "CONDITIONING")]
    led = [("model", "MODEL", 5), ("positive", "CONDITIONING", 6), ("negative", "CONDITIONING", 7)]
    settings = [77, "randomize", 2, 1, sampler, "sgm_uniform", denoise]
    name = "Efficient-Large-Model/Sana_Sprint_1.6B_1024px"
    nodes = [
        old_node(1, "SanaCheckpointLoader", [name, "SanaSprint_1600M_P1_D20", "BF16", True], (), [("model", "MODEL")]),
        old_node(2, "ScmModelSampling", [4.0, False], [("model", "MODEL", 1)], [("MODEL", "MODEL")]),
        old_node(3, "GemmaLoader", ["Efficient-Large-Model/gemma-2-2b-it", "cpu", dtype], (), [("GEMMA", "GEMMA")]),
        old_node(4, "SanaTextEncode", ["a cat"], [("GEMMA", "GEMMA", 2)], cond, (300, 40)),
        old_node(5, "GemmaTextEncode", [""], [("GEMMA", "GEMMA", 3)], cond),
        old_node(6, "SanaResolutionSelect", ["1024px", "2.00"], (), [("width", "INT"), ("height", "INT")]),
        old_node(7, "EmptySanaLatentImage", [512, 500, 1], [("width", "INT", 4)], [("LATENT", "LATENT")]),
        old_node(8, "KSampler", settings, [*led, ("latent_image", "LATENT", 8)], [("LATENT", "LATENT")], (700, 20)),
        old_node(
            9, "ExtraVAELoader", ["mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "dcae", dtype], (), [("VAE", "VAE")]
        ),
        old_node(10, "VAEDecode", [], [("samples", "LATENT", 9), ("vae", "VAE", 10)], [("IMAGE", "IMAGE")], (900, 0)),
        old_node(11, "SomeOtherPack", {"keep": 1}, [("images", "IMAGE", 11)], ()),
    ]
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 3, 0, 4, 0, "GEMMA"], [3, 3, 0, 5, 0, "GEMMA"], [4, 6, 0, 7, 0, "INT"]]
    links += [[5, 2, 0, 8, 0, "MODEL"], [6, 4, 0, 8, 1, "CONDITIONING"], [7, 5, 0, 8, 2, "CONDITIONING"]]
    links += [
        [8, 7, 0, 8, 3, "LATENT"],
        [9, 8, 0, 10, 0, "LATENT"],
        [10, 9, 0, 10, 1, "VAE"],
        [11, 10, 0, 11, 0, "IMAGE"],
    ]
    return {"nodes": nodes, "links": links, "groups": [{"title": "mine"}], "version": 0.4, "last_link_id": 11}


def by_id(graph: dict) -> dict[int, dict]:
    return {node["id"]: node for node in graph["nodes"]}


def sources(graph: dict, number: int) -> dict[str, tuple]:
    links = {link[0]: (link[1], link[2]) for link in graph["links"]}
    return {e["name"]: links[e["link"]] for e in by_id(graph)[number]["inputs"] if e["link"]}


def test_a_sprint_graph_of_the_editor_becomes_ours():
    made, lines = migrate(sprint_graph())
    nodes = by_id(made)
    kinds = {number: node["type"] for number, node in nodes.items()}
    assert kinds == {
        1: "SanaLoadTransformer",
        3: "SanaLoadTextEncoder",
        4: "SanaEncodePrompt",
        5: "SanaEncodePrompt",
        6: "SanaResolution",
        7: "SanaEmptyLatent",
        8: "SanaSCMSample",
        9: "SanaLoadVAE",
        10: "VAEDecode",
        11: "SomeOtherPack",
    }
    assert sources(made, 8) == {"model": (1, 0), "positive": (4, 0), "latent_image": (7, 0)}
    assert sources(made, 4) == {"clip": (3, 0)} and sources(made, 10) == {"samples": (8, 0), "vae": (9, 0)}
    assert sources(made, 7) == {"width": (6, 0)}
    assert nodes[4]["pos"] == [300, 40] and nodes[8]["pos"] == [700, 20] and made["groups"] == [{"title": "mine"}]
    assert nodes[11]["widgets_values"] == {"keep": 1}
    assert nodes[8]["widgets_values"][:3] == [77, "randomize", 2]
    assert nodes[4]["widgets_values"][:3] == ["a cat", "image", 4.0] and nodes[5]["widgets_values"][1] == "none"
    assert nodes[1]["widgets_values"][:2] == ["Sana_Sprint_1.6B_1024px.pth", "bf16"]
    assert nodes[6]["widgets_values"] == [1448, 724, "1024px"]
    told = "\n".join(lines)
    assert "float16 overflows" in told and "negative prompt" in told and "height was 500" in told
    assert "models/diffusion_models" in told


@pytest.mark.parametrize("number", [1, 3, 4, 6, 7, 8, 9])
def test_every_translated_node_is_one_that_the_editor_can_load(number):
    """As many values as widgets, sockets of the class's types, links that agree with both ends."""
    made, _ = migrate(sprint_graph())
    node = by_id(made)[number]
    declared = NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
    specs = {**declared["required"], **declared.get("optional", {})}
    widgets = [k for k, s in specs.items() if isinstance(s[0], list) or s[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")]
    assert len(node["widgets_values"]) == len(widgets) + ("seed" in widgets)
    assert [output["type"] for output in node["outputs"]] == list(NODE_CLASS_MAPPINGS[node["type"]].RETURN_TYPES)
    for link, source, output, target, entry, _ in made["links"]:
        assert by_id(made)[target]["inputs"][entry]["link"] == link
        assert link in by_id(made)[source]["outputs"][output]["links"]


def api_graph(sampler="scm") -> dict:
    graph, found = sprint_graph(sampler), {}
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    names = {"KSampler": ["seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"]}
    for node in graph["nodes"][:-1]:
        widgets = names.get(node["type"]) or (RULES.get(node["type"]) or PASSED.get(node["type"]) or ([],))[0]
        inputs = {name: value for name, value in zip(widgets, node["widgets_values"]) if name}
        inputs |= {entry["name"]: links[entry["link"]] for entry in node["inputs"]}
        found[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return found


def test_an_api_graph_becomes_ours():
    made, _ = migrate(api_graph())
    assert "2" not in made and made["8"]["class_type"] == "SanaSCMSample"
    assert made["8"]["inputs"]["model"] == ["1", 0] and made["8"]["inputs"]["seed"] == 77
    assert made["4"]["inputs"]["clip"] == ["3", 0] and made["4"]["inputs"]["guidance_scale"] == 4.0
    assert made["10"] == {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["9", 0]}}


def test_ksampler_stays_where_the_model_is_not_sprint():
    graph = api_graph("euler")
    graph["1"]["inputs"].update(ckpt_name="Efficient-Large-Model/SANA1.5_1.6B_1024px", model="SanaMS1.5_1600M_P1_D20")
    made, _ = migrate(graph)
    assert made["8"]["class_type"] == "KSampler" and made["8"]["inputs"]["model"] == ["1", 0]
    assert made["8"]["inputs"]["negative"] == ["5", 0]


def test_sprint_is_recognised_by_its_model_too():
    assert migrate(api_graph("lcm"))[0]["8"]["class_type"] == "SanaSCMSample"


def test_a_vae_of_another_model_and_unknown_classes_stay():
    other = {"1": {"class_type": "ExtraVAELoader", "inputs": {"vae_name": "x.safetensors", "vae_type": "sd1"}}}
    assert migrate(other) == (other, [])
    made, lines = migrate({"1": {"class_type": "SanaGenerate", "inputs": {}}})
    assert made["1"]["class_type"] == "SanaGenerate" and "Sana SCM Sample" in lines[0]


def test_what_denoise_did_is_said():
    assert any("denoise is 0.5" in line for line in migrate(sprint_graph(denoise=0.5))[1])


def test_the_command_keeps_the_workflow(tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text(json.dumps(sprint_graph()))
    before = file.read_bytes()
    assert cli.main(["migrate", str(file)]) == 0
    told = capsys.readouterr()
    made = json.loads((tmp_path / "old-sana-nodes.json").read_text())
    assert told.out.strip().endswith("old-sana-nodes.json") and "now Sana SCM Sample" in told.err
    assert by_id(made)[8]["type"] == "SanaSCMSample" and file.read_bytes() == before
    assert cli.main(["migrate", str(file), "--output", str(file)]) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"nodes": [{}]}', '{"1": {"inputs": 3}}', '{"1": 2}', "{}"])
def test_files_that_are_no_workflow(tmp_path, text, capsys):
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert cli.main(["migrate", str(file)]) == 2
    assert not list(tmp_path.glob("*-sana-nodes.json"))


@pytest.mark.parametrize("output", ["absent/new.json", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, output, capsys):
    (tmp_path / "old.json").write_text(json.dumps(sprint_graph()))
    (tmp_path / "folder").mkdir()
    assert cli.main(["migrate", str(tmp_path / "old.json"), "--output", str(tmp_path / output)]) == 2
    assert f"cannot write {tmp_path / output}: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.json"]


def test_what_an_editor_saved_as_null():
    graph = sprint_graph()
    alone = {"id": 12, "type": "Note", "pos": [0, 0], "inputs": None, "outputs": None, "widgets_values": None}
    made, _ = migrate({**graph, "nodes": [*graph["nodes"], alone], "extra": None})
    assert by_id(made)[12] == alone and sources(made, 8)["model"] == (1, 0)
    assert migrate({"nodes": [alone], "links": None})[0]["links"] == []


def test_no_old_name_is_one_of_ours():
    assert not (RULES.keys() | PASSED.keys() | UNKNOWN.keys()) & NODE_CLASS_MAPPINGS.keys()
    with pytest.raises(BadCall):
        migrate({"nodes": [{"type": 1}]})
