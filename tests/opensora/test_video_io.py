"""Clips go to files that play, whole or not at all, and come back as they were."""
import io
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from opensora.datasets import video_io
from opensora.datasets.video_io import read_image, read_video, save_sample

COLOURS = [(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1),
           (1, 1, 1), (-1, -1, -1), (0, 0, 0), (0.5, -0.5, 0)]


def stripes(frames: int = 5, height: int = 32, width: int = 128) -> torch.Tensor:
    """[3, T, H, W]: eight vertical stripes of known colours, in [-1, 1]."""
    columns = torch.tensor(COLOURS).repeat_interleave(width // 8, dim=0).T
    return columns[:, None, None, :].repeat(1, frames, height, 1)


def test_colours_length_and_rate_survive_the_mp4(tmp_path):
    path = save_sample(stripes(frames=7), tmp_path / "clip", fps=24)
    assert path == tmp_path / "clip.mp4"
    frames, fps = read_video(path)
    assert frames.dtype == torch.uint8 and frames.shape == (7, 32, 128, 3) and fps == 24
    expected = ((torch.tensor(COLOURS) + 1) / 2 * 255).round()
    seen = frames[3, 16, 8::16].float()
    assert (seen - expected).abs().max() <= 4


def test_the_mp4_is_neither_darker_nor_brighter(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(3, 1, 8, 8).mul(2).sub(1).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    path = save_sample(x.repeat(1, 3, 1, 1), tmp_path / "clip")
    seen = read_video(path)[0][1, 4::16, 4::16].float().mean(dim=(0, 1))
    expected = (x[:, 0, ::16, ::16] + 1).mean(dim=(1, 2)) / 2 * 255
    assert (seen - expected).abs().max() < 0.5


def test_frames_keep_their_order(tmp_path):
    levels = torch.linspace(-0.9, 0.9, 9)
    path = save_sample(levels.view(1, 9, 1, 1).repeat(3, 1, 16, 16), tmp_path / "ramp", fps=8)
    means = read_video(path)[0].float().mean(dim=(1, 2, 3))
    assert torch.allclose(means, (levels + 1) / 2 * 255, atol=3)


def test_the_mp4_is_what_browsers_play(tmp_path):
    path = save_sample(stripes(), tmp_path / "clip")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited range
    data = path.read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [8, 23.976, 29.97, 0.5])
def test_any_frame_rate_is_kept(tmp_path, fps):
    path = save_sample(stripes(frames=3), tmp_path / "clip", fps=fps)
    assert read_video(path)[1] == pytest.approx(fps, rel=1e-4)


def test_odd_sides_gain_a_copy_of_their_last_row_and_column(tmp_path):
    x = torch.full((3, 2, 33, 47), -1.0)
    x[:, :, -9:] = x[:, :, :, -9:] = 1.0
    frames, _ = read_video(save_sample(x, tmp_path / "odd"))
    assert frames.shape == (2, 34, 48, 3)
    assert frames[0, -1].min() > 240 and frames[0, :, -1].min() > 240 and frames[0, :20, :30].max() < 15


def test_one_frame_is_a_png_with_exact_pixels(tmp_path):
    x = torch.tensor([-1.0, 1.0, 0.0, 0.5]).view(1, 1, 2, 2).repeat(3, 1, 1, 1)
    path = save_sample(x, tmp_path / "still")
    assert path == tmp_path / "still.png"
    # 0 -> 127.5 + 0.5, 0.5 -> 191.25 + 0.5, cut
    assert read_image(path)[:, :, 0].tolist() == [[0, 255], [128, 191]]


def test_one_frame_can_be_forced_to_be_a_video(tmp_path):
    path = save_sample(stripes(frames=1), tmp_path / "clip", force_video=True)
    assert path.suffix == ".mp4" and len(read_video(path)[0]) == 1


def test_values_outside_the_range_are_clipped_and_the_sample_is_left_alone(tmp_path):
    x = torch.tensor([-3.0, 5.0]).view(1, 1, 1, 2).repeat(3, 1, 1, 1)
    before = x.clone()
    assert read_image(save_sample(x, tmp_path / "a"))[0, :, 0].tolist() == [0, 255]
    assert read_image(save_sample(x, tmp_path / "b", value_range=(0, 10)))[0, :, 0].tolist() == [0, 128]
    assert torch.equal(x, before)


def test_bf16_samples_and_names_with_dots_work(tmp_path):
    path = save_sample(stripes().bfloat16(), tmp_path / "new" / "a cat. score 6.5")
    assert path.name == "a cat. score 6.5.mp4" and path.is_file()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stopped_save_leaves_nothing_behind_and_keeps_the_old_file(tmp_path, monkeypatch, stop):
    old = save_sample(stripes(), tmp_path / "clip")
    data = old.read_bytes()
    to_uint8, calls = video_io._to_uint8, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise stop
        return to_uint8(*args)

    monkeypatch.setattr(video_io, "_to_uint8", failing)
    with pytest.raises(stop):
        save_sample(stripes(), tmp_path / "clip")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"] and old.read_bytes() == data


def test_samples_that_are_no_picture_are_refused(tmp_path):
    for x in (torch.zeros(3, 4, 5), torch.zeros(1, 3, 8, 8), torch.zeros(3, 0, 8, 8)):
        with pytest.raises(ValueError, match=r"allowed: \[3, T, H, W\]"):
            save_sample(x, tmp_path / "bad")
    x = stripes()
    x[0, 1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        save_sample(x, tmp_path / "bad")
    with pytest.raises(ValueError, match="save_fps=0"):
        save_sample(stripes(), tmp_path / "bad", fps=0)
    assert not list(tmp_path.iterdir())


def one_line_error(read, path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(path)
    message = str(error.value)
    assert repr(str(path)) in message and "\n" not in message
    return message


@pytest.mark.parametrize(("read", "name"), [(read_video, "a.mp4"), (read_image, "a.png")])
def test_missing_empty_and_broken_files_are_named(tmp_path, read, name):
    path = tmp_path / name
    assert "does not exist" in one_line_error(read, path)
    path.write_bytes(b"")
    assert "is empty" in one_line_error(read, path)
    path.write_bytes(b"not a picture " * 50)
    assert "cannot be read" in one_line_error(read, path)


def test_cut_off_files_are_errors(tmp_path):
    video = save_sample(stripes(), tmp_path / "clip")
    video.write_bytes(video.read_bytes()[:300])
    one_line_error(read_video, video)
    image = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:2000])
    assert "cannot be read" in one_line_error(read_image, image)


def test_grey_palette_and_turned_images_become_upright_rgb(tmp_path):
    Image.new("L", (3, 2), 100).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[100] * 3] * 3] * 2
    Image.new("RGBA", (3, 2), (9, 8, 7, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png")[0, 0].tolist() == [9, 8, 7]
    picture = Image.new("RGB", (16, 8))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter for display
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "turned.jpg").shape == (16, 8, 3)


def test_saving_prints_nothing(tmp_path):
    code = ("import sys, torch; from opensora.datasets.video_io import save_sample; "
            "save_sample(torch.zeros(3, 4, 16, 16), sys.argv[1])")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "clip")], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
