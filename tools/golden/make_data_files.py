"""Parquet files in every way of packing, and WebP images with the SHA-256 of their levels as Pillow reads them (RGB, row by row).

    python3 tools/golden/make_data_files.py

Levels are compared exactly.
"""

import hashlib
import json
import pathlib
import random

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "data"
rng = random.Random(5)

plain = pa.table({"text": [f"row {i} " + "word " * (i % 5) for i in range(40)], "label": [i % 3 for i in range(40)]})
messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b{i}"}] for i in range(20)]
nested = pa.table({"messages": messages, "numbers": [[i, i + 1, 2**40] for i in range(20)]})
for name, codec in [("plain", "snappy"), ("zstd", "zstd"), ("gzip", "gzip"), ("brotli", "brotli"), ("lz4", "lz4")]:
    pq.write_table(plain, OUT / f"{name}.parquet", compression=codec, store_schema=False)
stored = pa.table({"text": ["row"] * 40, "none": pa.nulls(40, pa.string())})
pq.write_table(stored, OUT / "stored.parquet", compression="none", use_dictionary=False, store_schema=False)
pq.write_table(stored, OUT / "second.parquet", compression="lz4", data_page_version="2.0", store_schema=False)
pq.write_table(nested, OUT / "nested.parquet", compression="snappy", store_schema=False)

photo = Image.new("RGB", (37, 23))
photo.putdata([(x * 6, y * 10, rng.randrange(256)) for y in range(23) for x in range(37)])
photo.save(OUT / "photo.webp", quality=70)
photo.save(OUT / "photo-lossless.webp", lossless=True)


def levels(name):
    with Image.open(OUT / name) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


names = ["photo.webp", "photo-lossless.webp"]
versions = {"pyarrow": pa.__version__, "pillow": PIL.__version__}
provenance = {"script": "make_data_files.py", "versions": versions, "seed": 5, "tolerance": 0}
(OUT / "webp.json").write_text(
    json.dumps({"provenance": provenance, "levels": {name: levels(name) for name in names}}, indent=1) + "\n"
)
