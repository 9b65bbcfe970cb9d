"""Writes images/: image preprocessing as transformers' PIL-backed processors do it (needs pillow and torchvision, see requirements.txt).

  images.safetensors   image.NAME U8: [H,W,3] RGB, [H,W] grey, [H,W,4] with alpha; all are converted to RGB by PIL's convert("RGB"),
                       which repeats grey and drops alpha
  CASE/preprocessor_config.json   as the processor saves it
  CASE/golden.safetensors         resized.NAME [h,w,3] U8: after PIL's resize and the centre crop, whole numbers, exact;
                                  pixels.NAME [3,h,w] F32: (resized / 255 - mean) / std, computed in float64, rounded to float32
PIL resizes along one side, then along the other, and rounds to whole levels after each pass (Pillow 13 takes the height first where
it loses more than twice what the width does); its filter grows with
the reduction (it anti-aliases), bicubic has a = -0.5. torchvision_levels in the provenance: by how many levels torchvision's processor differs.
"""
import json

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from transformers import DeiTImageProcessor, ViTImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from common import arguments, provenance, round_up, save_tensors, worst

SEED = 1100
SHAPES = {"small": (8, 8), "wide": (19, 33, 3), "tall": (40, 13, 3), "exact": (16, 16, 3), "grey": (21, 17), "opacity": (20, 24, 4), "large": (70, 50, 3)}
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
CASES = {
    "vit-bilinear": (ViTImageProcessorPil, ViTImageProcessor, dict(size={"height": 16, "width": 16}, resample=2)),
    "vit-bicubic-imagenet": (ViTImageProcessorPil, ViTImageProcessor, dict(size={"height": 24, "width": 24}, resample=3, **IMAGENET)),
    "vit-nearest-plain": (ViTImageProcessorPil, ViTImageProcessor, dict(size={"height": 16, "width": 12}, resample=0, do_normalize=False)),
    "deit-crop": (DeiTImageProcessorPil, DeiTImageProcessor, dict(size={"height": 21, "width": 21}, crop_size={"height": 16, "width": 16}, **IMAGENET)),
}


def make_images():
    """Returns noise on a gradient, with black and white patches, which a resize that clips or wraps gets wrong."""
    rng = np.random.default_rng(SEED)
    images = {}
    for name, shape in SHAPES.items():
        y, x = np.mgrid[:shape[0], :shape[1]]
        slope = (255 * (x / shape[1] + y / shape[0]) / 2)
        a = slope.reshape(slope.shape + (1,) * (len(shape) - 2)) + rng.normal(0, 40, shape)
        a = np.clip(a, 0, 255).round().astype(np.uint8)
        a[2:5, 1:6], a[5:8, 3:7] = 0, 255
        images[name] = a
    return images


def main():
    out = arguments(__doc__).out / "images"
    images = make_images()
    save_tensors(out / "images.safetensors", {f"image.{k}": torch.from_numpy(v) for k, v in images.items()}, provenance(__file__, SEED, "exact"))
    for case, (cls, fast, fields) in CASES.items():
        processor = cls(**fields)
        processor.save_pretrained(out / case)
        config = json.loads((out / case / "preprocessor_config.json").read_text())
        mean, std = (np.array(config.get(k) if config["do_normalize"] else d) for k, d in (("image_mean", [0.0]), ("image_std", [1.0])))
        raw = cls(**fields | dict(do_normalize=False, do_rescale=False))
        tensors, pairs, levels = {}, [], 0
        for name, array in images.items():
            image = Image.fromarray(array).convert("RGB")
            resized = np.asarray(raw(image, return_tensors="np").pixel_values[0])
            assert (resized == resized.round()).all() and resized.min() >= 0 and resized.max() <= 255
            other = fast(**fields | dict(do_normalize=False, do_rescale=False))(image, return_tensors="np").pixel_values[0]
            levels = max(levels, float(np.abs(resized.astype(float) - other).max()))
            truth = (resized.astype(np.float64) / 255 - mean[:, None, None]) / std[:, None, None]
            low = processor(image, return_tensors="np").pixel_values[0]
            pairs.append((torch.from_numpy(np.ascontiguousarray(low)), torch.from_numpy(truth)))
            tensors |= {f"resized.{name}": torch.from_numpy(resized.transpose(1, 2, 0).astype(np.uint8).copy()), f"pixels.{name}": torch.from_numpy(truth).float()}
        observed = worst(pairs)
        save_tensors(out / case / "golden.safetensors", tensors, provenance(__file__, SEED, {"pixels": max(2e-6, round_up(10 * observed)), "resized": 0}, float32_error=observed,
                     measure="max|a-b|/max|b| of each tensor", torchvision_levels=levels, pillow=PIL.__version__, torchvision=torchvision.__version__))
        print(case, "images", len(images), "float32", observed, "torchvision differs by", levels, "levels", (out / case / "golden.safetensors").stat().st_size, config)


if __name__ == "__main__":
    main()
