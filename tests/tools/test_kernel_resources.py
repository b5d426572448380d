"""What nvcc made of the CUDA kernels that are built: no spills, room for the blocks planned."""

import pytest

from solo_attn.backends import compiled
from tools import kernel_resources as resources

ARCHS = compiled.CONFIGURATION.get("archs", [])
pytestmark = [
    pytest.mark.skipif(not ARCHS, reason="the extension in this tree has no CUDA kernels"),
    pytest.mark.skipif(resources.cuobjdump() is None, reason="there is no cuobjdump"),
]


@pytest.fixture(scope="module")
def found():
    return resources.usages()


def test_every_kernel_has_a_plan_and_every_arch(found):
    assert {usage.kernel for usage in found} == set(resources.PLANS)
    archs = {int(arch.partition("+")[0].replace(".", "")) for arch in ARCHS}
    for kernel in resources.PLANS:
        assert {usage.arch for usage in found if usage.kernel == kernel} == archs
        assert any(usage.usual for usage in found if usage.kernel == kernel)


def test_what_multiplies_has_a_form_for_tf32(found):
    multiply = {
        "grid_attention_map_kernel",
        "grid_attention_gradient_kernel",
        "grid_attention_chosen_kernel",
        "grid_attention_picked_kernel",
        "grid_attention_chosen_gradient_kernel",
    }
    for arch in {usage.arch for usage in found}:
        assert {usage.kernel for usage in found if usage.tf32 and usage.arch == arch} == multiply


def test_nothing_spills(found):
    """Neither does an array whose index the compiler does not know end up in local memory."""
    assert [usage for usage in found if usage.stack or usage.local] == []


def test_the_planned_blocks_fit(found):
    for usage in found:
        if usage.usual and usage.arch in (90, 100):
            assert usage.blocks >= usage.planned, usage
        assert usage.arch not in resources.SHARED or usage.blocks >= 1, usage


def test_how_many_blocks_fit(monkeypatch):
    usage = resources.Usage("grid_attention_picked_kernel", True, 90, 168, 0, 0, 13 << 10)
    assert usage.blocks == 3  # of 4 warps with 168 * 32 registers, of 65,536
    monkeypatch.setitem(
        resources.PLANS, "grid_attention_picked_kernel", resources.Plan(128, 2, 0, 0, dynamic=100 << 10)
    )
    assert usage.blocks == 2  # of 114 KiB each
    monkeypatch.setitem(resources.PLANS, "grid_attention_picked_kernel", resources.Plan(1024, 1, 0, 0))
    assert usage.blocks == 0  # of 32 warps


def test_the_page_shows_what_is_built(found):
    page = resources.PAGE.read_text()
    if (made_by := resources.compiler()) not in page:
        pytest.skip(f"the table is not of what was built here: {made_by}")
    assert resources.written(page, resources.table(found)) == page, "python -m tools.kernel_resources --write"
