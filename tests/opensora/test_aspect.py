"""Names of sizes and lengths, and clear errors for those that do not exist."""
import pytest

from opensora.datasets.aspect import (
    ASPECT_RATIOS,
    get_closest_ratio,
    get_h_w,
    get_image_size,
    get_num_frames,
    get_num_pixels,
)


def test_a_ratio_is_height_to_width():
    assert get_image_size("480p", "9:16") == (480, 854)
    assert get_image_size("720p", "16:9") == (1280, 720)
    assert get_image_size("720p", "0.56") == (720, 1280)
    assert get_image_size("1024", "1:1") == (1024, 1024)


def test_pixels_and_sizes_of_a_resolution_agree():
    for name, (pixels, sizes) in ASPECT_RATIOS.items():
        assert get_num_pixels(name) == pixels
        assert all(abs(h * w / pixels - 1) < 0.2 for h, w in sizes.values()), name
        assert all(abs(h / w - float(ratio)) < 0.05 * float(ratio) for ratio, (h, w) in sizes.items()), name


@pytest.mark.parametrize(("name", "frames"), [("2s", 51), ("16s", 408), ("4x", 204), ("17", 17), (51, 51)])
def test_lengths(name, frames):
    assert get_num_frames(name) == frames


@pytest.mark.parametrize("value", ["3x", "", "0", 0, -5, "1.5", None])
def test_a_bad_length_names_value_and_choices(value):
    with pytest.raises(ValueError, match=r"allowed: a whole number from 1, or 1x, .*16s") as error:
        get_num_frames(value)
    assert f"num_frames={value!r}" in str(error.value)


def test_an_unknown_resolution_names_the_known_ones():
    for function, args in ((get_image_size, ("481p", "9:16")), (get_num_pixels, ("481p",))):
        with pytest.raises(ValueError, match=r"resolution='481p'; allowed: 144p, .*4k"):
            function(*args)


def test_a_ratio_that_a_table_lacks_names_those_it_has():
    with pytest.raises(ValueError) as error:
        get_image_size("512", "9:16")
    message = str(error.value)
    assert "aspect_ratio='9:16'" in message and "resolution='512'" in message and "\n" not in message
    assert "1:1" in message and "0.57" in message and "16:9" not in message
    with pytest.raises(ValueError, match="aspect_ratio='16x9'"):
        get_image_size("480p", "16x9")


def test_the_nearest_ratio_of_a_table():
    assert get_closest_ratio(1080, 1920, ASPECT_RATIOS["480p"][1]) == "0.56"
    assert get_closest_ratio(1, 100, ASPECT_RATIOS["480p"][1]) == "0.38"


def test_sides_made_from_a_ratio_are_even():
    assert get_h_w(9 / 16, 360 * 640) == (360, 640)
    assert get_h_w(1.0, 100 * 100) == (100, 100)
    assert get_h_w(1.0, 99 * 99) == (100, 100)  # 99 is odd; ceil(99.0001) = 100
