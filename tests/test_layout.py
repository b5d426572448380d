"""The house rules of CONTRIBUTING.md that a machine can hold: names, arrows, sizes, docstrings."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import solo_attn
from solo_attn.backends import OPS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "solo_attn"
KERNELS = ROOT / "kernels"  # installed as solo_attn.kernels
SOURCES = sorted([*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")])
COMPILED = sorted(path.name for path in (ROOT / "csrc").glob("*") if path.name != "common")

# A folder may import those of a lower rank. "" is solo_attn/__init__.py, which gathers the ops for everybody
# above them; training counts what evaluation measures; interop writes checkpoints.
RANK = {
    "reference": 0,
    "kernels": 0,
    "backends": 1,
    "ops": 2,
    "": 3,
    "models": 4,
    "data": 4,
    "bench": 5,
    "evaluation": 5,
    "training": 6,
    "interop": 7,
    "cli": 8,
}


def folder(module: str) -> str:
    """ "ops" for solo_attn.ops.dice_loss, "" for solo_attn itself."""
    return module.partition(".")[2].partition(".")[0]


def imports(tree: ast.AST, package: str) -> set[str]:
    """Modules of solo_attn that a file imports, anywhere in it, with relative names resolved."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            # `from .. import ops` names a folder, `from .. import __version__` does not.
            found |= {f"{module}.{alias.name}" if module == "solo_attn" else module for alias in node.names}
    ours = {name for name in found if name.split(".")[0] == "solo_attn"}
    return {name if folder(name) in RANK else "solo_attn" for name in ours}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(("solo_attn", *parts) if parts[0] == "kernels" else parts)


def upward(source: str, package: str) -> list[str]:
    mine = folder(package)
    targets = imports(ast.parse(source), package)
    return sorted(t for t in targets if folder(t) != mine and RANK[folder(t)] >= RANK[mine])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    assert folder(package_of(path)) in RANK, "a new folder needs a rank above"
    assert upward(path.read_text(), package_of(path)) == []


@pytest.mark.parametrize(
    ("package", "line", "wrong"),
    [
        ("solo_attn.ops", "from ..models import SOLO", ["solo_attn.models"]),
        ("solo_attn.ops", "from solo_attn.cli.app import main", ["solo_attn.cli.app"]),
        ("solo_attn.backends", "def f():\n    from ..ops import dice_loss", ["solo_attn.ops"]),
        ("solo_attn.data", "import solo_attn.models.head", ["solo_attn.models.head"]),
        ("solo_attn.reference", "from .. import backends", ["solo_attn.backends"]),
        ("solo_attn.kernels", "from ..reference import dice_loss", ["solo_attn.reference"]),
        ("solo_attn.reference", "from .. import __version__", ["solo_attn"]),
        ("solo_attn.ops", "from ..reference import dice_loss\nfrom ._checks import fail", []),
        ("solo_attn.training", "from .. import __version__\nfrom ..evaluation import evaluate", []),
        ("solo_attn.evaluation", "from ..training import train", ["solo_attn.training"]),
    ],
)
def test_arrows_are_seen(package, line, wrong):
    assert upward(line, package) == wrong


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "place",
    [
        "solo_attn/ops/{}.py",
        "solo_attn/reference/{}.py",
        "tests/ops/test_{}.py",
        "kernels/{}.py",
        "benchmarks/ops/bench_{}.py",
    ],
)
def test_an_op_stands_under_its_name_everywhere(op, place):
    path = ROOT / place.format(op)
    if not any(ROOT.glob(place.format("*"))):
        pytest.skip(f"there is no {place.format('<op>')} yet")
    assert path.exists()


def test_each_benchmark_lies_in_a_room():
    """A file is found by its folder; `results` holds what was measured."""
    rooms = {"ops", "end_to_end", "gpu", "peers", "report", "results"}
    folder = ROOT / "benchmarks"
    found = {path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    inside = {parts for parts in found if "__pycache__" not in parts}
    assert {parts[0] for parts in inside if len(parts) > 1} == rooms
    assert {parts[0] for parts in inside if len(parts) == 1} == {"__init__.py", "conftest.py"}


@pytest.mark.parametrize("op", COMPILED)
def test_a_compiled_op_stands_under_its_name(op):
    assert op in OPS
    assert (ROOT / "csrc" / op / f"{op}.h").exists()
    assert (ROOT / "csrc" / op / f"{op}_cpu.cpp").exists()


def test_cuda_sources_stand_under_their_op():
    """The build compiles no others, and the shim's tests run no others."""
    for path in (ROOT / "csrc").rglob("*.cu"):
        assert path.parent.name in COMPILED
        assert path.stem == f"{path.parent.name}_cuda"


def test_what_is_built_is_what_stands_there():
    path = PACKAGE / "_build.json"
    if not path.exists():
        pytest.skip("nothing is compiled in this tree")
    found = json.loads(path.read_text())
    wanted = {"cpu": COMPILED, "cuda": [op for op in COMPILED if [*(ROOT / "csrc" / op).glob("*_cuda.cu")]]}
    for backend, ops in found["ops"].items():
        assert ops == wanted[backend], "csrc/ changed since: make setup"


def test_nothing_else_stands_there():
    for place, others in (("ops", {"bit_masks"}), ("reference", set())):
        stems = {path.stem for path in (PACKAGE / place).glob("[!_]*.py")}
        assert stems == set(OPS) | others


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_public(op):
    assert op in solo_attn.__all__
    assert op in solo_attn.ops.__all__
    assert getattr(solo_attn, op).__module__ == f"solo_attn.ops.{op}"


def test_files_stay_short():
    sources = [*SOURCES, *(ROOT / "csrc").rglob("*.*")]
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_the_core_stands_alone():
    """Taking one op into another project must not pull in what trains, evaluates and draws."""
    code = "import sys, torch, torchvision; before = {*sys.modules}; import solo_attn; "
    code += "print({name.partition('.')[0] for name in {*sys.modules} - before})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    came = ast.literal_eval(done.stdout)
    assert "solo_attn" in came
    extras = {
        "triton",
        "lightning",
        "pytorch_lightning",
        "pycocotools",
        "matplotlib",
        "tensorboard",
        "yaml",
        "PIL",
        "typer",
    }
    assert not came & extras


@pytest.mark.parametrize("name", [name for name in solo_attn.__all__ if not name.startswith("_")])
def test_public_names_are_documented(name):
    thing = getattr(solo_attn, name)
    doc = thing.__doc__ or ""
    assert len(doc.splitlines()) > 1, "a docstring of its own, not a NamedTuple's"
    parameters = thing._fields if inspect.isclass(thing) else inspect.signature(thing).parameters
    for parameter in parameters:
        assert f"{parameter}:" in doc or f"{parameter}," in doc, f"{name} does not say what {parameter} is"
    if inspect.isclass(thing):
        for method, member in inspect.getmembers(thing, inspect.isroutine):
            if method in vars(thing) and not method.startswith("_"):
                assert member.__doc__, f"{name}.{method}"
    else:
        assert "Raises:" in doc


def test_the_version_is_one():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{solo_attn.__version__}"' in text
