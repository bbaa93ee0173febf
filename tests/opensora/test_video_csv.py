"""Captioned videos from a CSV: frames, captions, crops that a resumed run sees again, bad rows by line."""
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from opensora.datasets.bucket import VariableVideoBatchSampler
from opensora.datasets.clip_reader import read_clip
from opensora.datasets.video_csv import VariableVideoTextDataset, VideoTextDataset, cover_and_crop
from opensora.datasets.video_io import read_video
from opensora.registry import DATASETS, build_module

SIZED = "path,text,num_frames,height,width"
LEVELS = 6  # frame number i is grey of level 6 * i


def write_video(path: Path, frames: int = 30, height: int = 32, width: int = 48, rate: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": "8", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(frames):
            pixels = np.full((height, width, 3), LEVELS * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_numbers(video: torch.Tensor) -> list[int]:
    """Which frames of `write_video` [3, T, H, W] shows."""
    return ((video.mean(dim=(0, 2, 3)) + 1) * 127.5 / LEVELS).round().int().tolist()


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def one_video(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4")
    return write_csv(tmp_path, "path,text", "a.mp4,a cat")


@pytest.fixture
def sized(tmp_path: Path) -> Path:
    """Two wide videos of 30 frames and two square images."""
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name)
    for name in ("c.png", "d.jpg"):
        Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / name)
    return write_csv(tmp_path, "path,text,num_frames,height,width,aspect_ratio,resolution,fps",
                     "a.mp4,a cat,30,160,284,0.56,45440,24", "b.mp4,a dog,30,160,284,0.56,45440,24",
                     "c.png,a bird,1,200,200,1.0,40000,", "d.jpg,a fish,1,200,200,1.0,40000,")


def test_the_reader_gives_just_the_frames_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    for first in range(30):  # key frames lie at 0, 8, 16, 24: every way to enter the file
        frames, fps = read_clip(path, lambda n, first=first: range(first, n, 3))
        assert frames.dtype == torch.uint8 and frames.shape[1:] == (32, 48, 3) and fps == 24
        shown = (frames.float().mean(dim=(1, 2, 3)) / LEVELS).round().int().tolist()
        assert shown == list(range(first, 30, 3))
    assert torch.equal(read_clip(path, range)[0], read_video(path)[0])  # as bright as references are


def test_an_item_is_a_video_with_its_caption_and_sizes(one_video: Path) -> None:
    config = dict(type="VideoTextDataset", data_path=str(one_video), num_frames=5, image_size=(16, 16))
    dataset = build_module(config, DATASETS)
    item = dataset[0]
    assert len(dataset) == 1
    assert item["video"].shape == (3, 5, 16, 16) and item["video"].dtype == torch.float32
    numbers = frame_numbers(item["video"])
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    del item["video"]
    assert item == {"text": "a cat", "num_frames": 5, "height": 16, "width": 16, "ar": 1.0, "fps": 24.0}


def test_skipped_frames_lower_the_frame_rate(one_video: Path) -> None:
    item = VideoTextDataset(one_video, num_frames=4, frame_interval=3, image_size=(16, 16))[0]
    numbers = frame_numbers(item["video"])
    assert np.diff(numbers).tolist() == [3, 3, 3] and item["fps"] == 8.0


def test_a_clip_may_be_the_whole_video_and_no_longer(one_video: Path) -> None:
    whole = VideoTextDataset(one_video, num_frames=30, image_size=(16, 16))
    assert frame_numbers(whole[0]["video"]) == list(range(30))
    skipping = VideoTextDataset(one_video, num_frames=10, frame_interval=3, image_size=(16, 16))
    assert len(frame_numbers(skipping[0]["video"])) == 10  # 9 * 3 + 1 = 28 frames
    with pytest.raises(ValueError, match="data.csv line 2: cannot use '.*a.mp4': it has 30 of the 31 frames"):
        VideoTextDataset(one_video, num_frames=31, image_size=(16, 16))[0]


def test_crops_change_with_seed_epoch_and_index_only(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    path = write_csv(tmp_path, "path,text", *["a.mp4,a cat"] * 6)

    def starts(seed: int, epoch: int, order: list[int]) -> dict[int, int]:
        dataset = VideoTextDataset(path, num_frames=2, image_size=(16, 16), seed=seed)
        dataset.set_epoch(epoch)
        return {i: frame_numbers(dataset[i]["video"])[0] for i in order}

    first = starts(1, 0, [0, 1, 2, 3, 4, 5])
    assert starts(1, 0, [5, 3, 1, 0, 2, 4]) == first  # whatever was read before
    assert len(set(first.values())) > 1
    assert starts(2, 0, [0, 1, 2, 3, 4, 5]) != first
    assert starts(1, 1, [0, 1, 2, 3, 4, 5]) != first


def test_workers_that_stay_see_the_next_epoch(sized: Path) -> None:
    buckets = {"144p": {5: (1.0, 1)}}
    dataset = VariableVideoTextDataset(sized)
    sampler = VariableVideoBatchSampler(dataset, buckets, shuffle=False)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        got = [frame_numbers(batch["video"][0]) for batch in loader]
        fresh = VariableVideoTextDataset(sized)
        fresh.set_epoch(epoch)
        assert got == [frame_numbers(fresh[index]["video"]) for batch in sampler for index in batch]


def test_buckets_batch_videos_and_images(sized: Path) -> None:
    dataset = build_module(dict(type="VariableVideoTextDataset", transform_name="resize_crop"), DATASETS,
                           data_path=str(sized))
    sampler = VariableVideoBatchSampler(dataset, {"144p": {1: (1.0, 2), 17: (1.0, 2)}})
    batches = sorted(DataLoader(dataset, batch_sampler=sampler), key=lambda batch: batch["video"].shape[2])
    images, videos = batches
    # 160 x 284 is 0.563, 200 x 200 is 1.00: 144p has 144 x 256 and 192 x 192 for these
    assert images["video"].shape == (2, 3, 1, 192, 192) and images["fps"].tolist() == [120, 120]
    assert videos["video"].shape == (2, 3, 17, 144, 256) and videos["fps"].tolist() == [24, 24]
    assert sorted(videos["text"]) == ["a cat", "a dog"] and videos["ar"].tolist() == [144 / 256] * 2
    assert videos["num_frames"].tolist() == [17, 17] and videos["height"].tolist() == [144, 144]
    red = images["video"].mean(dim=(0, 2, 3, 4)) - torch.tensor([1.0, -1.0, -1.0])
    assert red.abs().max() < 0.03


def test_an_index_is_a_tuple_or_a_string(sized: Path) -> None:
    dataset = VariableVideoTextDataset(sized)
    assert torch.equal(dataset["1-5-32-32"]["video"], dataset[(1, 5, 32, 32)]["video"])
    for index in ("1-5-32", (1, 5, 32, "wide"), 3):
        with pytest.raises(ValueError, match=r"index=.*; allowed: \(id, num_frames, height, width\)"):
            dataset[index]


def test_a_picture_is_covered_and_cut_in_the_middle() -> None:
    # four columns of grey 0, 50, 100, 150; half the width remains
    frames = torch.tensor([0, 50, 100, 150], dtype=torch.uint8).view(1, 1, 4, 1).expand(2, 2, 4, 3)
    video = cover_and_crop(frames, 2, 2)
    expected = torch.tensor([50, 100]) / 127.5 - 1
    assert video.shape == (3, 2, 2, 2)
    torch.testing.assert_close(video, expected.expand(3, 2, 2, 2))


@pytest.mark.parametrize(("size", "target"), [((32, 48), (16, 16)), ((48, 32), (17, 33)), ((9, 7), (64, 40))])
def test_sizes_come_out_exactly(size: tuple[int, int], target: tuple[int, int]) -> None:
    video = cover_and_crop(torch.full((2, *size, 3), 255, dtype=torch.uint8), *target)
    assert torch.equal(video, torch.ones(3, 2, *target))


def test_scores_end_up_in_the_caption(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = write_csv(tmp_path, "path,text,aes,flow,cmotion", "a.png,a cat.,5.25,4,pan left",
                     "a.png,a dog.,6.5,,", 'a.png,"a bird, motion score: 2.0.",nan,7,')
    dataset = VideoTextDataset(path, num_frames=1, image_size=(8, 8))
    assert [dataset[i]["text"] for i in range(3)] == [
        "a cat. aesthetic score: 5.2. motion score: 4.0. camera motion: pan left.",
        "a dog. aesthetic score: 6.5.",
        "a bird, motion score: 2.0.",
    ]


def test_paths_start_at_the_csv_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "lists" / "beside.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "here.png")
    monkeypatch.chdir(tmp_path)
    path = write_csv(tmp_path / "lists", "path,text", "beside.png,a", "here.png,b", f"{tmp_path}/here.png,c")
    dataset = VideoTextDataset(path, num_frames=1, image_size=(8, 8))
    assert [dataset[i]["video"].shape[1] for i in range(3)] == [1, 1, 1]


def refused(call: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_missing_files_are_named_before_training_starts(one_video: Path) -> None:
    one_video.write_text('path,text\na.mp4,"a cat\non two lines"\nb.mp4,a dog\nc.mp4,a fish\n')
    refused(lambda: VideoTextDataset(one_video), FileNotFoundError,
            r"data.csv line 4: no file '.*b.mp4' \(and 1 more files are missing\)")


def test_a_file_lost_during_training_is_named(one_video: Path) -> None:
    dataset = VideoTextDataset(one_video)
    (one_video.parent / "a.mp4").unlink()
    refused(lambda: dataset[0], FileNotFoundError, "data.csv line 2: no file '.*a.mp4'")


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("content", [b"", b"neither a video nor an image"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = VideoTextDataset(write_csv(tmp_path, "path,text", f"{name},a cat"), num_frames=1)
    refused(lambda: dataset[0], ValueError, f"data.csv line 2: cannot use '.*{name}': ")


def test_a_video_cut_short_is_named_not_shown(one_video: Path) -> None:
    video = write_video(one_video.parent / "a.mkv")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    one_video.write_text("path,text\na.mkv,a cat\n")
    dataset = VideoTextDataset(one_video, num_frames=30)
    refused(lambda: dataset[0], ValueError, "line 2: cannot use '.*a.mkv': it has")


def test_an_image_is_too_short_for_a_clip(sized: Path) -> None:
    dataset = VideoTextDataset(sized, num_frames=2, image_size=(16, 16))
    refused(lambda: dataset[2], ValueError, "data.csv line 4: cannot use '.*c.png': it has 1 of the 2 frames")


@pytest.mark.parametrize(("lines", "message"), [
    (["text,video", "a cat,a.mp4"], "has columns text, video; missing: path, num_frames, height, width"),
    ([SIZED], "has no rows; allowed: one or more"),
    ([""], "has columns none; missing: path, text"),
    ([SIZED, "a.mp4,a cat,51"], "line 2: the number of cells differs"),
    ([SIZED, "a.mp4,a cat, sitting,51,9,16"], "line 2: the number of cells differs"),
    ([SIZED, "a.mp4,a cat,51,tall,16"], "line 2: height='tall'; allowed: a number"),
    ([SIZED, "a.mp4,a cat,0,9,16"], "line 2: num_frames='0'; allowed: a whole number"),
    ([SIZED, ",a cat,5,9,16"], "line 2: path=''; allowed: a video or image file"),
    ([SIZED + ",aes", "a.mp4,a,5,9,16,good"], "line 2: aes='good'; allowed: a number"),
])
def test_a_bad_csv_is_refused_by_line_and_column(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_csv(tmp_path, *lines)
    refused(lambda: VariableVideoTextDataset(path), ValueError, f"data.csv.* {message}")


def test_a_csv_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(lambda: VideoTextDataset(tmp_path / "no.csv"), FileNotFoundError, "data_path='.*no.csv' does not")
    video = write_video(tmp_path / "a.mp4", frames=2)
    refused(lambda: VideoTextDataset(video), ValueError, "data_path='.*a.mp4' (is no readable CSV|has col)")


@pytest.mark.parametrize(("options", "message"), [
    ({"num_frames": 0}, "num_frames=0; allowed: whole numbers"),
    ({"frame_interval": 0.5}, "frame_interval=0.5; allowed: whole numbers"),
    ({"image_size": (16, 0)}, r"image_size=\(16, 0\); allowed: whole numbers"),
    ({"transform_name": "centre"}, "transform_name='centre'; allowed: center, resize_crop"),
    ({"image_size": (16, 32)}, r"image_size=\(16, 32\); allowed with transform_name='center': a square"),
])
def test_bad_options_are_refused_by_name(one_video: Path, options: dict, message: str) -> None:
    refused(lambda: VideoTextDataset(one_video, **options), ValueError, message)


def test_a_file_that_cannot_be_used_is_replaced_on_request(sized: Path, caplog) -> None:
    (sized.parent / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="line 2"):
        VariableVideoTextDataset(sized)[0, 17, 32, 48]
    item = VariableVideoTextDataset(sized, substitute=True)[0, 17, 32, 48]
    assert item["text"].startswith("a dog") and "line 2" in caplog.text
    for path in sized.parent.glob("b.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot use"):  # none is left: images have one frame
        VariableVideoTextDataset(sized, substitute=True)[0, 17, 32, 48]
