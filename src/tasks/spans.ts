/** Spans of tags, and how many of them are found. */
import { bootstrap, f1, type Metric } from './metrics.ts';

/** Tags of one scheme of chunks (IOB, IOB2, IOE, BIOES): `B-PER`, `O`. */
export const areChunks = (labels: readonly string[]): boolean =>
  labels.some((tag) => tag !== 'O') && labels.every((tag) => tag === 'O' || /^[BIES]-./.test(tag));

/**
 * The spans of a row of tags as `type start end`, as seqeval's `get_entities` finds them (default mode, which is conlleval's:
 * an `I-` without a `B-` begins a span too).
 */
export function chunksOf(tags: readonly string[]): Set<string> {
  const found = new Set<string>();
  let [before, type, begin] = ['O', '', 0];
  [...tags, 'O'].forEach((tag, i) => {
    const now = tag.charAt(0);
    const nowType = tag.slice(1).replace(/^[^-]*-/, '') || '_';
    const changed = type !== nowType;
    const ends =
      before === 'E' || before === 'S' || ('BI'.includes(before) && 'BSO'.includes(now)) || (before !== 'O' && changed);
    const begins =
      now === 'B' || now === 'S' || ('ESO'.includes(before) && 'EI'.includes(now)) || (now !== 'O' && changed);
    if (ends) found.add(`${type} ${begin} ${i - 1}`);
    if (begins) begin = i;
    [before, type] = [now, nowType];
  });
  return found;
}

/** Precision, recall and F1 of spans over all rows (micro, as seqeval's), their intervals by drawing rows. */
export function chunkMetrics(wanted: readonly (readonly string[])[], said: readonly (readonly string[])[]): Metric[] {
  const rows = wanted.map((tags, r) => {
    const [w, s] = [chunksOf(tags), chunksOf(said[r]!)];
    return { hits: [...w].filter((chunk) => s.has(chunk)).length, wanted: w.size, said: s.size };
  });
  const sum = (places: readonly number[], of: 'hits' | 'wanted' | 'said') =>
    places.reduce((total, r) => total + rows[r]![of], 0);
  const all = [...rows.keys()];
  const metric = (name: string, measure: (places: readonly number[]) => number, count: number): Metric => ({
    name,
    ...bootstrap(rows.length, measure),
    count,
    of: 'entities',
  });
  const share = (hits: number, of: number) => (of === 0 ? 0 : hits / of);
  const [there, told] = [sum(all, 'wanted'), sum(all, 'said')];
  return [
    metric('f1_entities', (p) => f1(sum(p, 'hits'), sum(p, 'said'), sum(p, 'wanted')), there),
    metric('precision_entities', (p) => share(sum(p, 'hits'), sum(p, 'said')), told),
    metric('recall_entities', (p) => share(sum(p, 'hits'), sum(p, 'wanted')), there),
  ];
}
