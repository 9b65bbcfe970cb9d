"""Writes images/files/: small PNG and JPEG files of every supported kind, and levels.safetensors: level.NAME U8 [H,W,3] as Pillow
reads them after ImageOps.exif_transpose and convert("RGB"), which is what transformers' load_image does (needs pillow).

PNG: colours, grey, palette (256 and 16 colours), one, two and four bits, alpha, grey with alpha, 16-bit colours; Pillow cannot write interlaced
files. JPEG: three kinds of chroma subsampling, progressive, grey, and the eight orientations of EXIF.
"""
import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from common import arguments, provenance, save_tensors

SEED = 1200


def main():
    out = arguments(__doc__).out / "images" / "files"
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:23, :37]
    a = np.stack([127 + 100 * np.sin(x / 5), 127 + 100 * np.cos(y / 3), (x * 5 + y * 3) % 256], -1) + rng.normal(0, 15, (23, 37, 3))
    image = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
    grey = image.convert("L")
    image.save(out / "rgb.png")
    grey.save(out / "grey.png")
    image.convert("P").save(out / "palette.png")
    image.quantize(13).save(out / "palette4.png", bits=4)
    image.convert("1").save(out / "one-bit.png")
    faded = image.convert("RGBA")
    faded.putalpha(grey)
    faded.save(out / "opacity.png")
    faded.convert("LA").save(out / "grey-opacity.png")
    for name, options in {"420": {}, "422": {"subsampling": 1}, "444": {"subsampling": 0}, "progressive": {"progressive": True}}.items():
        image.save(out / f"{name}.jpg", quality=85, **options)
    grey.save(out / "grey.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(out / f"turned-{orientation}.jpg", exif=exif)
    levels = {}
    for path in sorted(out.glob("*.png")) + sorted(out.glob("*.jpg")):
        array = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        levels[f"level.{path.name}"] = torch.from_numpy(array.copy())
    save_tensors(out / "levels.safetensors", levels, provenance(__file__, SEED, "exact", pillow=PIL.__version__))
    print("files", len(levels), "bytes", sum(p.stat().st_size for p in out.iterdir()))


if __name__ == "__main__":
    main()
