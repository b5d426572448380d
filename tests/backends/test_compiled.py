"""The compiled extension: loaded at first need, under torch.compile too, and never replaced in silence."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solo_attn.backends import OPS, compiled, explain, select

PACKAGE = Path(compiled.__file__).parents[1]
BUILT = compiled.CONFIGURATION["ops"].get("cpu", [])
CUDA = compiled.CONFIGURATION["ops"].get("cuda", [])
needs_build = pytest.mark.skipif(
    compiled.CONFIGURATION["build"] == "none", reason="no extension is built in this tree: make setup"
)

CALL = """
import torch, solo_attn
from solo_attn.backends import compiled
assert not compiled.loaded, "importing loads no compiled code"
masks = torch.ones(2, 3, 3, dtype=torch.bool)
labels, scores = torch.zeros(2).long(), torch.tensor([0.9, 0.8])
"""
RESULT = "print(out.tolist(), compiled.loaded)"


def python(code, package=PACKAGE, **environment):
    environment = {**os.environ, "PYTHONPATH": str(package.parent), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package.parent)


@pytest.fixture
def copy(tmp_path):
    """The package elsewhere, to be broken."""
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "solo_attn", ignore=shutil.ignore_patterns("__pycache__"))
    )


@needs_build
@pytest.mark.parametrize(
    "call",
    [
        "out = solo_attn.matrix_nms(masks, labels, scores)",
        "out = torch.ops.solo_attn.matrix_nms(masks.flatten(1), labels, scores, 'gaussian', 2.0)[0]",
        "f = torch.compile(solo_attn.matrix_nms, fullgraph=True, backend='aot_eager')\n"
        "out = f(masks, labels, scores)",
    ],
    ids=["eager", "the op", "compiled"],
)
def test_loaded_at_first_need(call):
    done = python(f"{CALL}\n{call}\n{RESULT}")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.rpartition(" ")[0])
    assert done.stdout.split()[-1] == "True"
    assert values == pytest.approx([0.9, 0.8 * 0.1353353], rel=1e-5)


@needs_build
def test_choosing_loads_nothing():
    code = "from solo_attn.backends import compiled, select; import torch; "
    code += "print(select('matrix_nms', 'cpu', torch.float32).name, compiled.loaded)"
    assert python(code).stdout.split() == ["cpu", "False"]


@needs_build
@pytest.mark.parametrize("op", OPS)
def test_a_claimed_op_is_compiled_with_its_variants(op):
    compiled.load()
    names = {
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "solo_attn:" in name
    }
    factored = {op + "_factors", op + "_factors_bwd"}  # elsewhere than on a CPU the product is made first
    levels = {
        op + form for form in ("_levels", "_levels_bwd", "_levels_rle")
    }  # elsewhere than on a GPU there is a call for each
    for name in {op, op + "_", op + "_bwd", op + "_rle", *factored, *levels} & names:
        for key, ops in (
            ("CPU", () if name in levels else BUILT),
            ("CUDA", () if name in factored else CUDA),
        ):
            has = torch._C._dispatch_has_kernel_for_dispatch_key(f"solo_attn::{name}", key)
            assert has == (op in ops), (name, key)


@needs_build
def test_reasons():
    assert select("matrix_nms", "cpu", torch.float32).name == "cpu"
    reasons = {
        ("matrix_nms", "cuda", torch.float32): "it needs CPU tensors, got cuda",
        ("matrix_nms", "cpu", torch.int32): "it has no kernels for torch.int32",
    }
    for arguments, reason in reasons.items():
        with pytest.raises(RuntimeError, match=f"matrix_nms: backend 'cpu' cannot run: {reason}"):
            select(*arguments, "cpu")
    for op in {*OPS} - {*BUILT}:
        with pytest.raises(
            RuntimeError, match=f"{op}: backend 'cpu' cannot run: {op} has no C++ kernel in this version"
        ):
            select(op, "cpu", torch.float32, "cpu")


def test_not_built(copy):
    """The reference runs, and an explicit "cpu" says why it does not."""
    (copy / "_build.json").unlink(missing_ok=True)
    done = python(f"{CALL.replace('not compiled.loaded', 'True')}\n"
                  "reasons = {c.backend: c.reason for c in solo_attn.explain('matrix_nms').choices}\n"
                  "print(reasons['cpu'])\n"
                  "print(solo_attn.matrix_nms(masks, labels, scores).shape)\n"
                  "solo_attn.matrix_nms(masks, labels, scores, backend='cpu')", copy)  # fmt: skip
    reason = "the extension is not built: a source tree without `make setup`"
    assert done.stdout.splitlines() == [reason, "torch.Size([2])"]
    assert done.stderr.splitlines()[-1].endswith(f"matrix_nms: backend 'cpu' cannot run: {reason}")


@needs_build
@pytest.mark.parametrize(
    ("wound", "call"),
    [
        ("missing", "solo_attn.matrix_nms"),
        ("garbage", "solo_attn.matrix_nms"),
        ("garbage", "torch.compile(solo_attn.matrix_nms, backend='eager')"),
    ],
)
def test_a_broken_extension_is_an_error(copy, wound, call):
    library = copy / "_C.abi3.so"
    if wound == "missing":
        library.unlink()
    else:
        library.write_bytes(b"no shared library")
    done = python(f"{CALL}\nprint(solo_attn.explain('matrix_nms'))\n{call}(masks, labels, scores)", copy)
    message = "solo_attn: its compiled extension was built (torch "
    assert f"cpu        cannot run: {message}" in done.stdout
    assert "reference  runs\n" in done.stdout, "nor is it the default"
    assert done.returncode == 1
    assert f"RuntimeError: {message}" in done.stderr
    assert "cannot be loaded into torch" in done.stderr


@needs_build
@pytest.mark.skipif(sys.platform != "linux", reason="only an ELF file says how long it is")
@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_file_cut_short_is_an_error(copy, left):
    """dlopen maps what the file says it holds, and touching what is not there is the end of the process."""
    library = copy / "_C.abi3.so"
    whole = library.read_bytes()
    library.write_bytes(whole[: int(left * len(whole))])
    done = python(f"{CALL}\nsolo_attn.matrix_nms(masks, labels, scores)", copy)
    assert done.returncode == 1, "an exception, and not a signal"
    wanted = f"expected {len(whole)} bytes, got {int(left * len(whole))}: the file was cut short"
    assert wanted in done.stderr.splitlines()[-1]


@needs_build
def test_instruction_sets():
    best = compiled.simd()
    try:
        assert compiled.simd("plain") == "plain"
        assert compiled.simd() == "plain"
        assert compiled.simd("nonsense") == compiled.simd("") == best
    finally:
        compiled.simd(best)
    code = "from solo_attn.backends import compiled; print(compiled.simd())"
    assert python(code, SOLO_ATTN_SIMD="plain").stdout.split() == ["plain"]


@needs_build
def test_the_table_of_a_whole_extension_has_no_problem():
    assert compiled.problem() is None
    assert {choice.op for choice in explain().choices if choice.backend == "cpu" and choice.chosen} == {
        *BUILT
    }


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        (["8.0", "9.0"], (9, 0), True),
        (["8.0", "9.0"], (8, 9), True),  # machine code runs on later minor versions
        (["8.0", "9.0"], (10, 0), False),  # and on no other major one
        (["8.0", "9.0+PTX"], (12, 1), True),  # PTX does
        (["8.6", "9.0+PTX"], (8, 0), False),
        (["9.0+PTX"], (8, 9), False),
        (["10.0+PTX"], (9, 0), False),
    ],
)
def test_which_gpus_the_archs_cover(archs, capability, covered):
    assert compiled.covers(archs, capability) == covered


@pytest.fixture
def gpus(monkeypatch):
    """A machine with these, as far as the choice of a backend can see."""
    facts = {"build": "cuda", "ops": {"cpu": OPS, "cuda": ["matrix_nms"]}, "archs": ["8.0", "9.0"]}

    def pretend(*capabilities):
        monkeypatch.setattr(compiled, "CONFIGURATION", facts)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        compiled.cuda_problem.cache_clear()
        return facts

    yield pretend
    compiled.cuda_problem.cache_clear()


def refusal(op="matrix_nms", device_type="cuda", dtype=torch.float32):
    with pytest.raises(RuntimeError) as caught:
        select(op, device_type, dtype, "cuda")
    return str(caught.value).removeprefix(f"{op}: backend 'cuda' cannot run: ")


def test_cuda_runs_or_says_why_not(gpus, monkeypatch):
    facts = gpus((8, 6), (9, 0))
    assert select("matrix_nms", "cuda", torch.float64).name == "cuda"
    assert refusal(op="dice_loss") == "dice_loss has no CUDA C++ kernel in this version"
    assert refusal(device_type="cpu") == "it needs CUDA tensors, got cpu"
    assert refusal(dtype=torch.int32) == "it has no kernels for torch.int32"
    gpus((9, 0), (10, 0))
    assert refusal() == (
        "cuda:1 is of compute capability 10.0, the kernels are compiled for 8.0 9.0: set "
        "SOLO_ATTN_CUDA_ARCHS and reinstall"
    )
    gpus()
    assert refusal() == "there is no CUDA GPU, or no driver"
    compiled.cuda_problem.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert refusal() == "the kernels are built for CUDA, this torch is built without it"
    monkeypatch.setitem(facts, "ops", {"cpu": OPS})
    monkeypatch.setitem(facts, "cuda", "not built: there was no CUDA toolkit")
    assert refusal() == "its kernels are not built: there was no CUDA toolkit"


@needs_build
@pytest.mark.skipif(not CUDA, reason="the extension in this tree has no CUDA kernels")
def test_it_finds_the_current_stream():
    """The function is in libtorch_cuda, which the extension must reach, though it does not demand it."""
    compiled.load()
    library = ctypes.CDLL(str(PACKAGE / "_C.abi3.so"))
    assert library.aoti_torch_get_current_cuda_stream


def test_a_source_tree_says_that_it_hides_compiled_kernels(tmp_path: Path) -> None:
    """Python started in a clone finds the clone's package first, of which nothing is compiled."""
    tree, site = tmp_path / "clone", tmp_path / "site"
    for name in ("_utils", "backends", "ops", "reference"):
        shutil.copytree(PACKAGE / name, tree / "solo_attn" / name)
    shutil.copy(PACKAGE / "__init__.py", tree / "solo_attn")
    (site / "solo_attn").mkdir(parents=True)
    for build, warned in (("cpu", True), ("none", False)):
        (site / "solo_attn" / "_build.json").write_text(json.dumps({"build": build}))
        done = subprocess.run(
            [sys.executable, "-c", "import solo_attn, solo_attn.backends; print(solo_attn.__file__)"],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(tree / "solo_attn" / "__init__.py")
        assert done.stderr.count("RuntimeWarning: solo_attn: imported from the source tree") == warned
        if warned:
            assert "Start Python in another folder, or compile the tree with: pip install" in done.stderr
