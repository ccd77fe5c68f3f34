"""The examples run, at sizes that take seconds: their own checks hold, and their pictures are saved."""

import bundle_adjustment
import pytest
import reporting
import stiff_pdes
import truss


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "OUT", tmp_path)
    return tmp_path


def assert_is_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")


def test_stiff_pdes(out, capsys):
    stiff_pdes.main(num=8, num_points=64, sizes=(4, 8))
    assert_is_picture(out / "stiff_pdes.png")
    assert "Brusselator, 128 unknowns" in capsys.readouterr().out


def test_bundle_adjustment(out, capsys):
    bundle_adjustment.main(num_cameras=12, num_points=200)
    assert_is_picture(out / "bundle_adjustment.png")
    assert "Schur complement, pushforward" in capsys.readouterr().out


def test_truss(out, capsys):
    truss.main(num=6)
    assert_is_picture(out / "truss.png")
    assert "Newton, pushforward" in capsys.readouterr().out
