"""The sampler follows the published trajectories step by step."""
import json
import math

import pytest
import torch
from golden import GOLDEN, assert_close, needs_golden, tensors
from test_stdit3_golden import tiny

from opensora.schedulers.rf import RFLOW
from opensora.schedulers.rf.rectified_flow import RectifiedFlow, timestep_transform

pytestmark = needs_golden
RUNS, PIECES, TIMESTEPS = tensors("rflow_runs"), tensors("rflow_pieces"), tensors("rflow_timesteps")
META = json.loads((GOLDEN / "rflow.json").read_text())["runs"] if GOLDEN.exists() else {}


class RecordedText:
    """Stands in for the text encoder: the recorded embeddings, and the model's null caption."""

    def __init__(self, run: str, model, data=RUNS) -> None:
        self.run, self.model, self.data = run, model, data

    def encode(self, prompts):
        return {"y": self.data[f"{self.run}.y"], "mask": self.data[f"{self.run}.text_mask"]}

    def null(self, n):
        return self.model.y_embedder.y_embedding[None, None].repeat(n, 1, 1, 1)


class Recorder(torch.nn.Module):
    """Passes calls on and keeps what the model was given."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.z_in, self.t, self.x_mask = model, [], [], []

    def prepare(self, *args):
        return self.model.prepare(*args)

    def forward(self, x, timestep, y, mask=None, x_mask=None, fps=None, height=None, width=None):
        half = len(x) // 2
        self.z_in.append(x[:half].clone())
        self.t.append(timestep[:half].clone())
        self.x_mask.append(None if x_mask is None else x_mask[:half].clone())
        return self.model(x, timestep, y, mask, x_mask, fps, height, width)


def run_args(run: str, data=RUNS) -> dict:
    return {k.split(".")[-1]: v for k, v in data.items() if k.startswith(f"{run}.args.")}


@pytest.mark.parametrize("run", sorted(META))
def test_the_trajectory_of_every_recorded_run(run):
    meta, recorder = META[run], Recorder(tiny())
    sampler = RFLOW(meta["steps"], cfg_scale=meta["cfg_scale"],
                    use_timestep_transform=meta["use_timestep_transform"],
                    use_discrete_timesteps=meta["use_discrete_timesteps"])
    torch.manual_seed(meta["seed"])
    z = RUNS[f"{run}.z"]
    out = sampler.sample(recorder, RecordedText(run, recorder.model), z=z.clone(), prompts=[""] * len(z),
                         device="cpu", additional_args=run_args(run), mask=RUNS.get(f"{run}.mask"))
    assert_close(torch.stack(recorder.t), RUNS[f"{run}.t"], 1e-6)
    for index, expected in zip(RUNS[f"{run}.z_in_steps"].tolist(), RUNS[f"{run}.z_in"], strict=True):
        assert_close(recorder.z_in[index - 1], expected)
    if f"{run}.x_mask" in RUNS:
        assert torch.equal(torch.stack(recorder.x_mask), RUNS[f"{run}.x_mask"])
    assert_close(out, RUNS[f"{run}.z_final"])


@pytest.mark.parametrize("name", sorted(TIMESTEPS))
def test_every_recorded_list_of_timesteps(name):
    dtype, size, steps = name.rsplit(".", 2)
    height, width, frames = (torch.tensor([float(n)], dtype=getattr(torch, dtype)) for n in size.split("x"))
    flow = RectifiedFlow(use_timestep_transform=True)
    sizes = {"height": height, "width": width, "num_frames": frames}
    t = torch.cat(flow.sampling_timesteps(int(steps[1:]), 1, "cpu", sizes))
    if math.isnan(TIMESTEPS[name][0]):  # recorded fault: 2 to 16 frames
        assert torch.isfinite(t).all() and t[0] == 1000
    else:
        torch.testing.assert_close(t, TIMESTEPS[name], rtol=1e-6, atol=1e-4, check_dtype=False)


def test_the_shift_and_the_noising():
    for name in [n for n in PIECES if n.startswith(("tt.", "tt_bf16args."))]:
        kind, size, scale = name.split(".", 2)
        dtype = torch.bfloat16 if "bf16" in kind else torch.float32
        h, w, f = (torch.tensor([float(n)] * len(PIECES["t"]), dtype=dtype) for n in size.split("x"))
        out = timestep_transform(PIECES["t"], {"height": h, "width": w, "num_frames": f},
                                 scale=float(scale.removeprefix("scale")))
        if 2 <= f[0] <= 16:
            assert torch.isfinite(out).all()
        else:
            torch.testing.assert_close(out, PIECES[name], rtol=1e-6, atol=1e-4, check_dtype=False)
    noised = RectifiedFlow().add_noise(PIECES["add_noise.x0"], PIECES["add_noise.noise"],
                                       PIECES["add_noise.t"])
    assert_close(noised, PIECES["add_noise.out"])
