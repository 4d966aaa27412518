"""What a batch asks of a Ray cluster, by its models' estimates; needs no Ray."""

from __future__ import annotations

from dataclasses import replace

import graphs
import pytest
import torch
from sana_nodes.batch.cluster import ClusterWorker, actor_options
from sana_nodes.batch.estimate import LIBRARIES, Needs, needs_of
from sana_nodes.batch.worker import Job, Task
from sana_nodes.cli.calls import BadCall

pytestmark = pytest.mark.usefixtures("no_host")

GB = 10**9
NEEDS = Needs(weights=6 * GB, work=2 * GB, card=24 * GB)
CPUS = {"CPU": 16.0, "memory": 64.0 * GB}
CARDS = {"CPU": 16.0, "GPU": 4.0, "memory": 64.0 * GB}


def test_workers_on_processors_share_the_cores_and_take_their_memory():
    options, count = actor_options(CPUS, 4, NEEDS)
    assert count == 4 and options == {"memory": 8 * GB + LIBRARIES, "num_cpus": 3.8}


def test_as_many_workers_as_memory_allows():
    options, count = actor_options(CPUS, None, NEEDS)
    assert count == 7 and count * options["memory"] <= CPUS["memory"] and options["num_cpus"] * count < 16
    assert actor_options({"CPU": 2.0}, None, NEEDS)[1] == 2, "a cluster that tells no memory has enough"
    assert actor_options(CPUS, None, Needs())[1] == 16


def test_each_worker_has_a_card():
    assert actor_options(CARDS, None, NEEDS) == (
        {"memory": 6 * GB + LIBRARIES, "num_gpus": 1.0, "num_cpus": 0},
        4,
    )
    assert actor_options(CARDS, 2, NEEDS)[0]["num_gpus"] == 1.0


def test_workers_share_cards_that_have_the_memory():
    options, count = actor_options(CARDS, 8, NEEDS)
    assert count == 8 and options["num_gpus"] == 0.5
    options, count = actor_options({**CARDS, "memory": 400 * GB}, 12, NEEDS)
    assert options["num_gpus"] == pytest.approx(1 / 3, abs=1e-4) and 3 * options["num_gpus"] <= 1


@pytest.mark.parametrize(
    ("resources", "workers", "reason"),
    [
        (CPUS, 8, "8 workers need 9.1 GB of main memory each, and the cluster has 64.0 GB: give --workers 7"),
        ({"CPU": 2.0, "memory": 4.0 * GB}, 1, "1 workers need 9.1 GB .* or a larger cluster"),
        ({**CARDS, "memory": 999.0 * GB}, 16, "16 workers on 4 cards need 8.0 GB each, .* 24.0 GB: give --workers 12"),
    ],
)
def test_too_little_memory_is_said(resources, workers, reason):
    with pytest.raises(BadCall, match=reason):
        actor_options(resources, workers, NEEDS)


@pytest.fixture
def job(home, reference, tmp_path):
    graph = graphs.example(width=1024, height=512)
    return Job(graph, frozenset(), tmp_path / "out" / "work", tmp_path / "out", home / "models", home / "input")


def test_the_estimate_is_the_models_own(job, reference):
    """The weights are those of the files; the work grows with the size and the batch."""
    needs = needs_of(job)
    parts = (reference.transformer, reference.text_encoder, reference.vae)
    assert needs.weights == sum(p.numel() * p.itemsize for part in parts for p in part.state_dict().values())
    graph = graphs.example(width=2048, height=512)
    assert needs_of(replace(job, graph=graph)).work == pytest.approx(2 * needs.work, rel=0.2)
    assert needs_of(replace(job, batch=64)).work > needs.work > 0
    assert needs.card == 0 or torch.cuda.is_available()


def test_videos_have_frames(job, video_references):
    few, many = (needs_of(replace(job, graph=graphs.video(frames=frames))) for frames in (5, 81))
    assert many.work > 2 * few.work and many.weights == few.weights > 0


def test_a_workflow_without_models_needs_nothing(place):
    needs = needs_of(Job(place.graph, frozenset(), place.root, place.root))
    assert (needs.weights, needs.on_card, needs.without_card) == (0, 0, 0)


def test_a_machine_that_does_not_share_the_folder_returns_bytes(place):
    (place.root / "token").write_text("word")
    job = Job(place.graph, frozenset({"2"}), place.root / "work", place.root / "out", input=place.root / "input")
    inputs = {"2": place.graph["2"]["inputs"]}
    for word, shared in (("word", True), ("other", False)):
        worker = ClusterWorker(job, "0", str(place.root / "token"), word)
        (made,) = worker.make([Task(0, "a", inputs, "")])
        worker.close()
        (file,) = made.files
        assert ("data" in file) is not shared
        assert shared or len(file["data"]) == file["bytes"] and not (place.root / "work" / "0" / "row-0").exists()
