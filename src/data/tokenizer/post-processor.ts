import { type JsonObject, tokenizerError } from './component.ts';

/** Special ids and the two texts (0 and 1) in their order, each with its token type. */
export type PairTemplate = readonly { readonly item: number | { readonly text: number }; readonly type: number }[];

/** An entry of `single` or `pair` of TemplateProcessing. */
type Item = Record<'Sequence' | 'SpecialToken', { id: string; type_id: number } | undefined>;

/** The id of the token under `name`, which is written with its id; the vocabulary's id takes precedence. */
const idOf = (config: JsonObject, name: string, idByToken: ReadonlyMap<string, number>): number => {
  const [token, id] = config[name] as [string, number];
  return idByToken.get(token) ?? id;
};

/**
 * The ids that a `post_processor` of tokenizer.json puts before and after a text.
 * @throws GraftError `input` for a type that is not supported
 */
export function readAffixes(
  config: JsonObject | null,
  idByToken: ReadonlyMap<string, number>,
  place: string,
): [before: number[], after: number[]] {
  switch (config?.type) {
    case undefined:
    case 'ByteLevel':
      return [[], []];
    case 'Sequence':
      return (config!.processors as JsonObject[])
        .map((processor) => readAffixes(processor, idByToken, place))
        .reduce(
          ([before, after], [b, a]) => [
            [...b, ...before],
            [...after, ...a],
          ],
          [[], []] as [number[], number[]],
        );
    case 'BertProcessing':
    case 'RobertaProcessing':
      return [[idOf(config!, 'cls', idByToken)], [idOf(config!, 'sep', idByToken)]];
    case 'TemplateProcessing': {
      const specialTokens = (config!.special_tokens ?? {}) as Record<string, { ids: number[] }>;
      const affixes: [number[], number[]] = [[], []];
      let side = 0;
      for (const item of config!.single as Item[]) {
        if (item.Sequence) side = 1;
        else affixes[side]!.push(...specialTokens[item.SpecialToken!.id]!.ids);
      }
      return affixes;
    }
    default:
      throw tokenizerError(place, `Post-processors of type ${JSON.stringify(config?.type)} are not supported`);
  }
}

/** The template by which a `post_processor` joins two texts; the second follows the first where it has none for pairs. */
export function readPairTemplate(config: JsonObject | null, idByToken: ReadonlyMap<string, number>): PairTemplate {
  const [first, second] = [{ text: 0 }, { text: 1 }];
  const plain: PairTemplate = [
    { item: first, type: 0 },
    { item: second, type: 1 },
  ];
  switch (config?.type) {
    case 'Sequence':
      return (config!.processors as JsonObject[]).reduce((last, processor) => {
        const template = readPairTemplate(processor, idByToken);
        return template.length > 2 ? template : last;
      }, plain);
    case 'BertProcessing':
    case 'RobertaProcessing': {
      const [cls, sep] = [idOf(config, 'cls', idByToken), idOf(config, 'sep', idByToken)];
      // Source: `processors/{bert,roberta}.rs` of huggingface/tokenizers.
      const isBert = config.type === 'BertProcessing';
      const between = isBert ? [sep] : [sep, sep];
      return [
        ...[cls, first, ...between].map((item) => ({ item, type: 0 })),
        ...[second, sep].map((item) => ({ item, type: isBert ? 1 : 0 })),
      ];
    }
    case 'TemplateProcessing': {
      const specialTokens = (config!.special_tokens ?? {}) as Record<string, { ids: number[] }>;
      return (config!.pair as Item[]).flatMap(
        ({ Sequence: sequence, SpecialToken: special }): PairTemplate =>
          sequence
            ? [{ item: sequence.id === 'B' ? second : first, type: sequence.type_id }]
            : specialTokens[special!.id]!.ids.map((item) => ({ item, type: special!.type_id })),
      );
    }
    default:
      return plain;
  }
}

interface AffixToken {
  readonly token: string;
  readonly id: number;
}

/** The `post_processor` that puts `before` and `after` around each text; where neither is given, one that adds nothing. */
export function affixTemplate(before: AffixToken | undefined, after: AffixToken | undefined): JsonObject {
  const around = (name: string, type_id: number) => [
    ...(before ? [{ SpecialToken: { id: before.token, type_id } }] : []),
    { Sequence: { id: name, type_id } },
    ...(after ? [{ SpecialToken: { id: after.token, type_id } }] : []),
  ];
  const tokens = [before, after].filter((token) => token !== undefined);
  return {
    type: 'TemplateProcessing',
    single: around('A', 0),
    pair: [...around('A', 0), ...around('B', 1)],
    special_tokens: Object.fromEntries(
      tokens.map(({ token, id }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}
