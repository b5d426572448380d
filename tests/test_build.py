"""The build: wheel and sdist work outside the checkout, so does "none", a failed compile fails."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from built_wheel import copy_sources

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: c++ is not there")
# Compilers on a busy machine take their time: the limit is for what hangs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = """
import sys, torch, solo_attn
from solo_attn.backends import compiled
assert solo_attn.__file__.startswith(sys.argv[1]), solo_attn.__file__
args = torch.ones(2, 3, 3, dtype=torch.bool), torch.zeros(2).long(), torch.tensor([0.9, 0.8])
for backend in ("reference", *sys.argv[2:]):
    print([round(x, 4) for x in solo_attn.matrix_nms(*args, backend=backend).tolist()])
print(compiled.CONFIGURATION["build"], compiled.loaded)
"""


def run(*command, cwd, **environment):
    # What nvcc makes of csrc/ is in the tree already; here one test compiles some of it.
    defaults = {"PYTHONPATH": "", "MAX_JOBS": "1", "SOLO_ATTN_BUILD": "cpu"}
    environment = {**os.environ, **defaults, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture
def checkout(tmp_path):
    return copy_sources(tmp_path / "checkout")


def backend(checkout, call, **environment):
    """One call of setuptools' build backend, as pip without isolation makes it."""
    code = f"from setuptools import build_meta; print(); print(build_meta.{call})"
    return run(sys.executable, "-c", code, cwd=checkout, **environment)


def build(checkout, call, **environment):
    done = backend(checkout, call, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "dist" / done.stdout.splitlines()[-1], done.stdout


def installed(wheel, folder):
    """Unpacked, which is all that installing this wheel does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    kernels = {path.name for path in (folder / "solo_attn" / "kernels").iterdir()}
    assert kernels == {path.name for path in (ROOT / "kernels").glob("*.py")}
    assert not (folder / "kernels").exists(), "another project's name"
    return folder


def check(site, *backends):
    done = run(sys.executable, "-c", RUN, str(site), *backends, cwd=site, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    *results, state = done.stdout.splitlines()
    assert results == ["[0.9, 0.1083]"] * (1 + len(backends))
    return state


@needs_compiler
def test_sdist_to_wheel(checkout, tmp_path):
    """The wheel is built from what the sdist holds, so headers that it forgot are missed."""
    sdist, _ = build(checkout, "build_sdist('dist')")
    source = tmp_path / "source"
    shutil.unpack_archive(sdist, source)
    (source,) = source.iterdir()
    assert not [*source.rglob("*.so"), *source.rglob("_build.json")]
    # At -O3, which `make setup` builds for all other tests, it takes twice as long.
    wheel, output = build(source, "build_wheel('dist')", CXXFLAGS="-O1")
    assert re.fullmatch(r"solo_attn-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    site = installed(wheel, tmp_path / "site")
    assert [path.name for path in site.rglob("*.so")] == ["_C.abi3.so"]
    facts = json.loads((site / "solo_attn" / "_build.json").read_text())
    assert f"solo-attn build: {json.dumps(facts)}" in output
    assert facts["build"] == "cpu"
    assert facts["jobs"] == "1"
    assert facts["ops"]["cpu"] == sorted(path.parent.name for path in (ROOT / "csrc").glob("*/*_cpu.cpp"))
    assert str(tmp_path) not in json.dumps(facts), "no paths of the machine that built it"
    assert check(site, "cpu") == "cpu True"


def test_nothing_compiled(checkout, tmp_path):
    wheel, output = build(checkout, "build_wheel('dist')", SOLO_ATTN_BUILD="none", CXX="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert 'solo-attn build: {"build": "none"' in output
    assert check(installed(wheel, tmp_path / "site")) == "none True"


def test_pip_installs_the_sdist(checkout, tmp_path):
    """What `pip install --no-build-isolation .` does; with isolation pip fetches torch first."""
    sdist, _ = build(checkout, "build_sdist('dist')", SOLO_ATTN_BUILD="none")
    site = tmp_path / "site"
    command = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", site)
    done = run(*map(str, command), str(sdist), cwd=tmp_path, SOLO_ATTN_BUILD="none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(site) == "none True"
    assert (site / "bin" / "solo-attn").exists()


@pytest.fixture
def little(checkout):
    """With the kernels of one op: the others take minutes, and are compiled once above."""
    for folder in (checkout / "csrc").iterdir():
        if folder.name not in ("common", "matrix_nms", "mask_iou"):
            shutil.rmtree(folder)
    (checkout / "csrc" / "mask_iou" / "mask_iou_cpu.cpp").unlink()
    return checkout


@needs_compiler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit: nvcc is not on PATH")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_cuda(little, tmp_path):
    """No GPU is needed; nvcc may be a script in a folder of its own; CPU tensors need no CUDA libraries."""
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"CUDA_HOME": "", "CUDA_PATH": "", "TORCH_CUDA_ARCH_LIST": "8.0", "PATH": path}
    settings |= {"SOLO_ATTN_BUILD": "auto", "SOLO_ATTN_CUDA_ARCHS": "9.0+PTX", "CUDA_VISIBLE_DEVICES": ""}
    wheel, output = build(little, "build_wheel('dist')", **settings)
    site = installed(wheel, tmp_path / "site")
    facts = json.loads((site / "solo_attn" / "_build.json").read_text())
    assert (facts["build"], facts["archs"]) == ("cuda", ["9.0+PTX"])
    assert facts["ops"] == {"cpu": ["matrix_nms"], "cuda": ["matrix_nms"]}
    assert (
        facts["nvcc"].split(".")[0] == facts["torch_cuda"].split(".")[0] == torch.version.cuda.split(".")[0]
    )
    assert "code=sm_90" in output
    assert "sm_80" not in output
    assert check(site, "cpu") == "cuda True"
    needed = subprocess.run(
        ["readelf", "-dW", site / "solo_attn" / "_C.abi3.so"], capture_output=True, text=True
    )
    assert "[libtorch.so]" in needed.stdout
    assert not re.findall(r"NEEDED.*(?:cuda|cudart|nvidia)", needed.stdout)


@needs_compiler
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"CUDA_HOME": "/nowhere"}, "there was no CUDA toolkit (nvcc is not on PATH, CUDA_HOME names none)"),
        ({"SOLO_ATTN_BUILD": "cpu"}, "SOLO_ATTN_BUILD=cpu"),
    ],
)
def test_without_cuda(little, settings, reason):
    _, output = build(little, "build_wheel('dist')", **{"SOLO_ATTN_BUILD": "auto", **settings})
    assert f"solo-attn build: the CUDA kernels are not built: {reason}" in output
    assert '"build": "cpu"' in output


def test_without_a_compiler(checkout, tmp_path):
    """The reference needs none; whoever asks for kernels gets the error."""
    wheel, output = build(checkout, "build_wheel('dist')", CXX="no-such-compiler", SOLO_ATTN_BUILD="auto")
    reason = "there was no C++ compiler (no-such-compiler) when it was installed"
    assert reason in output
    site = installed(wheel, tmp_path / "site")
    assert check(site) == "none True"
    done = run(sys.executable, "-c", RUN, str(site), "cpu", cwd=site, PYTHONPATH=str(site))
    assert f"cannot run: the extension is not built: {reason}" in done.stderr
    done = backend(checkout, "build_wheel('dist')", CXX="no-such-compiler", SOLO_ATTN_BUILD="cpu")
    assert done.returncode != 0


def test_nothing_compiled_forgets_what_was(checkout):
    """An editable install leaves its extension in the tree: with "none" it is not used any more."""
    package = checkout / "solo_attn"
    (package / "_C.abi3.so").write_bytes(b"of an earlier build")
    (package / "_build.json").write_text('{"build": "cpu", "ops": {"cpu": ["matrix_nms"]}}')
    build(checkout, "build_editable('dist')", SOLO_ATTN_BUILD="none")
    assert check(checkout) == "none True"


@needs_compiler
def test_editable(little):
    build(little, "build_editable('dist')")
    assert check(little, "cpu") == "cpu True"


@needs_compiler
def test_a_failed_compile_fails(little):
    (little / "csrc" / "matrix_nms" / "matrix_nms_cpu.cpp").write_text("int main( {")
    done = backend(little, "build_wheel('dist')")
    assert done.returncode != 0
    assert not [*little.glob("dist/*.whl")]
    assert "matrix_nms_cpu.cpp" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "cuda",
            "SOLO_ATTN_BUILD=cuda: there was no CUDA toolkit (nvcc is not on PATH, CUDA_HOME names none)",
        ),
        ("gpu", "SOLO_ATTN_BUILD: expected auto, cpu, cuda or none, got 'gpu'"),
    ],
)
def test_messages(checkout, value, message):
    done = backend(checkout, "build_wheel('dist')", SOLO_ATTN_BUILD=value, CUDA_HOME="/nowhere")
    assert done.returncode != 0
    assert message in done.stderr


def test_without_torch(checkout, tmp_path):
    """Built without isolation in a Python that has no torch: the message says what to do."""
    folder = tmp_path / "without"  # not the checkout, which setup.py takes off sys.path
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('no torch here')")
    done = backend(checkout, "build_wheel('dist')", PYTHONPATH=str(folder))
    assert "compiling its kernels needs torch >= 2.11 in the building Python (no torch here)" in done.stderr
