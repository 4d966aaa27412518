"""The pretended card itself: what it refuses, what it counts, and that nothing of it stays."""

from __future__ import annotations

import pretend_card
import pytest
import torch

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

MIB = 1 << 20


@pytest.fixture
def machine():
    with torch.no_grad(), pretend_card.cards(memory=8 * MIB, count=2) as made:
        yield made


def test_tensors_say_that_they_are_on_the_card(machine):
    given = torch.arange(6.0).reshape(2, 3)
    for moved in (given.cuda(), given.to("cuda"), given.to(torch.device("cuda")), given.to("cuda:0"), given.to(0)):
        assert moved.device == torch.device("cuda:0") and moved.is_cuda and torch.equal(moved.cpu(), given)
    made = torch.zeros(3, device="cuda"), torch.tensor([1.0], device="cuda"), torch.empty_like(given.cuda())
    assert all(t.is_cuda for t in made)
    assert (given.cuda() @ given.cuda().T).device.type == "cuda" and given.cuda()[0, 1:].cpu().tolist() == [1.0, 2.0]


def test_modules_move_there_and_back(machine):
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()
    x = torch.randn(3, 4)
    expected = layer(x)
    moved = layer.to("cuda")(x.cuda())
    assert moved.is_cuda and torch.allclose(moved.cpu(), expected) and torch.allclose(layer.to("cpu")(x), expected)


def test_a_parameters_data_moves_in_place(machine):
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    kept = parameter.data
    parameter.data = kept.to("cuda")
    assert parameter.is_cuda and (parameter + 1).is_cuda
    parameter.data = kept
    assert parameter.device.type == "cpu" and parameter.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: a @ b,
        lambda a, b: torch.nn.functional.linear(a, b),
        lambda a, b: torch.nn.functional.embedding(b.long(), a),
        lambda a, b: torch.nn.functional.scaled_dot_product_attention(a[None], a[None], b[None]),
        lambda a, b: b[a.long()],
        lambda a, b: a.mul_(b),
    ],
    ids=["+", "cat", "@", "linear", "embedding", "attention", "index", "in place"],
)
def test_two_devices_are_refused(machine, mix, inference):
    with torch.inference_mode(inference):
        one, other = torch.zeros(2, 2), torch.zeros(2, 2)
        for stray in (other, other.to("cuda:1")):
            with pytest.raises((RuntimeError, IndexError), match="devices|same device"):
                mix(one.to("cuda:0"), stray)


def test_a_scalar_of_the_cpu_is_let_through(machine):
    assert (torch.ones(2, device="cuda") * torch.tensor(2.0)).cpu().tolist() == [2.0, 2.0]


def test_numpy_is_refused(machine):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        torch.zeros(2).cuda().numpy()


def test_memory_is_counted_while_it_is_used(machine):
    first = torch.zeros(MIB // 4, device="cuda")
    view, second = first[:10], first + 1
    assert machine.used == [2 * MIB, 0] == [torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1)]
    del first
    assert machine.used == [2 * MIB, 0], "its view is still there"
    del view, second
    assert machine.used == [0, 0] and machine.peak == [2 * MIB, 0]
    other = torch.zeros(MIB // 4, device="cuda:1")
    assert machine.used == [0, MIB] and torch.cuda.mem_get_info(1) == (7 * MIB, 8 * MIB)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.zeros(2 * MIB, device="cuda:1")
    assert other.sum().item() == 0


@pytest.mark.parametrize(
    ("wait", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: bool((x < 1).any()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), 1),
        (lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True), 0),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: (x * 2 + 1).sum(), 0),
        (lambda x: torch.cuda.synchronize(), 1),
    ],
)  # fmt: skip
def test_waits_are_counted_with_their_line(machine, wait, count):
    x = torch.ones(3, device="cuda")
    machine.begin()
    wait(x)
    assert machine.count.waits.total() == count
    assert all("tests/unit/test_pretend_card.py" in site for site in machine.count.waits)


def test_transfers_are_counted_in_bytes(machine):
    moved = torch.zeros(10).to("cuda")
    moved.cpu()
    torch.zeros(10).copy_(moved)
    moved.copy_(torch.zeros(10))
    moved.to("cuda"), moved.half()
    assert machine.count.moved == {"to the card": 80, "to the CPU": 80} and machine.count.moves.total() == 4


def test_launches_are_counted_without_views(machine):
    x = torch.ones(4, 4, device="cuda")
    machine.begin()
    x.view(16).t()[2:].unsqueeze(0)
    assert machine.count.launches.total() == 0
    torch.relu_(x + 1)
    torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])
    assert machine.count.launches.total() == 3


def test_nothing_stays():
    before = torch.cuda.is_available, torch.version.cuda, torch.Generator
    with pretend_card.cards():
        assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    assert (torch.cuda.is_available, torch.version.cuda, torch.Generator) == before
    assert not torch.cuda.is_available() and torch.zeros(1).to("cpu").device.type == "cpu"
