"""Merged models in GPTQ and AWQ: what is checked before, and what real gptqmodel writes."""

import json

import pytest

from peft_space.errors import UserError
from peft_space.export import quantize
from peft_space.export.export import export_run
from peft_space.export.quantize import COMPRESSED, compress, group_size_for
from peft_space.operations.export import ExportOptions, _export_text
from tests.engines.engines import needs_gptqmodel


@pytest.mark.parametrize("method", COMPRESSED)
def test_without_gptqmodel_nothing_is_written(method, short_run, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "missing_gptq_packages", lambda: ["gptqmodel"])
    monkeypatch.setattr("peft_space.export.export.merge", None)  # the error comes first
    with pytest.raises(UserError) as error:
        export_run(short_run, tmp_path / "out", "merged", method)
    assert error.value.code == "export.gptqmodel_missing"
    assert "gptqmodel" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("widths", "size"),
    [([0, 256, 1024], 128), ([576, 1536], 64), ([96, 256], 32), ([100, 256], 32)],
)
def test_the_group_size_is_the_largest_that_divides_all_layers(widths, size):
    assert group_size_for(widths) == size


def test_a_failure_of_gptqmodel_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "missing_gptq_packages", list)
    monkeypatch.setattr(quantize, "_GPTQMODEL_SCRIPT", "raise ValueError('no such layer')")
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError) as error:
        compress(tmp_path / "model", tmp_path / "out", "awq", 128, [[1, 2, 3]])
    assert error.value.code == "export.not_quantized"
    assert "no such layer" in str(error.value)


def test_no_path_of_this_machine_remains_in_the_export(tmp_path, monkeypatch):
    meta = {"offload_to_disk_path": "/tmp/x", "group_size": 128}
    script = (
        "import json, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[2]); out.mkdir()\n"
        "(out / 'model.safetensors').write_text('')\n"
        "(out / 'quant_log.csv').write_text('')\n"
        f"meta = {meta!r}\n"
        "config = {'quantization_config': {'quant_method': 'awq', 'meta': meta}}\n"
        "(out / 'config.json').write_text(json.dumps(config))\n"
        "(out / 'quantize_config.json').write_text(json.dumps({'meta': meta}))\n"
    )
    monkeypatch.setattr(quantize, "missing_gptq_packages", list)
    monkeypatch.setattr(quantize, "_GPTQMODEL_SCRIPT", script)
    (tmp_path / "model").mkdir()
    out = tmp_path / "out"
    compress(tmp_path / "model", out, "awq", 128, [[1, 2, 3]])
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".json", ".safetensors"]
    for path in out.glob("*.json"):
        text = path.read_text()
        assert "offload_to_disk_path" not in text
        assert "128" in text
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"


def test_the_hint_after_an_export_pushes_the_same_format():
    result = {"path": "out", "words": "", "commands": {}}
    options = ExportOptions(target="merged", dtype="awq")
    text = _export_text(result, {"run": "my-run", "options": options})
    assert text.endswith("--target merged --dtype awq")
    plain = _export_text(result, {"run": "my-run", "options": ExportOptions(target="merged")})
    assert plain.endswith("--target merged")


@pytest.mark.slow
@pytest.mark.parametrize("method", COMPRESSED)
def test_a_model_in_4_bits_answers_like_the_adapter(method, short_run, tmp_path):
    needs_gptqmodel()
    exported = export_run(short_run, tmp_path / "out", "merged", method)
    config = json.loads((exported.path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == method
    assert exported.proof.passed
    assert exported.proof.export_loss is not None
    before = exported.proof.adapter_loss
    assert before is not None
    assert exported.proof.export_loss < before + 0.2
