"""docs/pictures/ from out/: what the demo and the examples drew, as small WebP files."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 1200
MOST_BYTES = 100_000


def main() -> None:
    """Convert every picture in out/."""
    folder = ROOT / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "out").glob("*.png")):
        picture = Image.open(path).convert("RGB")
        picture = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)))
        to = folder / f"{path.stem}.webp"
        for quality in range(85, 20, -5):
            picture.save(to, quality=quality, method=6)
            if to.stat().st_size < MOST_BYTES:
                break
        print(f"{to.relative_to(ROOT)}: {to.stat().st_size / 1e3:.0f} kB, quality {quality}")


if __name__ == "__main__":
    main()
