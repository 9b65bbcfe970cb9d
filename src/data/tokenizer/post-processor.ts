import { type Part, tokenizerError } from './component.ts';

/** Special ids, and the places of the texts among them, each with the token type that stands there. */
export type Frame = readonly { readonly part: number | { readonly text: number }; readonly type: number }[];

const idOf = (part: Part, name: string, ids: ReadonlyMap<string, number>): number => {
  const [token, id] = part[name] as [string, number];
  return ids.get(token) ?? id;
};

/** The ids that a `post_processor` of tokenizer.json puts before and after a text. */
export function readAffixes(part: Part | null, ids: ReadonlyMap<string, number>, place: string): [number[], number[]] {
  switch (part?.type) {
    case undefined:
    case 'ByteLevel':
      return [[], []];
    case 'Sequence':
      return (part!.processors as Part[])
        .map((p) => readAffixes(p, ids, place))
        .reduce(
          ([before, after], [b, a]) => [
            [...b, ...before],
            [...after, ...a],
          ],
          [[], []] as [number[], number[]],
        );
    case 'BertProcessing':
    case 'RobertaProcessing':
      return [[idOf(part!, 'cls', ids)], [idOf(part!, 'sep', ids)]];
    case 'TemplateProcessing': {
      const known = (part!.special_tokens ?? {}) as Record<string, { ids: number[] }>;
      const out: [number[], number[]] = [[], []];
      let side = 0;
      for (const item of part!.single as Record<'Sequence' | 'SpecialToken', { id: string } | undefined>[]) {
        if (item.Sequence) side = 1;
        else out[side]!.push(...known[item.SpecialToken!.id]!.ids);
      }
      return out;
    }
    default:
      throw tokenizerError(place, `Post-processors of type ${JSON.stringify(part?.type)} are not known`);
  }
}

type Item = Record<'Sequence' | 'SpecialToken', { id: string; type_id: number } | undefined>;

/** What a `post_processor` puts around two texts; one without a word on pairs sets the second behind the first. */
export function readPairFrame(part: Part | null, ids: ReadonlyMap<string, number>): Frame {
  const [a, b] = [{ text: 0 }, { text: 1 }];
  const plain: Frame = [
    { part: a, type: 0 },
    { part: b, type: 1 },
  ];
  switch (part?.type) {
    case 'Sequence':
      return (part!.processors as Part[]).reduce((last, p) => {
        const next = readPairFrame(p, ids);
        return next.length > 2 ? next : last;
      }, plain);
    case 'BertProcessing':
    case 'RobertaProcessing': {
      const [cls, sep] = [idOf(part, 'cls', ids), idOf(part, 'sep', ids)];
      // Source: `processors/{bert,roberta}.rs` of huggingface/tokenizers.
      const second = part.type === 'BertProcessing' ? 1 : 0;
      const between = second === 0 ? [sep, sep] : [sep];
      return [
        ...[cls, a, ...between].map((one) => ({ part: one, type: 0 })),
        ...[b, sep].map((one) => ({ part: one, type: second })),
      ];
    }
    case 'TemplateProcessing': {
      const known = (part!.special_tokens ?? {}) as Record<string, { ids: number[] }>;
      return (part!.pair as Item[]).flatMap(
        (item): Frame =>
          item.Sequence
            ? [{ part: item.Sequence.id === 'B' ? b : a, type: item.Sequence.type_id }]
            : known[item.SpecialToken!.id]!.ids.map((id) => ({ part: id, type: item.SpecialToken!.type_id })),
      );
    }
    default:
      return plain;
  }
}
