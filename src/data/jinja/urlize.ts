/** What the filter `urlize` takes as an address. Source: `urlize` of jinja2, which names these top-level domains. */
const ADDRESS =
  /^(?:(?:https?:\/\/|www\.)(?:(?:[\p{L}\p{N}_%-]+\.)+)?(?:[a-z]{2,63}|xn--[\p{L}\p{N}_%]{2,59})|(?:[\p{L}\p{N}_%-]{2,63}\.)+(?:com|net|int|edu|gov|org|info|mil)|https?:\/\/(?:\d{1,3}(?:\.\d{1,3}){3}|\[(?:[\da-f]{0,4}:){2}(?:[\da-f]{0,4}:?){1,6}\]))(?::\d{1,5})?(?:[/?#]\S*)?$/iu;
const EMAIL = /^\S+@[\p{L}\p{N}_][\p{L}\p{N}_.-]*\.[\p{L}\p{N}_]+$/u;

export interface LinkStyle {
  /** How much of an address is shown; undefined for all. */
  readonly limit: number | undefined;
  /** Further attributes of the link, with a space before each. */
  readonly attributes: string;
  /** Beginnings of further addresses, such as `ftp:`. */
  readonly schemes: readonly string[];
}

const count = (text: string, part: string) => text.split(part).length - 1;

/** A word that is an address as a link; undefined for another one. */
function linkOf(word: string, { limit, attributes, schemes }: LinkStyle): string | undefined {
  const shown = limit !== undefined && word.length > limit ? `${word.slice(0, limit)}...` : word;
  if (ADDRESS.test(word)) {
    return `<a href="${/^https?:\/\//.test(word) ? '' : 'https://'}${word}"${attributes}>${shown}</a>`;
  }
  if (word.startsWith('mailto:') && EMAIL.test(word.slice(7))) return `<a href="${word}">${word.slice(7)}</a>`;
  if (!word.startsWith('www.') && !word.startsWith('@') && !word.includes(':') && EMAIL.test(word)) {
    return `<a href="mailto:${word}">${word}</a>`;
  }
  if (schemes.some((scheme) => word !== scheme && word.startsWith(scheme))) {
    return `<a href="${word}"${attributes}>${word}</a>`;
  }
  return undefined;
}

/** A text whose HTML is escaped, with its addresses as links; brackets and marks around an address are no part of it. */
export const urlize = (escaped: string, style: LinkStyle): string =>
  escaped
    .split(/([\p{White_Space}\x1c-\x1f]+)/u)
    .map((word) => {
      const [head] = /^(?:[(<]|&lt;)*/.exec(word)!;
      let middle = word.slice(head.length);
      let [tail] = /(?:[)>.,\n]|&gt;)*$/.exec(middle)!;
      middle = middle.slice(0, middle.length - tail.length);
      for (const [open, close] of [
        ['(', ')'],
        ['<', '>'],
        ['&lt;', '&gt;'],
      ] as const) {
        if (count(middle, open) <= count(middle, close)) continue;
        for (let n = Math.min(count(middle, open), count(tail, close)); n > 0; n--) {
          const end = tail.indexOf(close) + close.length;
          middle += tail.slice(0, end);
          tail = tail.slice(end);
        }
      }
      return head + (linkOf(middle, style) ?? middle) + tail;
    })
    .join('');
