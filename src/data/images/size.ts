/** The size that an image's header states, before anything is decoded. */
import { imageError } from './error.ts';

/** Pixels that any file may have, and further ones for each byte of it: a damaged header must not ask for gigabytes. */
const [basePixels, pixelsPerByte] = [12_000_000, 32];

/** Width and height of a PNG, JPEG or WebP file; undefined where its header does not say. */
export function statedSize(file: Buffer): { width: number; height: number } | undefined {
  try {
    if (file[0] === 0x89) return { width: file.readUInt32BE(16), height: file.readUInt32BE(20) };
    return file[0] === 0xff ? jpegSize(file) : webpSize(file);
  } catch (error) {
    if (error instanceof RangeError) return undefined; // cut off
    throw error;
  }
}

/** From the first frame header, SOF0 to SOF15 without DHT, JPG and DAC (ITU T.81). */
function jpegSize(file: Buffer) {
  for (let at = 2; at + 9 < file.length; at += 2 + file.readUInt16BE(at + 2)) {
    while (file[at] === 0xff && file[at + 1] === 0xff) at++;
    const marker = file[at + 1]!;
    if (file[at] !== 0xff || marker === 0xda) return undefined;
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return { width: file.readUInt16BE(at + 7), height: file.readUInt16BE(at + 5) };
  }
  return undefined;
}

/** From the first chunk: VP8, VP8L or VP8X (RFC 9649). */
function webpSize(file: Buffer) {
  switch (file.toString('latin1', 12, 16)) {
    case 'VP8 ':
      return { width: file.readUInt16LE(26) & 0x3fff, height: file.readUInt16LE(28) & 0x3fff };
    case 'VP8L': {
      const bits = file.readUInt32LE(21);
      return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1 };
    }
    case 'VP8X':
      return { width: file.readUIntLE(24, 3) + 1, height: file.readUIntLE(27, 3) + 1 };
    default:
      return undefined;
  }
}

/** @throws GraftError 'input' for a header that states more pixels than a file of this size is likely to have */
export function requireLikelySize(file: Buffer, place: string): void {
  const size = statedSize(file);
  if (!size || size.width * size.height <= basePixels + pixelsPerByte * file.length) return;
  throw imageError(
    `the header states ${size.width} × ${size.height} pixels, which a file of ${file.length} bytes is not likely to have`,
    place,
    'It may be damaged; otherwise save the image at a smaller size',
  );
}
