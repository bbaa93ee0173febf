"""Times on several ranks: measured by the benchmark, foretold from the times of one."""
import importlib
import json
import sys

import pytest
from torchrun import ROOT, torchrun

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def predict(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("predict_scaling")


@pytest.fixture
def size(predict):
    return predict.Size.of(json.loads(predict.MEASURED.read_text()), "480p")


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory) -> list[dict]:
    """One rank, two along sp, and two along cfg."""
    folder = tmp_path_factory.mktemp("scaling")
    config = folder / "cached.py"
    config.write_text(f'_base_ = "{tiny}/sample.py"\nadacache = dict(codebook=[(1e9, 2)], forecast=2,\n'
                      '    probes=("temporal_blocks.1.attn",))\n')
    torchrun(2, SCRIPTS / "benchmark.py", config, "--scaling", "--repeats", "1", "--json",
             folder / "out.json")
    return json.loads((folder / "out.json").read_text())["scaling"]


def test_one_rank_is_compared_with_all_ways_to_share_a_video(measured):
    assert [(row["ranks"], row["cfg_size"], row["sp_size"]) for row in measured] == [
        (1, 1, 1), (2, 1, 2), (2, 2, 1)]
    assert all(row[f"{stage}_seconds"] > 0 for row in measured for stage in ("plain", "cached", "decode"))


def test_the_bytes_that_are_foretold_are_those_that_are_counted(measured, predict):
    tiny_size = predict.Size(
        latent=(5, 4, 6), frames=17, pixels=(32, 48), depth=2, hidden_size=32, num_heads=2, bytes_per_value=4,
        computed_step=1, reused_step=1, decode_time=1, decode_frames=1)
    assert [measured[0][kind] for kind in ("computed_step_bytes", "reused_step_bytes")] == [0, 0]
    sp = measured[1]
    output = predict.output_bytes(tiny_size, 1, 2)
    assert sp["reused_step_bytes"] == output
    assert sp["computed_step_bytes"] == output + predict.step_bytes(tiny_size, 1, 2)
    cfg = measured[2]
    assert cfg["reused_step_bytes"] == predict.prediction_bytes(tiny_size, 2)
    assert predict.step_bytes(tiny_size, 2, 1) == 0
    assert cfg["computed_step_bytes"] == cfg["reused_step_bytes"] + predict.forecast_bytes(tiny_size, 2, 1)
    assert {row["decode_bytes"] for row in (sp, cfg)} == {predict.decode_bytes(tiny_size, 2)}
    assert {row["decision_bytes"] for row in (sp, cfg)} == {predict.DECISION}


def test_one_gpu_takes_what_was_measured_and_more_take_less(predict, size):
    links = predict.LINKS["NVIDIA H200"]
    alone = predict.seconds(size, 12, 1, 1, links)
    assert alone == pytest.approx(12 * 0.406 + 18 * 0.00134 + 0.152 + 1.295)
    times = [predict.best(size, 12, gpus, links)[0] for gpus in predict.GPUS]
    assert times == sorted(times, reverse=True)
    # never faster than its share of the work, and never without what it sends
    assert all(alone / gpus <= each for gpus, each in zip(predict.GPUS, times, strict=True))


def test_what_crosses_nodes_goes_by_the_slower_link(predict):
    """Nodes of 8: sixteen neighbours see 8 of 15 others across; two ranks eight apart are on two nodes."""
    links = predict.Links(inside=10.0, across=1.0, wait_inside=0.0, wait_across=100.0)
    assert predict.sending(30.0, 1, 8, links) == 3
    assert predict.sending(30.0, 2, 16, links) == pytest.approx(14 / 10 + 16 / 1 + 2 * 100)
    assert predict.sending(30.0, 1, 2, links, apart=4) == 3
    assert predict.sending(30.0, 1, 2, links, apart=8) == 30 + 100


def test_the_paper_s_rows_are_foretold_within_a_tenth(predict, size):
    lines = predict.beside_paper(size)[2:]
    rows = [[float(cell) for cell in line.strip("| ").split(" | ")] for line in lines]
    assert [row[0] for row in rows] == [1, 2, 4, 8]
    for _, plain, model, _, adacache, model_cached, _ in rows:
        assert model == pytest.approx(plain, rel=0.1) and model_cached == pytest.approx(adacache, rel=0.1)


def test_the_document_shows_what_the_script_prints(predict, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict_scaling.py"])
    assert predict.main() == 0
    document = (ROOT / "docs/scaling.md").read_text()
    assert all(table in document for table in capsys.readouterr().out.strip().split("\n\n"))


@pytest.mark.parametrize("change, message", [
    ({"card": "H7"}, "card='H7'; allowed: NVIDIA H200, A100"),
    ({"sizes": {}}, r"sizes=[]; allowed: with 480p")])
def test_what_foretells_nothing_is_refused(predict, tmp_path, monkeypatch, capsys, change, message):
    (tmp_path / "card.json").write_text(json.dumps({**json.loads(predict.MEASURED.read_text()), **change}))
    monkeypatch.setattr(sys, "argv", ["predict_scaling.py", str(tmp_path / "card.json")])
    assert predict.main() == 2
    assert message in capsys.readouterr().err


def test_scaling_of_one_process_is_refused(tiny, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [
        "benchmark.py", str(tiny / "sample.py"), "--adacache", "fast", "--scaling"])
    assert importlib.import_module("benchmark").main() == 2
    assert "--scaling with 1 process; allowed: 2 or more" in capsys.readouterr().err
