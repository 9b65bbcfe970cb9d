import { bootstrap, f1, type Metric } from './metrics.ts';

/** Whether labels are tags of a chunk scheme (IOB, IOB2, IOE, BIOES): `B-PER`, `O`. */
export const areChunkTags = (labels: readonly string[]): boolean =>
  labels.some((tag) => tag !== 'O') && labels.every((tag) => tag === 'O' || /^[BIES]-./.test(tag));

/**
 * The entities in a row of tags, each as `type start end`, as seqeval's `get_entities` finds them (default mode, which is
 * conlleval's: an `I-` without a `B-` begins an entity too).
 */
export function entitiesOf(tags: readonly string[]): Set<string> {
  const entities = new Set<string>();
  let [previous, previousType, begin] = ['O', '', 0];
  [...tags, 'O'].forEach((tag, i) => {
    const prefix = tag.charAt(0);
    const type = tag.slice(1).replace(/^[^-]*-/, '') || '_';
    const changed = previousType !== type;
    const ends =
      previous === 'E' ||
      previous === 'S' ||
      ('BI'.includes(previous) && 'BSO'.includes(prefix)) ||
      (previous !== 'O' && changed);
    const begins =
      prefix === 'B' ||
      prefix === 'S' ||
      ('ESO'.includes(previous) && 'EI'.includes(prefix)) ||
      (prefix !== 'O' && changed);
    if (ends) entities.add(`${previousType} ${begin} ${i - 1}`);
    if (begins) begin = i;
    [previous, previousType] = [prefix, type];
  });
  return entities;
}

/** Precision, recall and F1 of entities over all rows (micro, as seqeval's); the intervals are by resampling rows. */
export function entityMetrics(
  trueTags: readonly (readonly string[])[],
  predictedTags: readonly (readonly string[])[],
): Metric[] {
  const rows = trueTags.map((tags, r) => {
    const [trueEntities, predicted] = [entitiesOf(tags), entitiesOf(predictedTags[r]!)];
    const truePositives = [...trueEntities].filter((entity) => predicted.has(entity)).length;
    return { truePositives, trueCount: trueEntities.size, predictedCount: predicted.size };
  });
  const sum = (indices: readonly number[], count: keyof (typeof rows)[number]) =>
    indices.reduce((total, r) => total + rows[r]![count], 0);
  const all = [...rows.keys()];
  const metric = (name: string, statistic: (indices: readonly number[]) => number, count: number): Metric => ({
    name,
    ...bootstrap(rows.length, statistic),
    count,
    of: 'entities',
  });
  const share = (truePositives: number, of: number) => (of === 0 ? 0 : truePositives / of);
  const [trueCount, predictedCount] = [sum(all, 'trueCount'), sum(all, 'predictedCount')];
  return [
    metric(
      'f1_entities',
      (rs) => f1(sum(rs, 'truePositives'), sum(rs, 'predictedCount'), sum(rs, 'trueCount')),
      trueCount,
    ),
    metric('precision_entities', (rs) => share(sum(rs, 'truePositives'), sum(rs, 'predictedCount')), predictedCount),
    metric('recall_entities', (rs) => share(sum(rs, 'truePositives'), sum(rs, 'trueCount')), trueCount),
  ];
}
