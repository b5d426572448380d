"""The house rules of CONTRIBUTING.md that a machine can hold: names, arrows, sizes, docstrings."""

import ast
import inspect
import json
import re
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
# above them. Contact sheets are drawn by what draws results: inspection stands above evaluation.
RANK = {
    "_utils": 0,
    "reference": 1,
    "kernels": 1,
    "backends": 2,
    "ops": 3,
    "": 4,
    "data": 5,
    "formats": 6,
    "models": 6,
    "evaluation": 7,
    "inspection": 8,
    "bench": 9,
    "export": 9,
    "interop": 9,
    "training": 9,
    "predictor": 10,
    "bulk": 11,
    "cli": 12,
    "__main__": 13,
}


def folder(module: str) -> str:
    """ "ops" for solo_attn.ops.dice_loss, "" for solo_attn itself."""
    return module.partition(".")[2].partition(".")[0]


def names(tree: ast.AST, package: str) -> set[str]:
    """What a file imports of solo_attn, anywhere in it, each thing by its full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # importlib's
            found |= {node.value} if re.fullmatch(r"solo_attn(\.\w+)+", node.value) else set()
    return {name for name in found if name.split(".")[0] == "solo_attn"}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(("solo_attn", *parts[1:]) if parts[0] != "kernels" else ("solo_attn", *parts))


def home(path: Path) -> str:
    """The folder that a file counts to; one beside the folders is its own."""
    alone = path.parent == PACKAGE and path.stem != "__init__"
    return path.stem if alone else folder(package_of(path))


def upward(source: str, package: str, mine: str | None = None) -> list[str]:
    """What is imported of folders that stand higher, or beside; the version is a constant for all.

    solo_attn/__init__.py names the predictor, which is imported where somebody asks for it.
    """
    mine = folder(package) if mine is None else mine
    allowed = {"solo_attn.__version__"} | ({"solo_attn.predictor.load"} if mine == "" else set())
    targets = {name for name in names(ast.parse(source), package) if name not in allowed}
    places = {name: folder(name) if folder(name) in RANK else "" for name in targets}
    return sorted(name for name, place in places.items() if place != mine and RANK[place] >= RANK[mine])


def private(source: str, package: str) -> list[str]:
    """Modules and names with a leading underscore that another folder keeps; `_utils` is for all."""
    tree = ast.parse(source)
    found = names(tree, package)
    others = {name.rpartition(".")[2]: name for name in found if folder(name) != folder(package)}
    found |= {
        f"{others[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in others
    }
    return sorted(
        name
        for name in found
        if folder(name) != folder(package)
        and any(re.match(r"_(?!_)", part) for part in name.removeprefix("solo_attn._utils").split("."))
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    assert home(path) in RANK, "a new folder needs a rank above"
    assert upward(path.read_text(), package_of(path), home(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_keeps_what_is_private_to_it(path):
    assert private(path.read_text(), package_of(path)) == []


def test_nothing_runs_the_reference_but_the_ops():
    """Each op falls back to its own; what the reference shares with others stands in _utils."""
    users = {
        path.relative_to(ROOT).as_posix(): {name for name in found if folder(name) == "reference"}
        for path in SOURCES
        if home(path) != "reference" and (found := names(ast.parse(path.read_text()), package_of(path)))
    }
    assert {path: found for path, found in users.items() if found} == {
        f"solo_attn/ops/{op}.py": {f"solo_attn.reference.{op}"} for op in OPS
    }


@pytest.mark.parametrize(
    ("package", "line", "wrong"),
    [
        ("solo_attn.ops", "from ..models import SOLO", ["solo_attn.models.SOLO"]),
        ("solo_attn.ops", "from solo_attn.cli.app import app", ["solo_attn.cli.app.app"]),
        ("solo_attn.backends", "def f():\n    from ..ops import dice_loss", ["solo_attn.ops.dice_loss"]),
        ("solo_attn.data", "import solo_attn.models.head", ["solo_attn.models.head"]),
        ("solo_attn.reference", "from .. import backends", ["solo_attn.backends"]),
        ("solo_attn.kernels", "from ..reference import dice_loss", ["solo_attn.reference.dice_loss"]),
        ("solo_attn.reference", "from .. import grid_attention", ["solo_attn.grid_attention"]),
        ("solo_attn.reference", "importlib.import_module('solo_attn.ops')", ["solo_attn.ops"]),
        ("solo_attn._utils", "from ..ops import dice_loss", ["solo_attn.ops.dice_loss"]),
        ("solo_attn.interop.mmdet", "from ...training import train", ["solo_attn.training.train"]),
        ("solo_attn.formats", "from ..models import SOLO", ["solo_attn.models.SOLO"]),
        ("solo_attn.inspection", "from ..training import Config", ["solo_attn.training.Config"]),
        ("solo_attn.evaluation", "from ..training import train", ["solo_attn.training.train"]),
        ("solo_attn.ops", "from ..reference import dice_loss\nfrom ._checks import fail", []),
        ("solo_attn.training", "from .. import __version__\nfrom ..evaluation import evaluate", []),
        ("solo_attn._utils", "from .. import __version__", []),
        ("solo_attn.reference", "from .._utils.checks import fail", []),
    ],
)
def test_arrows_are_seen(package, line, wrong):
    assert upward(line, package) == wrong


@pytest.mark.parametrize(
    ("package", "line", "wrong"),
    [
        ("solo_attn.formats", "from ..data._files import replacing", ["solo_attn.data._files.replacing"]),
        ("solo_attn.models", "from ..ops import _library", ["solo_attn.ops._library"]),
        ("solo_attn.cli", "from ..data.images import _tile_bits", ["solo_attn.data.images._tile_bits"]),
        (
            "solo_attn.cli",
            "from ..data import images\nimages._tile_bits()",
            ["solo_attn.data.images._tile_bits"],
        ),
        ("solo_attn.ops", "import_module('solo_attn.kernels._launch')", ["solo_attn.kernels._launch"]),
        ("solo_attn.ops", "from ._checks import check_size\nfrom .bit_masks import _words", []),
        ("solo_attn.data", "from .._utils.files import replacing\nfrom .. import __version__", []),
        ("solo_attn.data", "from .._utils.files import _to_disk", ["solo_attn._utils.files._to_disk"]),
    ],
)
def test_what_is_private_is_seen(package, line, wrong):
    assert private(line, package) == wrong


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
    for place, others in (("ops", {"bit_masks", "mask_factors"}), ("reference", set())):
        stems = {path.stem for path in (PACKAGE / place).glob("[!_]*.py")}
        assert stems == set(OPS) | others


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_public(op):
    assert op in solo_attn.__all__
    assert op in solo_attn.ops.__all__
    assert getattr(solo_attn, op).__module__ == f"solo_attn.ops.{op}"


LONGEST, SHORTEST = 350, 30
SHORT = {
    f"solo_attn/reference/{op}.py" for op in ("matrix_nms", "upsample_add")
}  # an op has its name in every folder


def test_files_stay_short():
    sources = [*SOURCES, *(ROOT / "csrc").rglob("*.*")]
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}


def test_a_file_is_worth_looking_for():
    sources = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources}
    assert {name for name, count in lines.items() if count < SHORTEST} == SHORT


TESTS = ROOT / "tests"
FOLDERS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
# tests/ops compares every op with its reference; the others: benchmarks, pages, GPUs, what is shared.
TESTED_ELSEWHERE = {"reference"}
OTHER_TESTS = {"benchmarks", "tools", "docs", "gpu", "kernels", "helpers", "cuda_shim", "regressions"}


def test_tests_lie_as_the_package_does():
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders - OTHER_TESTS == FOLDERS - TESTED_ELSEWHERE
    assert {path.name for path in TESTS.iterdir() if path.is_dir()} - {
        "__pycache__",
        ".benchmarks",
    } <= folders | OTHER_TESTS


def test_what_tests_share_is_a_helper():
    files = [
        path for path in TESTS.rglob("*.py") if path.parent not in (TESTS / "helpers", TESTS / "cuda_shim")
    ]
    others = {path.relative_to(TESTS).as_posix() for path in files if not path.name.startswith("test_")}
    assert {name for name in others if Path(name).name != "conftest.py"} == {"gpu/run.py"}
    borrowed = re.compile(r"^\s*(?:from|import) (test_\w+|conftest)", flags=re.MULTILINE)
    far = [
        f"{path.name} borrows of {stem}"
        for path in files
        for stem in borrowed.findall(path.read_text())
        if stem == "conftest" or not path.with_name(f"{stem}.py").exists()
    ]
    assert far == [], "what tests of several folders share is a helper"


def test_no_two_modules_of_the_tests_have_one_name():
    """pytest imports them by their stems, which also lie beside the helpers on the path."""
    stems = [path.stem for path in TESTS.rglob("*.py") if path.name not in ("conftest.py", "__init__.py")]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []


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
        "rich",
    }
    assert not came & extras


@pytest.mark.parametrize("name", [name for name in solo_attn.__all__ if not name.startswith("_")])
def test_public_names_are_documented(name):
    thing = getattr(solo_attn, name)
    doc = thing.__doc__ or ""
    assert len(doc.splitlines()) > 1, "a docstring of its own, not a NamedTuple's"
    for parameter in inspect.signature(thing).parameters:
        assert f"{parameter}:" in doc or f"{parameter}," in doc, f"{name} does not say what {parameter} is"
    if inspect.isclass(thing):
        for method, member in inspect.getmembers(thing, inspect.isroutine):
            if method in vars(thing) and not method.startswith("_"):
                assert member.__doc__, f"{name}.{method}"
    else:
        assert "Raises:" in doc


def test_contributors_find_every_folder():
    """In the tree of CONTRIBUTING.md; of the package, each of its folders."""
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    folders = {name.partition("/")[0] for name in tracked if "/" in name} | FOLDERS
    assert {name for name in folders if not re.search(rf"(^|\s){re.escape(name)}/", tree)} == set()


def test_the_version_stands_in_one_place():
    """The build reads it from solo_attn/__init__.py, as everybody does."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", solo_attn.__version__)
    pattern = re.compile(rf"\b{re.escape(solo_attn.__version__)}\b")
    places = [PACKAGE, KERNELS, ROOT / "setup.py", ROOT / "pyproject.toml"]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))]
    assert [path.name for path in files if pattern.search(path.read_text())] == ["__init__.py"]
