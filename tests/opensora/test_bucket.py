"""Buckets: which one takes a video, and batches that are the same for every rank, epoch by epoch."""
import numpy as np
import pytest

from opensora.datasets.bucket import Bucket, VariableVideoBatchSampler


class Videos:
    """Sizes as a dataset states them."""

    def __init__(self, sizes: list[tuple[int, int, int]], frame_interval: int = 1) -> None:
        self.sizes, self.frame_interval, self.epoch = np.array(sizes), frame_interval, None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


TWO_SIZES = {"144p": {1: (1.0, 4), 51: (1.0, 2)}, "480p": {1: (1.0, 2), 51: (1.0, 1), 102: (1.0, 1)}}


def bucket_of(size: tuple[int, int, int], config: dict = TWO_SIZES, frame_interval: int = 1) -> tuple | None:
    groups = Bucket(config).group(np.array([size]), frame_interval, np.random.default_rng(0))
    return next(iter(groups), None)


@pytest.mark.parametrize(("size", "expected"), [  # frames, height, width
    ((51, 480, 854), ("480p", 51, "0.56")),       # 480 / 854 = 0.562
    ((101, 480, 854), ("480p", 51, "0.56")),      # one short of 102
    ((102, 480, 854), ("480p", 102, "0.56")),
    ((900, 1080, 1920), ("480p", 102, "0.56")),   # larger than every bucket
    ((51, 854, 480), ("480p", 51, "1.78")),
    ((51, 690, 600), ("480p", 51, "1.00")),       # 1.150: nearer to 1.00 than to 1.33
    ((51, 708, 600), ("480p", 51, "1.33")),       # 1.180: past the middle, 1.165
    ((51, 488, 672), ("480p", 51, "0.75")),       # 327,936 pixels = 0.8 x 409,920; 0.726 is nearest to 0.75
    ((51, 488, 671), ("144p", 51, "0.75")),       # below 0.8 x
    ((51, 144, 256), ("144p", 51, "0.56")),
    ((51, 100, 100), None),                       # 10,000 pixels, 144p asks for 29,491
    ((50, 480, 854), None),                       # too short, and a video is no image
    ((1, 480, 854), ("480p", 1, "0.56")),
    ((1, 200, 200), ("144p", 1, "1.00")),
])
def test_a_video_goes_to_the_largest_bucket_it_fills(size: tuple, expected: tuple | None) -> None:
    assert bucket_of(size) == expected


def test_frames_skipped_between_frames_count() -> None:
    # 51 frames, every second one: 50 * 2 + 1 = 101
    assert bucket_of((100, 144, 256), frame_interval=2) is None
    assert bucket_of((101, 144, 256), frame_interval=2) == ("144p", 51, "0.56")


def test_images_stay_out_of_video_buckets() -> None:
    assert bucket_of((1, 480, 854), {"480p": {51: (1.0, 1)}, "144p": {1: (1.0, 1)}}) == ("144p", 1, "0.56")


@pytest.mark.parametrize(("config", "expected"), [
    # not kept at 480p: the next resolution, not a shorter clip at this one
    ({"480p": {102: (0.0, 1), 51: (1.0, 1)}, "144p": {51: (1.0, 1)}}, ("144p", 51, "0.56")),
    ({"480p": {102: ((0.0, 1.0), 1), 51: (1.0, 1)}, "144p": {51: (1.0, 1)}}, ("144p", 51, "0.56")),
    # not offered 102 frames: a shorter clip at this resolution
    ({"480p": {102: ((1.0, 0.0), 1), 51: (1.0, 1)}, "144p": {51: (1.0, 1)}}, ("480p", 51, "0.56")),
    # a bucket that keeps nothing needs no batch size
    ({"480p": {102: (0.0, None)}, "144p": {51: (1.0, 1)}}, ("144p", 51, "0.56")),
    ({"480p": {102: (0.0, None)}}, None),
])
def test_a_pair_of_probabilities_is_to_keep_and_for_the_frames(config: dict, expected: tuple | None) -> None:
    assert bucket_of((200, 480, 854), config) == expected


def test_videos_are_kept_as_often_as_asked() -> None:
    config = {"480p": {102: ((0.3, 0.5), 1), 51: (0.6, 1)}, "144p": {51: (1.0, 1)}}
    sizes = np.array([(200, 480, 854)] * 10_000)
    groups = Bucket(config).group(sizes, 1, np.random.default_rng(0))
    share = {bucket_id[:2]: len(ids) / 10_000 for bucket_id, ids in groups.items()}
    # deviation of a share over 10,000 draws: at most 0.005
    assert share[("480p", 102)] == pytest.approx(0.5 * 0.3, abs=0.02)
    assert share[("480p", 51)] == pytest.approx(0.5 * 0.6, abs=0.02)
    assert share[("144p", 51)] == pytest.approx(0.5 * 0.7 + 0.5 * 0.4, abs=0.02)


def test_batches_have_the_size_of_their_bucket() -> None:
    sampler = VariableVideoBatchSampler(Videos([(60, 144, 256)] * 4 + [(1, 480, 854)] * 4), TWO_SIZES)
    shapes = sorted([index[1:] for index in batch] for batch in sampler)
    assert shapes == [[(1, 480, 854)] * 2] * 2 + [[(51, 144, 256)] * 2] * 2


def many_videos() -> Videos:
    """23 wide and 14 square videos of 51 frames at 144p, 9 images at 480p."""
    return Videos([(60, 144, 256)] * 23 + [(51, 192, 192)] * 14 + [(1, 480, 854)] * 9)


def ids(batches: list) -> list[int]:
    return [index[0] for batch in batches for index in batch]


def batches_of_ranks(count: int, **options: bool) -> list[list]:
    return [list(VariableVideoBatchSampler(many_videos(), TWO_SIZES, num_replicas=count, rank=i, **options))
            for i in range(count)]


def test_at_every_step_all_ranks_have_one_bucket_and_no_video_twice() -> None:
    ranks = batches_of_ranks(3)
    # 23 // (2 * 3) + 14 // (2 * 3) + 9 // (2 * 3) steps
    assert [len(batches) for batches in ranks] == [3 + 2 + 1] * 3
    for step in zip(*ranks, strict=True):
        assert len({index[1:] for batch in step for index in batch}) == 1
    everything = ids(ranks[0] + ranks[1] + ranks[2])
    assert len(everything) == len(set(everything)) == 6 * 6


def test_without_drop_last_every_video_is_seen() -> None:
    ranks = batches_of_ranks(2, drop_last=False)
    assert [len(batches) for batches in ranks] == [6 + 4 + 3] * 2  # ceil of 23, 14, 9 over 4
    assert set(ids(ranks[0] + ranks[1])) == set(range(46))


def test_a_bucket_smaller_than_a_batch_is_filled_by_repeating_it() -> None:
    sampler = VariableVideoBatchSampler(Videos([(1, 144, 256)]), {"144p": {1: (1.0, 3)}}, drop_last=False)
    assert list(sampler) == [[(0, 1, 144, 256)] * 3]


def test_unshuffled_batches_keep_the_order_of_the_files() -> None:
    sampler = VariableVideoBatchSampler(Videos([(60, 144, 256)] * 4), TWO_SIZES, shuffle=False)
    assert [[i for i, *_ in batch] for batch in sampler] == [[0, 1], [2, 3]]


def test_seed_and_epoch_decide() -> None:
    def batches(seed: int, epoch: int) -> list:
        sampler = VariableVideoBatchSampler(many_videos(), TWO_SIZES, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(5, 2) == batches(5, 2)
    assert batches(5, 2) != batches(5, 3)
    assert batches(5, 2) != batches(6, 2)


def test_a_stopped_run_goes_on_with_the_batches_it_missed() -> None:
    whole = VariableVideoBatchSampler(many_videos(), TWO_SIZES)
    whole.set_epoch(4)
    expected = list(whole)

    stopped = VariableVideoBatchSampler(many_videos(), TWO_SIZES)
    stopped.set_epoch(4)
    batches = iter(stopped)
    seen = [next(batches) for _ in range(5)]
    ahead = [next(batches) for _ in range(2)]  # as a DataLoader fetches
    assert stopped.state_dict()["batches_done"] == 7

    videos = many_videos()
    resumed = VariableVideoBatchSampler(videos, TWO_SIZES)
    resumed.load_state_dict(stopped.state_dict(batches_done=5))
    resumed.set_epoch(4)  # as a training loop does on entering its epoch
    rest = list(resumed)
    assert seen + rest == expected and rest[:2] == ahead
    assert videos.epoch == 4
    assert list(resumed) == expected  # the next round is whole again


def test_a_step_of_the_whole_run_can_be_sought() -> None:
    straight = VariableVideoBatchSampler(many_videos(), TWO_SIZES)
    run = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        run += list(straight)
    for step in (0, 3, len(straight), len(straight) + 3, 2 * len(straight)):
        videos = many_videos()
        sought = VariableVideoBatchSampler(videos, TWO_SIZES)
        sought.seek(step)
        assert next(iter(sought)) == run[step]
        assert videos.epoch == step // len(straight)


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 1}, "seed=1, but 0 when the state was saved"),
    ({"num_replicas": 2}, "num_replicas=2, but 1 when"),
])
def test_a_state_of_other_batches_is_refused(change: dict, message: str) -> None:
    state = VariableVideoBatchSampler(many_videos(), TWO_SIZES).state_dict()
    with pytest.raises(ValueError, match=message):
        VariableVideoBatchSampler(many_videos(), TWO_SIZES, **change).load_state_dict(state)


def test_an_epoch_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="bucket_config makes no batch of 2 videos in epoch 0"):
        VariableVideoBatchSampler(Videos([(10, 144, 256)] * 2), TWO_SIZES)


@pytest.mark.parametrize(("config", "error", "message"), [
    ({}, TypeError, "bucket_config={}; allowed: a dict with entries"),
    ({"144p": {}}, TypeError, r"bucket_config\['144p'\]={}; allowed"),
    ({"145p": {1: (1.0, 1)}}, ValueError, "resolution='145p'; allowed: 144p"),
    ({"144p": {0: (1.0, 1)}}, ValueError, "frames=0; allowed: whole numbers"),
    ({"144p": {"2s": (1.0, 1)}}, ValueError, "frames='2s'; allowed: whole numbers"),
    ({"144p": {51: 1.0}}, ValueError, r"\[51\]=1.0; allowed: \(probability, batch size\)"),
    ({"144p": {51: (1.5, 1)}}, ValueError, "probability=1.5; allowed: 0 to 1"),
    ({"144p": {51: ((0.5, 2.0), 1)}}, ValueError, r"probability=\(0.5, 2.0\); allowed: 0 to 1"),
    ({"144p": {51: (1.0, 0)}}, ValueError, "batch size=0; allowed: whole numbers"),
    ({"144p": {51: (1.0, None)}}, ValueError, "batch size=None; allowed: whole numbers"),
])
def test_a_bad_bucket_config_is_refused_by_name(config: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Bucket(config)


@pytest.mark.parametrize("options", [{"num_replicas": 2, "rank": 2}, {"rank": -1}, {"num_replicas": 0}])
def test_a_rank_outside_the_run_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="(rank|num_replicas)=.*; allowed"):
        VariableVideoBatchSampler(many_videos(), TWO_SIZES, **options)
