/** The orientation of an image by its EXIF data (EXIF 2.32, tag 0x0112), wherever its format has them. */

/** From 1 (upright) to 8; 1 where there are no EXIF data, or damaged ones. */
export function orientationOf(file: Buffer): number {
  try {
    for (const block of exifBlocks(file)) {
      const orientation = orientationIn(block);
      if (orientation >= 1 && orientation <= 8) return orientation;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a length or an offset that leads out of the file
  }
  return 1;
}

/** The TIFF structures with the EXIF data of a JPEG, PNG or WebP file. */
function* exifBlocks(file: Buffer): Generator<Buffer> {
  if (file[0] === 0xff) {
    for (let at = 2; at + 4 < file.length && file[at] === 0xff && file[at + 1] !== 0xda; ) {
      const length = file.readUInt16BE(at + 2);
      const body = file.subarray(at + 4, at + 2 + length);
      if (file[at + 1] === 0xe1 && body.toString('latin1', 0, 6) === 'Exif\0\0') yield body.subarray(6);
      at += 2 + length;
    }
  } else if (file[0] === 0x89) {
    for (let at = 8; at + 12 <= file.length; at += 12 + file.readUInt32BE(at))
      if (file.toString('latin1', at + 4, at + 8) === 'eXIf')
        yield file.subarray(at + 8, at + 8 + file.readUInt32BE(at));
  } else {
    for (let at = 12; at + 8 <= file.length; at += 8 + file.readUInt32LE(at + 4) + (file.readUInt32LE(at + 4) & 1)) {
      if (file.toString('latin1', at, at + 4) !== 'EXIF') continue;
      const block = file.subarray(at + 8, at + 8 + file.readUInt32LE(at + 4));
      yield block.toString('latin1', 0, 6) === 'Exif\0\0' ? block.subarray(6) : block;
    }
  }
}

/** @throws RangeError for a structure that is cut off */
function orientationIn(tiff: Buffer): number {
  const littleEndian = tiff.toString('latin1', 0, 2) === 'II';
  const uint16 = (i: number) => (littleEndian ? tiff.readUInt16LE(i) : tiff.readUInt16BE(i));
  const directory = littleEndian ? tiff.readUInt32LE(4) : tiff.readUInt32BE(4);
  for (let tag = 0; tag < uint16(directory); tag++) {
    const entry = directory + 2 + 12 * tag;
    if (uint16(entry) === 0x0112) return uint16(entry + 8);
  }
  return 1;
}
