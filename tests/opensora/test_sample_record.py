"""A record never stands beside the video of another run."""
from types import SimpleNamespace

import pytest
import torch

from opensora.utils import sample_record


@pytest.mark.parametrize("failing", ["write_whole", "save_sample"])
def test_what_ends_amid_overwriting_leaves_no_pair_of_old_and_new(tmp_path, monkeypatch, failing):
    request = SimpleNamespace(file=tmp_path / "sample_0000.png")
    sample = SimpleNamespace(video=torch.zeros(3, 1, 16, 16))
    sample_record.save_with_record(sample, request, 24, {"prompt": "old"})
    assert sample_record.is_finished(request.file)
    ends = []

    def killed(*args, **options):
        ends.append([path.name for path in tmp_path.iterdir()])
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_record, failing, killed)
    with pytest.raises(KeyboardInterrupt):
        sample_record.save_with_record(sample, request, 24, {"prompt": "new"})
    assert ends == [["sample_0000.json"]]  # what a kill would have left: no finished sample
    assert not sample_record.is_finished(request.file)
