"""References become pixel tensors of the clip's size, cover it, and are encoded one by one."""
import numpy as np
import pytest
import torch
from PIL import Image

from opensora.datasets.references import (
    collect_references_batch,
    covering_size,
    read_from_path,
    read_references,
)
from opensora.datasets.video_io import save_sample


class HalvingVae:
    """Latents are the pixels at every other row and column; remembers what it was given."""

    device, dtype = torch.device("cpu"), torch.bfloat16

    def __init__(self):
        self.seen = []

    def encode(self, x):
        self.seen.append((tuple(x.shape), x.dtype))
        return x[..., ::2, ::2]


@pytest.fixture
def files(tmp_path):
    """red.png (20 x 30), thirds.png (20 x 60: red, green, blue), clip.mp4 (5 frames, darker to brighter)."""
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    thirds = np.zeros((20, 60, 3), dtype=np.uint8)
    for i in range(3):
        thirds[:, 20 * i : 20 * (i + 1), i] = 255
    Image.fromarray(thirds).save(tmp_path / "thirds.png")
    levels = torch.linspace(-0.8, 0.8, 5).view(1, 5, 1, 1).expand(3, 5, 32, 64)
    save_sample(levels, tmp_path / "clip")
    return tmp_path


def test_an_image_is_one_frame_from_minus_one_to_one(files):
    x = read_from_path(files / "red.png", (16, 24))
    assert x.shape == (3, 1, 16, 24) and x.dtype == torch.float32
    assert torch.equal(x[:, 0, 5, 5], torch.tensor([1.0, -1.0, -1.0]))


def test_the_middle_of_a_too_wide_picture_stays(files):
    x = read_from_path(files / "thirds.png", (20, 20))  # no scaling: columns 20 ... 39, the green third
    assert torch.equal(x[:, 0], torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1).expand(3, 20, 20))


def test_pictures_are_scaled_to_cover_never_stretched():
    assert covering_size((20, 60), (40, 40)) == (40, 120)  # wider than wanted: the height fits
    assert covering_size((60, 20), (40, 40)) == (120, 40)
    assert covering_size((720, 1280), (480, 854)) == (480, 854)  # 853.3 wide would leave a gap
    assert covering_size((480, 854), (144, 256)) == (144, 256)


def test_an_odd_surplus_is_cut_as_published(tmp_path):
    columns = np.arange(23, dtype=np.uint8) * 10
    Image.fromarray(np.broadcast_to(columns[None, :, None], (20, 23, 3)).copy()).save(tmp_path / "a.png")
    x = read_from_path(tmp_path / "a.png", (20, 20))  # surplus 3: round(1.5) = 2 columns go on the left
    assert ((x[0, 0, 0, 0] + 1) / 2 * 255).round() == 20


def test_a_video_keeps_its_frames_and_their_order(files):
    x = read_from_path(files / "clip.mp4", (16, 16))
    assert x.shape == (3, 5, 16, 16)
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.linspace(-0.8, 0.8, 5), atol=0.03)


def test_videos_and_images_may_be_mixed(files):
    refs = read_references(f"{files}/red.png; {files}/clip.mp4", (16, 24))
    assert [tuple(r.shape) for r in refs] == [(3, 1, 16, 24), (3, 5, 16, 24)]
    assert read_references("", (16, 24)) == read_references(None, (16, 24)) == []


def test_each_reference_of_each_video_is_encoded_alone(files):
    vae = HalvingVae()
    red, clip = f"{files}/red.png", f"{files}/clip.mp4"
    batch = collect_references_batch([f"{red};{clip}", "", red], vae, (16, 24))
    shapes = [[tuple(z.shape) for z in refs] for refs in batch]
    assert shapes == [[(3, 1, 8, 12), (3, 5, 8, 12)], [], [(3, 1, 8, 12)]]
    assert vae.seen[1] == ((1, 3, 5, 16, 24), torch.bfloat16)


@pytest.mark.parametrize("name", ["missing.png", "notes.txt", "", "empty.mp4"])
def test_a_bad_reference_is_named_before_anything_is_encoded(files, name):
    (files / "notes.txt").write_text("hello")
    (files / "empty.mp4").touch()
    vae = HalvingVae()
    path = f"{files}/red.png;{files / name if name else ''}"
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        collect_references_batch([f"{files}/red.png", path], vae, (16, 16))
    message = str(error.value)
    assert (name or path) in message and message.startswith("reference_path") and "\n" not in message
    assert not vae.seen
