import { badRequest } from '../errors.ts';

/** Lists and objects inside one another at most. */
const maxDepth = 64;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * The text of a body, once it is sure that reading it as JSON does no harm.
 * @throws RequestError 400 for what is not UTF-8, or nested too deeply
 */
export function jsonText(body: Buffer): string {
  let text: string;
  try {
    text = utf8.decode(body);
  } catch {
    throw badRequest('The body is not UTF-8.', undefined, 'invalid_json');
  }
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (inString) {
      if (c === 0x5c) i++;
      else if (c === 0x22) inString = false;
    } else if (c === 0x22) inString = true;
    else if (c === 0x7b || c === 0x5b) {
      if (++depth > maxDepth)
        throw badRequest(
          `The body has more than ${maxDepth} lists and objects inside one another.`,
          undefined,
          'too_deep',
        );
    } else if (c === 0x7d || c === 0x5d) depth--;
  }
  return text;
}
