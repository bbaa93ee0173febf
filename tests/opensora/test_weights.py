"""Checkpoints of other programs load through the same door."""
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from opensora.utils.weights import load_weights


def save_bin(tensors, path):
    torch.save(tensors, path)


@pytest.mark.parametrize("index, shard, save", [
    ("pytorch_model.bin.index.json", "pytorch_model-{:05d}.bin", save_bin),
    ("model.safetensors.index.json", "model-{:05d}.safetensors", save_file),
])
def test_what_a_booster_saved_in_shards_loads(tmp_path, index, shard, save):
    """ColossalAI's layout: shards and their index in FOLDER/model, beside the optimiser's."""
    model, saved = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)) for _ in range(2))
    folder, state = tmp_path / "epoch0-global_step10" / "model", saved.state_dict()
    folder.mkdir(parents=True)
    (tmp_path / "epoch0-global_step10" / "optimizer").mkdir()
    files = {name: shard.format(1 + name.startswith("1.")) for name in state}
    for file in set(files.values()):
        save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 52}, "weight_map": files}))
    load_weights(model, str(tmp_path / "epoch0-global_step10"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
