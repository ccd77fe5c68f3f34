"""The examples run, at sizes that take seconds: their own checks hold, and their pictures are saved."""

import re

import bundle_adjustment
import cluster_modes
import pinn
import pytest
import reporting
import robot_arm
import stiff_pdes
import tangent_kernel
import truss
from pages import DOCS, ROOT


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


def test_pinn(out, capsys):
    pinn.main(num_points=80, width=6, num_steps=25)
    assert_is_picture(out / "pinn.png")
    assert "Levenberg-Marquardt" in capsys.readouterr().out


def test_robot_arm(out, capsys):
    robot_arm.main(num_arms=500, num_targets=24)
    assert_is_picture(out / "robot_arm.png")
    assert "equal to those by hand" in capsys.readouterr().out


def test_cluster_modes(out, capsys):
    cluster_modes.main()
    assert_is_picture(out / "cluster_modes.png")
    assert "published -44.326801" in capsys.readouterr().out


def test_tangent_kernel(out, capsys):
    tangent_kernel.main(widths=(8, 64, 512), num_draws=10, num_steps=100)
    assert_is_picture(out / "tangent_kernel.png")
    assert "trained and predicted" in capsys.readouterr().out


def test_the_gallery_shows_each_picture_with_its_script():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(pictures/(\w+)\.webp\)\n\n`examples/(\w+)\.py`", page)
    files = list((DOCS / "pictures").iterdir())
    assert sorted(f"{picture}.webp" for picture, _ in shown) == sorted(f.name for f in files)
    for picture, script in shown:
        assert picture == script
        assert (ROOT / "examples" / f"{script}.py").exists()
    assert all(f.stat().st_size < 100_000 for f in files)
