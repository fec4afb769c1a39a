"""Files that can't be decoded are found before anything else, and named with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from image_folders import error_of, find, folder, noise, picture


def test_bad_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, {"a": 2, "b": 2})
    whole = Image.fromarray(noise(64, 64, 3))
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        whole.save(tmp_path / f"a/cut.{suffix}")
        content = (tmp_path / f"a/cut.{suffix}").read_bytes()
        (tmp_path / f"a/cut.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "a/empty.jpg").touch()
    (tmp_path / "a/text.jpg").write_text("hello")
    (tmp_path / "a/broken link.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    picture(tmp_path / "a/bomb.png", side=400)
    picture(tmp_path / "a/double bomb.png", side=600)
    dataset = find(tmp_path)
    reasons = dict(dataset.bad_files)
    assert len(dataset) == 4
    assert {f"a/cut.{s}" for s in ("jpg", "png", "gif", "webp", "bmp", "tif")} <= set(reasons)
    assert reasons["a/empty.jpg"] == "empty file"
    assert reasons["a/text.jpg"] == "not an image"
    assert reasons["a/pipe.jpg"] == "not a file"
    assert reasons["a/broken link.jpg"] == "no such file or directory"
    assert "too large" in reasons["a/bomb.png"]
    assert "pixels" in reasons["a/double bomb.png"]
    assert all(0 < len(reason) <= 90 for reason in reasons.values())
    out, err = capfd.readouterr()
    assert out == ""
    first, reason = dataset.bad_files[0]
    named = f"the first: {first} ({reason})"
    assert err == f"warning: 12 of 16 files can't be decoded and are left out, {named}\n"


def test_only_bad_files(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/y.jpg"):
        picture(tmp_path / name).write_bytes(b"no")
    assert "none of the image files" in error_of(tmp_path)


def test_a_class_of_bad_files_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"a": 2, "b": 2, "c": 1})
    (tmp_path / "c/000.png").write_bytes(b"no")
    assert find(tmp_path).classes == ("a", "b")
    assert "c: no usable image is left" in capsys.readouterr().err
