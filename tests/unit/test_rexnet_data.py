"""The digits folder is written once, whole; the image folder says what is missing; images of every kind are decoded."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.errors import SpecError
from rexnet.data.decode import CorruptImage, Frame, decode, jpeg_frame
from rexnet.data.digits import main, write_digits
from rexnet.data.folder import ImageFolder

KIND = {"num_classes": 10}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "set"
    assert write_digits(folder)
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_second_call_changes_nothing(digits: Path) -> None:
    before = listing(digits)
    assert not write_digits(digits)
    assert listing(digits) == before


def test_split_is_fixed_and_holds_every_scan_once(digits: Path) -> None:
    train, val = ImageFolder(str(digits), "train", **KIND), ImageFolder(str(digits), "val", **KIND)
    assert (len(train), len(val)) == (1438, 359)
    assert len({*train.files, *val.files}) == 1797
    assert val.path(0).name == "0010.png" and val.read(0) == val.path(0).read_bytes()
    assert train.labels.dtype == np.int32 and train.labels.shape == (1438,)
    assert all(train.path(i).parent.name == str(train.labels[i]) for i in range(0, 1438, 100))


def test_two_writers_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        wrote = list(pool.map(write_digits, [tmp_path / "set"] * 2))
    assert sorted(wrote) == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([str(tmp_path)]) == 64
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_folder_and_wrong_number_of_classes_are_named(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="data_dir: no data set is named"):
        ImageFolder("", "train", **KIND)
    with pytest.raises(SpecError, match=f"no folder {tmp_path}/train"):
        ImageFolder(str(tmp_path), "train", **KIND)
    with pytest.raises(SpecError, match="10 classes and num_classes says 1000"):
        ImageFolder(str(digits), "train", num_classes=1000)


def test_directory_without_classes_or_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(b"loose")
    with pytest.raises(SpecError, match="data directory without classes"):
        ImageFolder(str(tmp_path), "train", **KIND)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(SpecError, match="holds no images"):
        ImageFolder(str(tmp_path), "train", num_classes=2)


def test_samples_are_numbered_by_sorted_names_and_hidden_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b/2.JPEG", "b/10.jpg", "a/z.png", "a/.hidden.png", "a/notes.txt", ".cache/x.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    data = ImageFolder(str(tmp_path), "train", num_classes=2)
    assert data.classes == ["a", "b"] and data.labels.tolist() == [0, 1, 1]
    assert [data.read(sample) for sample in range(3)] == [b"a/z.png", b"b/10.jpg", b"b/2.JPEG"]
    assert data.name(1).endswith("train/b/10.jpg")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(height: int = 40, width: int = 56) -> Image.Image:
    """Smooth, so that lossy kinds of encoding keep it."""
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack([down * 255 / height, across * 255 / width, (down + across) * 255 / (height + width)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("BMP", "RGB"), ("BMP", "L"), ("BMP", "P"), ("WEBP", "RGB")]
    + [("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")],
)
def test_every_mode_becomes_rgb_as_pillow_has_it(kind: str, mode: str) -> None:
    image = picture().convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(100)
    data = encoded(image, kind)
    with Image.open(io.BytesIO(data)) as file:
        reference = np.asarray(file.convert("RGB")).astype(int)
    result = decode(data)
    assert result.dtype == np.uint8 and result.shape == (40, 56, 3)
    assert np.abs(result - reference).max() <= 4  # libjpeg-turbo's versions differ in rounding


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    result = decode(encoded(Image.fromarray(values), "PNG"))
    assert np.abs(result[:, :, 0].astype(int) - (values >> 8)).max() <= 1


def test_orientation_in_exif_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encoded(picture(), "JPEG", exif=exif, quality=95)
    assert jpeg_frame(data) == Frame(40, 56, 3)
    assert np.abs(decode(data).astype(int) - np.asarray(picture())).mean() < 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_decoding_gives_the_small_image(reduce: int, progressive: bool) -> None:
    image = picture(160, 240)
    result = decode(encoded(image, "JPEG", quality=95, progressive=progressive), reduce=reduce)
    small = np.asarray(image.resize((240 // reduce, 160 // reduce), Image.Resampling.BOX)).astype(int)
    assert result.shape == small.shape and np.abs(result - small).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_image_is_corrupt(kind: str, kept: float) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), kind)
    with pytest.raises(CorruptImage):
        decode(data[: int(len(data) * kept)])


def test_what_is_no_image_is_corrupt_and_gets_no_frame() -> None:
    for data in (b"no image", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + b"\0" * 20):
        assert jpeg_frame(data) is None
        with pytest.raises(CorruptImage):
            decode(data)


def test_opencv_starts_no_threads_of_its_own() -> None:
    assert cv2.getNumThreads() == 1
