"""Writes variants of a GGUF model, with other metadata and tensors and the same weights.

  python gguf_variants.py --gguf FILE --variants FILE.json --out DIR

The JSON file has {NAME: {"fields": {KEY: value}, "tensors": {NAME: [numbers]}}}; each is written to DIR/NAME.gguf.
"""
import argparse
import json
import pathlib

import gguf
import numpy as np

p = argparse.ArgumentParser()
p.add_argument("--gguf", type=pathlib.Path, required=True)
p.add_argument("--variants", type=pathlib.Path, required=True)
p.add_argument("--out", type=pathlib.Path, required=True)
a = p.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
reader = gguf.GGUFReader(a.gguf)
architecture = reader.get_field("general.architecture").contents()


def add(writer, key, value):
    """Adds a field of a kind that follows from the Python value."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


for name, variant in json.loads(a.variants.read_text()).items():
    writer = gguf.GGUFWriter(str(a.out / f"{name}.gguf"), architecture)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "general.architecture"}
    for key, value in {**fields, **variant["fields"]}.items():
        add(writer, key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for key, numbers in variant["tensors"].items():
        writer.add_tensor(key, np.array(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
print(json.dumps({"written": len(list(a.out.glob("*.gguf")))}))
