/** In which formats the weights of a model are written. */
import { GraftError } from '../base/index.ts';
import { Embedding, Linear, type Model, namedModules, type Rounding, unwrapped } from '../nn/index.ts';
import {
  type FormatName,
  formats,
  ggufFormats,
  isGgufFormat,
  isIntegerFormat,
  type Quantization,
  requireWidths,
  roundingName,
  type WeightFormat,
} from '../quant/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { type ExportChoice, type ExportFormat, type FloatFormat, isFloat } from './export-choice.ts';

/** The format in which the weight of a layer or an embedding is written; integers can have scales of their own. */
export type WrittenFormat = (Quantization & Pick<Rounding, 'learned'>) | { readonly format: FloatFormat };

/**
 * Returns the format of the weight of the module at a path; undefined: float32. Biases, norms and everything else are always
 * float32.
 */
export type FormatOf = (path: string) => WrittenFormat | undefined;

/** A matrix of a model. */
interface Matrix {
  readonly path: string;
  /** Of its rows. */
  readonly width: number;
  readonly module: Linear | Embedding;
  /** Whether no other shares its table before it. */
  readonly isFirst: boolean;
}

function* matricesOf(model: Model): Generator<Matrix> {
  const seen = new Set<Tensor>();
  for (const [path, outer] of namedModules(model.root)) {
    const module = unwrapped(outer);
    if (path.endsWith('.base_layer') || path.includes('.base_layer.')) continue;
    if (!(module instanceof Linear || module instanceof Embedding)) continue;
    const width = module instanceof Linear ? module.inFeatures : module.width;
    yield { path, width, module, isFirst: !seen.has(module.weight) };
    seen.add(module.weight);
  }
}

/**
 * Returns the format of every matrix: those for which it was trained, where `to` names them; and a line where rows do not fit blocks and are written in another format, as in llama.cpp,
 * and where weights have been rounded before.
 * @throws GraftError 'mismatch' for groups of integers that do not divide a row
 */
export function formatsFor(
  model: Model,
  choice: ExportChoice,
  trained: ReadonlyMap<string, Rounding> = new Map(),
): { formatOf: FormatOf; notes: string[] } {
  const { to, groupSize } = choice;
  const trainedLayers = [...trained].filter(([path]) => !isTable(model, path));
  const trainedFormats = new Set(
    (trainedLayers.length > 0 ? trainedLayers : [...trained]).map(([, { quantization }]) => quantization.format),
  );
  const isTrainedFor = (trainedFormats as Set<ExportFormat>).has(to);
  if (isTrainedFor && [...trainedFormats].every((format) => isGgufFormat(format) === isGgufFormat(to)))
    return asTrained(model, choice, trained);
  const embedding = choice.embedding ?? (isFloat(to) ? to : isGgufFormat(to) ? 'q8_0' : 'none');
  const byPath = new Map<string, WrittenFormat>();
  const replaced = new Map<string, { widths: Set<number>; count: number; line: [ExportFormat, ExportFormat] }>();
  const widths = { blocks: new Map<string, number>(), embedding: new Map<string, number>() };
  const roundedBefore = new Set<string>();
  for (const { path, width, module, isFirst } of matricesOf(model)) {
    const isOfTable = isTable(model, path);
    const wanted = isOfTable ? embedding : to;
    if (wanted === 'none') continue;
    widths[isOfTable ? 'embedding' : 'blocks'].set(path, width);
    const format = fitting(wanted, width);
    byPath.set(path, { format, ...(isIntegerFormat(format as WeightFormat) && { groupSize }) } as WrittenFormat);
    const isCopied = formats[format as FormatName]?.nativeId === module.format;
    if (module.roundedAs && !isFloat(format) && !isCopied) roundedBefore.add(roundingName(module.roundedAs));
    if (format === wanted || !isFirst) continue;
    const key = `${wanted} ${format}`;
    const entry = replaced.get(key) ?? { widths: new Set(), count: 0, line: [wanted, format] };
    entry.widths.add(width);
    entry.count++;
    replaced.set(key, entry);
  }
  for (const [wanted, map] of [
    [to, widths.blocks],
    [embedding, widths.embedding],
  ] as const) {
    if (wanted !== 'none' && isIntegerFormat(wanted as WeightFormat))
      requireWidths({ format: wanted as WeightFormat, groupSize }, map);
  }
  const notes = [...replaced.values()].map(({ widths: sizes, count, line: [from, format] }) => {
    const blocks = formats[from as FormatName].blockElements;
    const what = count === 1 ? '1 weight has rows' : `${count} weights have rows`;
    return `${what} of ${[...sizes].join(' or ')} numbers, which blocks of ${blocks} do not divide: ${format} instead of ${from}, as in llama.cpp`;
  });
  if (trainedFormats.size > 0)
    notes.push(
      `the adapter was trained for ${[...trainedFormats].join(' and ')}, ${isTrainedFor ? `which no file holds together: all is ${to}` : `and not for ${to}`}`,
    );
  if (roundedBefore.size > 0)
    notes.push(`weights that were rounded before (${[...roundedBefore].join(', ')}) are rounded again from there`);
  return { formatOf: (path) => byPath.get(path), notes };
}

const isTable = ({ sites }: Model, path: string) => path === sites.embeddings || path === sites.head;

/** Returns the formats for which a model was trained: what was rounded then is rounded so, and nothing else. */
function asTrained(
  model: Model,
  { to, groupSize, embedding }: ExportChoice,
  trained: ReadonlyMap<string, Rounding>,
): { formatOf: FormatOf; notes: string[] } {
  const other = [...trained.values()].find(
    ({ quantization }) => groupSize !== undefined && quantization.groupSize !== groupSize,
  );
  if (other) {
    const size = other.quantization.groupSize ?? 'the whole row';
    throw new GraftError('usage', `the adapter was trained for ${to} with a group_size of ${size}, not ${groupSize}`, {
      hint: 'Leave group_size out',
    });
  }
  const chosen = embedding === 'none' ? undefined : embedding;
  const isChosen = (path: string) => embedding !== undefined && isTable(model, path);
  const misfit = [...trained].find(
    ([path, { quantization }]) => !isChosen(path) && isGgufFormat(quantization.format) !== isGgufFormat(to),
  );
  if (misfit)
    throw new GraftError(
      'usage',
      `one file cannot hold both ${to} and ${misfit[1].quantization.format}, for which '${misfit[0]}' was trained`,
      { place: 'embedding', hint: `Choose ${isGgufFormat(to) ? ggufFormats.join(', ') : 'int2 to int8'}, or none` },
    );
  const besideBase = [...trained.values()].some(({ ofBase }) => ofBase);
  return {
    notes: besideBase
      ? [
          `the adapter was trained in float beside a base rounded to ${to}, and this rounds their sum, which computes something else: graft quantize writes the base for it`,
        ]
      : [],
    formatOf(path) {
      if (isChosen(path)) return chosen && ({ format: chosen, groupSize } as WrittenFormat);
      const rounding = trained.get(path);
      return rounding && { ...rounding.quantization, learned: rounding.learned };
    },
  };
}

/** Returns the format, or the one that takes its place where its blocks do not divide the rows. */
function fitting(format: ExportFormat, width: number): ExportFormat {
  const { blockElements, fallback } = isIntegerFormat(format as WeightFormat)
    ? { blockElements: 1, fallback: undefined }
    : formats[format as FormatName];
  return width % blockElements === 0 || !fallback ? format : fitting(fallback, width);
}
