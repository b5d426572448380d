"""Files of every head in their runtimes, beside the model; what they say, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_export import agree, exportable
from torch.export import ExportedProgram

from solo_attn._utils.errors import MissingExtraError
from solo_attn.export import FixedProgram, Found, export_model, files, load_exported, traced
from solo_attn.models import SOLO, CheckpointError, ModelInfo, save_model, solo

onnx = pytest.importorskip("onnx", reason='the extra "export" is not installed')
onnxruntime = pytest.importorskip("onnxruntime", reason='the extra "export" is not installed')

KINDS = [
    ("solo", "gated"),
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in (
            ("solov2", "literal"),
            ("solov2_light", None),
            ("decoupled", None),
            ("decoupled_light", None),
        )
    ),
]
NAMES, IDS = ["cell", "Zelle", "細胞"], [3, 1, 2]
K = 60  # enough for these models, and too few where every score is high
BIAS = "head.category_output.bias"
Write = Callable[..., tuple[SOLO, Path]]


def noise(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """`export_model` of a model whose backbone no checkpoint names, each traced once: that takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    programs: dict[tuple[str, str | None], tuple[SOLO, ExportedProgram]] = {}

    def written(kind: tuple[str, str | None], ending: str, compiled: bool = False) -> tuple[SOLO, Path]:
        if kind not in programs:
            model = exportable(*kind)
            programs[kind] = model, traced(model, K)
        model, program = programs[kind]
        out = folder / kind[0] / f"{'compiled' if compiled else 'model'}{ending}"
        if not out.exists():
            with pytest.MonkeyPatch.context() as patch:
                info = ModelInfo({"num_classes": 3}, NAMES, IDS, {})
                patch.setattr(files, "load_model", lambda _: (model, info))
                patch.setattr(files, "traced", lambda *_: program)
                export_model("any.ckpt", out, candidates=K, compiled=compiled)
        return model, out

    return written


def check(model: SOLO, file: Path) -> None:
    """One file: batches of one to three, three sizes, sides of one unit, images smaller than the batch."""
    exported, info = load_exported(file)
    assert (info.class_names, info.category_ids) == (NAMES, IDS)
    assert exported.settings.as_dict() == model.settings.as_dict()
    for batch in (
        [noise(3, 64, 96)],
        [noise(3, 128, 64), noise(3, 120, 64), noise(3, 128, 50)],
        [noise(3, 20, 100), noise(3, 10, 90)],
    ):
        agree(exported.predict(batch), model.predict(batch))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_onnx_of_every_head(kind: tuple[str, str | None], write: Write) -> None:
    model, file = write(kind, ".onnx")
    check(model, file)
    content = onnx.load(file)
    onnx.checker.check_model(content)
    assert [(x.domain, x.version) for x in content.opset_import] == [("", 18)]
    assert {node.domain for node in content.graph.node} == {""}
    assert not content.functions
    (images,) = content.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, dims) == ("images", ["batch", 3, "height", "width"])
    assert [x.name for x in content.graph.output] == list(Found._fields)


def test_what_a_file_says(write: Write) -> None:
    _, file = write(("solo", "gated"), ".onnx")
    told = {x.key: json.loads(x.value) for x in onnx.load(file).metadata_props}
    assert (told["class_names"], told["category_ids"], told["candidates"]) == (NAMES, IDS, K)
    assert (told["min_size"], told["max_size"], told["tile"]) == (64, 128, None)
    assert {"version", "image_mean", "image_std", "percentiles", "score_threshold", "tile_overlap"} <= {*told}


@pytest.mark.parametrize(("bias", "some"), [(-99.0, False), (99.0, True)])
def test_nothing_found_and_too_much_in_onnxruntime(bias: float, some: bool, write: Write) -> None:
    """Of the same file with another bias: the score of every cell is 0, or 1 and no smaller than another."""
    model, file = write(("solo", "gated"), ".onnx")
    program, content = FixedProgram(model, K), onnx.load(file)
    torch.nn.init.constant_(program.get_parameter(BIAS), bias)
    (stored,) = (x for x in content.graph.initializer if x.name == BIAS)
    stored.CopyFrom(onnx.numpy_helper.from_array(program.get_parameter(BIAS).numpy(), BIAS))
    images = noise(2, 3, 64, 96)
    session = onnxruntime.InferenceSession(content.SerializeToString())
    found = Found(*map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
    expected = Found(*program(images))
    assert found.masks.shape == (2, 100, 16, 24)
    assert bool(found.left_out.all()) == bool(found.count.all()) == some
    if not some:
        assert not any(x.any() for x in found)
    assert found.left_out.equal(expected.left_out)


def test_a_missing_extra_is_found_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"expected onnxscript to be installed.*\[export\]"):
        export_model(tmp_path / "none.ckpt", tmp_path / "model.onnx")
    with pytest.raises(CheckpointError):
        export_model(tmp_path / "none.ckpt", tmp_path / "model.pt2")


def test_openvino_reads_the_file_as_it_is(write: Write) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, file = write(("solo", "gated"), ".onnx")
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((1, 3, 64, 96), (3, 3, 128, 64)):
        images, found = noise(*size), compiled(noise(*size).numpy())
        expected = Found(*FixedProgram(model, K)(images))
        assert (torch.from_numpy(found["scores"]) - expected.scores).abs().max() < 1e-4
        assert torch.from_numpy(found["labels"]).equal(expected.labels)
        assert torch.from_numpy(found["count"]).equal(expected.count)
        differ = torch.from_numpy(found["masks"]) > 0.5
        assert (differ != (expected.masks > 0.5)).float().mean() < 1e-3


def test_a_program_of_torch(write: Write) -> None:
    check(*write(("solo", "gated"), ".pt2"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_aotinductor_compiles(write: Write) -> None:
    check(*write(("solo", "gated"), ".pt2", compiled=True))


def test_what_is_refused(tmp_path: Path) -> None:
    for out, changes, message in (
        ("model.pth", {}, "expected OUT to end with .onnx or .pt2, got model.pth"),
        ("model.onnx", {"compiled": True}, "expected OUT to end with .pt2 where it is compiled"),
        ("model.onnx", {"candidates": 0}, "expected candidates to be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=f"^export: {message}"):
            export_model("any.ckpt", out, **changes)
    with pytest.raises(CheckpointError, match="which is not there"):
        export_model(tmp_path / "none.ckpt", tmp_path / "model.onnx")
    for name, content in (
        ("a.onnx", b"no model"),
        ("a.pt2", b"no archive"),
        ("b.pt2", b"PK\5\6" + bytes(18)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="to be written by solo-attn export"):
            load_exported(tmp_path / name)
    with pytest.raises(CheckpointError, match="which is not there"):
        load_exported(tmp_path / "none.onnx")
    sizes = {"fpn_channels": 32, "head_channels": 32, "num_convs": 1, "num_grids": (4, 3, 2, 2, 2)}
    bent = solo(1, backbone="resnet18", deformable="last", **sizes)
    save_model(bent, ModelInfo(bent.config, ["a"], [1], {}), tmp_path / "bent.ckpt")
    with pytest.raises(ValueError, match="to be a model without deformable convolutions"):
        export_model(tmp_path / "bent.ckpt", tmp_path / "model.onnx")
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".pt2", ".ckpt"}
    assert not (tmp_path / "model.onnx").exists()
